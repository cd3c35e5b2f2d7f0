"""Reading a configuration, strictly: from YAML and the command line, or from a dict.

Every mistake is reported, in one error. Nothing here imports torch until the names of the tasks are
checked, so that `--help` is shown at once.
"""

import json
import os
import sys
from argparse import ArgumentError
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from . import limits
from .fields import GROUPS, TYPES, ConfigError, TrainConfig, listed, show, suggestion, to_dict
from .yaml_reader import load, load_strictly

_LISTS = {name for name, kind in TYPES.items() if kind == list[int]}
_MAPPINGS = {name for name, kind in TYPES.items() if dict[str, float] in (kind, *get_args(kind))}
# Field names of other trainers, and what to set here instead.
_STEPS = "; set max_train_steps: an epoch is the number of images / total_batch_size"
_BATCH = "; set total_batch_size, the samples of a step over all processes"
_ACCUMULATION = (
    "; set per_device_batch_size, the most samples at once: the rest of a process's share of "
    "total_batch_size is accumulated"
)
_ELSEWHERE = {
    **dict.fromkeys(("num_epochs", "num_train_epochs", "epochs", "max_epochs"), _STEPS),
    **dict.fromkeys(("train_batch_size", "batch_size"), _BATCH),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size"), _ACCUMULATION),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), _ACCUMULATION),
    **dict.fromkeys(("fp16", "bf16"), "; set mixed_precision, to no or bf16"),
}


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """Read `--config FILE.yaml` and flags; a flag beats the file wherever it stands.

    Raises ConfigError with every mistake that was found. `--help` prints and exits.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])

    # Each item is tried alone, because the library stops at the first that it cannot read.
    faults: list[str] = []
    unreadable: set[str] = set()
    values: dict[str, Any] = {}
    flags: list[str] = []
    pairs = list(_pairs(argv, faults))
    for path in (value for name, value in pairs if name == "config"):
        for name, value in _read(path, faults).items():
            if fault := _item_fault(parser, name, value, where=f" ({path})"):
                faults.append(fault)
                unreadable.add(name)
            else:
                values[name] = value
    for name, value in pairs:
        if name == "config":
            continue
        flag = f"--{name}={_decimal(name, value)}"
        if fault := _flag_fault(parser, name, value, flag):
            faults.append(fault)
            unreadable.add(_field(name))
        else:
            flags.append(flag)

    config = _build(parser.parse_args(flags, namespace=parser.parse_object(values)))
    faults += limits.faults(config, known_tasks(), unreadable)
    if faults:
        raise ConfigError(faults)
    return config


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undo `to_dict`. Absent fields get their defaults; unknown or mistyped ones are refused."""
    parser = _parser()
    if faults := [fault for item in values.items() if (fault := _item_fault(parser, *item))]:
        raise ConfigError(faults)
    return _build(parser.parse_object(dict(values)))


def check(config: TrainConfig) -> None:
    """Checks a configuration that was made in Python as `parse` checks one that it reads.

    Raises:
        ConfigError: with every mistake that was found.
    """
    if faults := limits.faults(from_dict(to_dict(config)), known_tasks()):
        raise ConfigError(faults)


def known_tasks() -> list[str]:
    """Names of the tasks that can be trained."""
    # Imported here: tasks are torch code, which --help must not wait for.
    from mtl_diffusion.pipeline.pipeline import TASKS

    return list(TASKS)


@cache
def _parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("strict_yaml", load_strictly, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE.yaml] [--field VALUE ...]",
        description="Train one denoiser on several tasks.",
        parser_mode="strict_yaml",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="YAML file of the fields below; flags beat it."
    )
    for group in GROUPS:
        parser.add_class_arguments(group, as_group=True)
    return parser


def _build(namespace: Namespace) -> TrainConfig:
    return TrainConfig(**{name: namespace[name] for name in TYPES})


def _read(path: str, faults: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file; its faults are appended to `faults`."""
    try:
        values, duplicates = load(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or no path
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        faults.append(f"--config: found {show(path)}; must be a readable YAML file ({reason})")
        return {}
    if not isinstance(values, dict):
        faults.append(f"--config: found {show(path)}; must hold lines such as seed: 1")
        return {}
    faults += [f"{key} ({path}): found more than once; keep one" for key in duplicates]
    return values


def _pairs(argv: Sequence[str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """The command line as (name, value); the rest is appended to `faults`."""
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        flag, given, value = word.partition("=")
        name = flag.removeprefix("--")
        if flag == name:
            what = "must be --name value; a list is one value, '[32, 64]'"
            faults.append(f"command line: found {show(word)}; {what}")
            continue
        if not given:
            # jsonargparse wants a value after every flag; ours may leave out `true`.
            if rest and not rest[0].startswith("--"):
                value = rest.popleft()
            elif TYPES.get(name) is bool:
                value = "true"
            elif name == "config" or _field(name) in TYPES:
                faults.append(f"{flag}: found no value; write {flag} VALUE")
                continue
        yield name, value


def _field(name: str) -> str:
    """The field that a flag sets: `tasks.edit` sets an entry of `tasks`, `list+` appends."""
    base, _, entry = name.partition(".")
    if base in _MAPPINGS and entry and "." not in entry:
        return base
    return name.removesuffix("+") if name.removesuffix("+") in _LISTS else name


def _takes_text(kind: Any) -> bool:
    return get_origin(kind) is Literal or str in (kind, *get_args(kind))


def _has_text(value: Any) -> bool:
    """Whether a value is a text, or has one in it; jsonargparse would read numbers in it."""
    if isinstance(value, list | dict):
        return any(map(_has_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def _decimal(name: str, text: str) -> str:
    """A flag's value with its numbers as jsonargparse knows them, too: 0o10 is 8."""
    if _field(name) not in TYPES or _takes_text(TYPES[_field(name)]):
        return text
    try:
        return json.dumps(load_strictly(text), allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError):
        return text


def _flag_fault(parser: ArgumentParser, name: str, value: str, flag: str) -> str | None:
    if _field(name) not in TYPES:
        return f"--{name}: unknown flag{_ELSEWHERE.get(name) or suggestion(name, TYPES, '--')}"
    kind = float if "." in name else TYPES[_field(name)]
    fault = f"--{name}: found {show(value)}; must be {_expected(kind)}"
    try:
        if not _takes_text(kind) and _has_text(load_strictly(value)):
            return fault
        read = parser.parse_args([flag], defaults=False)[_field(name)]
    except (ArgumentError, OverflowError, yaml.YAMLError):
        return fault
    return _null_fault(f"--{name}", _field(name), read)


def _item_fault(parser: ArgumentParser, name: Any, value: Any, where: str = "") -> str | None:
    if name not in TYPES:
        return f"{name}{where}: unknown field{_ELSEWHERE.get(name) or suggestion(str(name), TYPES)}"
    fault = f"{name}{where}: found {show(value)}; must be {_expected(TYPES[name])}"
    if not _takes_text(TYPES[name]) and _has_text(value):
        return fault
    try:
        read = parser.parse_object({name: value}, defaults=False)[name]
    except (ArgumentError, OverflowError):
        return fault
    return _null_fault(f"{name}{where}", name, read)


def _null_fault(label: str, name: str, value: Any) -> str | None:
    # jsonargparse lets null pass for any type.
    if value is None and NoneType not in get_args(TYPES[name]):
        return f"{label}: found null; must be {_expected(TYPES[name])}"
    return None


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text, in quotes if it looks like a number",
    list[int]: "a list of whole numbers, such as [32, 64]",
    dict[str, float]: "names with numbers, such as {generate: 1, edit: 1}",
    NoneType: "null",
}


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {listed(get_args(kind))}"
    return _WORDS[kind] if kind in _WORDS else " or ".join(map(_expected, get_args(kind)))
