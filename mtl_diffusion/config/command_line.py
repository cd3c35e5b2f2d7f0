"""The flags of a run, and its YAML file: read with all mistakes in one error, and their help.

Nothing here imports torch until the names of the tasks are checked, so that `--help` is quick.
"""

import ast
import inspect
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..tools import flags
from ..tools.yaml_reader import load_strictly
from .fields import TITLES, TYPES, TrainConfig, show
from .values import checked, hint


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """Reads `--config FILE.yaml` and flags; a flag beats the file wherever it stands.

    Raises ConfigError with every mistake that was found. `--help` prints and exits.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"}.intersection(words):
        print(_help())
        sys.exit(0)
    files, given, faults = [], {}, []
    while words:  # argparse would stop at the first mistake
        word = words.pop(0)
        if not word.startswith("--"):
            what = "must be --name value; a list is one value, '[32, 64]'"
            faults.append(f"command line: found {show(word)}; {what}")
            continue
        name, equals, text = word[2:].partition("=")
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else None
        if name == "config":
            files.append(text or "")
        elif name not in TYPES:
            faults.append(f"--{name}: unknown flag{hint(name, '--')}")
        elif text is None and TYPES[name] is not bool:
            faults.append(f"--{name}: found no value; write --{name}=VALUE")
        else:
            given[name] = True if text is None else _value(TYPES[name], text)
    values, labels = {}, {}
    for path in files:
        found = _read(path, faults)
        values |= found
        labels |= {name: f"{name} ({path})" for name in found}
    return checked(values | given, labels | {name: f"--{name}" for name in given}, faults)


def _value(kind: Any, text: str) -> Any:
    """What a flag's text means for a field of this type; the text itself where that is unclear."""
    if get_origin(kind) is Literal or kind in (str, str | None):
        return text
    try:
        return load_strictly(text)
    except ValueError:
        return text


def _read(path: str, faults: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file; its faults are appended to `faults`."""
    try:
        values = load_strictly(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it must hold lines such as seed: 1")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        faults.append(f"--config: found {show(path)}; must be a readable YAML file ({reason})")
        return {}
    return values


def _help() -> str:
    """A flag for each field, with the text under it."""
    usage = "%(prog)s [--config FILE.yaml] [--field VALUE ...]"
    parser = flags.parser("Train one denoiser on several tasks.", usage=usage)
    text = "YAML file of the fields below; flags beat it"
    parser.add_argument("--config", metavar="FILE.yaml", help=text)
    (source,) = ast.parse(inspect.getsource(TrainConfig)).body
    for field, text in pairwise(source.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            name = field.target.id
            if name in TITLES:
                group = parser.add_argument_group(TITLES[name])
            default = show(getattr(TrainConfig(), name))
            words = f"{text.value.value} (default: {default})".replace("%", "%%")
            group.add_argument(f"--{name}", metavar=_metavar(TYPES[name]), help=words)
    return parser.format_help()


def _metavar(kind: Any) -> str:
    """The name of a type in the help: INT, or {crop,pad,stretch}."""
    options, origin = get_args(kind), get_origin(kind)
    if origin is Literal:
        return f"{{{','.join(options)}}}"
    if origin in (Union, UnionType):
        return "|".join(_metavar(one) for one in options if one is not NoneType)
    return (origin or kind).__name__.upper()
