"""Dataclasses whose fields are read from texts: pydantic checks the values and has the help.

The text under a field is its help, its type has its range, and its flag bears its name.
"""

import ast
import inspect
import json
import math
import os
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice, pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError


def _must(fits: Callable[[Any], bool], words: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not fits(value):
            raise PydanticCustomError("range", words)
        return value

    return AfterValidator(check)


def must_be(fits: Callable[[Any], bool], words: str) -> PlainValidator:
    """A check in place of the type's own, for values of several types."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise PydanticCustomError("range", words)
        return value

    return PlainValidator(check)


def is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_HOME = "must be a path in full: no user has that home directory"
Text = Annotated[str, _must(lambda v: v and "\0" not in v, "must not be empty or have a NUL")]
PathText = Annotated[
    Text, AfterValidator(os.path.expanduser), _must(lambda v: not v.startswith("~"), _HOME)
]
# Upper limits that no useful value reaches, and that do not exhaust the memory.
PositiveInt = Annotated[int, Field(ge=1, le=10**12)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**12)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, _must(lambda v: v == 0 or 1e-6 <= v <= 1e6, "must be 0, or 1e-6 to 1e6")]

_EXAMPLES = {
    "string_type": ", in quotes where it looks like a number",
    "list_type": ", such as [32, 64]",
    "dict_type": ", such as {generate: 1, edit: 1}",
}


def add_fields(parser: ArgumentParser, defaults: Any, titles: Mapping[str, str]) -> None:
    """A flag for each documented field. The parser gives it the text that follows, or None.

    Args:
        titles: the first field of each group of flags -> the title of the group.
    """
    (source,) = ast.parse(inspect.getsource(type(defaults))).body
    kinds = get_type_hints(type(defaults))
    for field, text in pairwise(source.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)):
            continue
        name = field.target.id
        if name in titles:
            group = parser.add_argument_group(titles[name])
        kind, options = kinds[name], get_args(kinds[name])
        if NoneType in options:  # a type, or null
            kind, options = options[0], get_args(options[0])
        kinds_of = options if get_origin(kind) is UnionType else (kind,)
        words = "|".join((get_origin(one) or one).__name__.upper() for one in kinds_of)
        if get_origin(kind) is Literal:
            words = f"{{{','.join(options)}}}"
        help = f"{text.value.value} (default: {show(getattr(defaults, name))})".replace("%", "%%")
        bare = "true" if kind is bool else None
        given = {"nargs": "?", "const": bare, "metavar": words, "default": SUPPRESS}
        group.add_argument(f"--{name}", help=help, **given)


def from_text(kind: Any, text: str) -> Any:
    """What a flag's text means for a field of this type; the text itself where that is unclear."""
    from .yaml_reader import load_strictly  # not needed for --help

    if get_origin(kind) is Literal or kind in (str, str | None):
        return text
    try:
        return load_strictly(text)
    except ValueError:
        return text


@cache
def _model(kind: type) -> type:
    hints = get_type_hints(kind, include_extras=True)
    config = ConfigDict(strict=True, allow_inf_nan=False)
    return create_model("Values", __config__=config, **{n: (t, None) for n, t in hints.items()})


def validated(kind: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that the fields of a dataclass can hold, and field -> what is wrong."""
    hints = get_type_hints(kind)
    optional = {name for name in values if NoneType in get_args(hints[name])}
    unset = {n: None for n in optional if values[n] in ("None", "null")}
    try:
        return _model(kind).model_validate({**values, **unset}).model_dump(exclude_unset=True), {}
    except ValidationError as refusal:
        faults = {}
        for error in refusal.errors():
            what = re.sub(r"^\w+ should ", "must ", error["msg"]) + _EXAMPLES.get(error["type"], "")
            name = error["loc"][0]
            null = " or null" if name in optional else ""
            # Of a field with several values, the first fault is reported.
            faults.setdefault(name, f"found {show(error['input'])}; {what}{null}")
        return {n: v for n, v in values.items() if n not in faults}, faults


def show(value: Any) -> str:
    """A value as JSON has it; a long one is cut."""
    words = json.JSONEncoder(default=str, ensure_ascii=False, skipkeys=True, check_circular=False)
    pieces = words.iterencode(value)
    try:
        text = "".join(islice(pieces, 100))
        whole = len(text) <= 300 and next(pieces, None) is None
    except ValueError as error:  # Python does not write numbers of thousands of digits
        text, whole = f"({error})", True
    return text if whole else f"{text[:200]}..."
