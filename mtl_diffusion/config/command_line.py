"""Reading a configuration, strictly: from YAML and the command line, or from a dict.

Every mistake is reported, in one error. Nothing here imports torch until the names of the tasks are
checked, so that `--help` is shown at once.
"""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from . import limits
from .fields import GROUPS, TYPES, ConfigError, TrainConfig, listed, show, suggestion, to_dict
from .yaml_reader import load, load_strictly

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
    if {"-h", "--help"} & set(argv):
        _print_help()
    faults: list[str] = []
    pairs = list(_pairs(argv, faults))
    in_files = [
        (name, value, f" ({path})")
        for key, path in pairs
        if key == "config"
        for name, value in _read(path, faults).items()
    ]
    values, unreadable = _values(in_files, faults)
    for name, text in pairs:
        field, _, entry = name.partition(".")  # `tasks.edit` is an entry of `tasks`
        if name == "config":
            continue
        if name not in TYPES and (field not in _MAPPINGS or not entry or "." in entry):
            faults.append(f"--{name}: unknown flag{_hint(name, '--')}")
            continue
        kind = float if entry else TYPES[name]
        try:
            value = _typed(kind, _from_text(kind, text))
        except (ValueError, yaml.YAMLError):
            faults.append(f"--{name}: found {show(text)}; must be {_expected(kind)}")
            unreadable.add(field)
            continue
        if entry:
            value = {**(values.get(field, to_dict(TrainConfig())[field]) or {}), entry: value}
        values[field] = value

    config = TrainConfig(**values)
    faults += limits.faults(config, known_tasks(), unreadable)
    if faults:
        raise ConfigError(faults)
    return config


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undo `to_dict`. Absent fields get their defaults; unknown or mistyped ones are refused."""
    faults: list[str] = []
    read, _ = _values(((name, value, "") for name, value in values.items()), faults)
    if faults:
        raise ConfigError(faults)
    return TrainConfig(**read)


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


def _print_help() -> None:
    """The help of every field, which is the text under it; exits."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE.yaml] [--field VALUE ...]",
        description="Train one denoiser on several tasks.",
        print_config=None,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="YAML file of the fields below; flags beat it."
    )
    for group in GROUPS:
        parser.add_class_arguments(group, as_group=True)
    parser.parse_args(["--help"])


def _values(
    items: Iterable[tuple[Any, Any, str]], faults: list[str]
) -> tuple[dict[str, Any], set[Any]]:
    """The values of (name, value, where it stands), and the names of those of another type."""
    values, unreadable = {}, set()
    for name, value, where in items:
        if name not in TYPES:
            faults.append(f"{name}{where}: unknown field{_hint(str(name))}")
            continue
        try:
            values[name] = _typed(TYPES[name], value)
        except ValueError:
            faults.append(f"{name}{where}: found {show(value)}; must be {_expected(TYPES[name])}")
            unreadable.add(name)
    return values, unreadable


def _hint(name: str, prefix: str = "") -> str:
    """What to write in place of a name that is no field's."""
    return _ELSEWHERE.get(name) or suggestion(name, TYPES, prefix)


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
            if rest and not rest[0].startswith("--"):
                value = rest.popleft()
            elif TYPES.get(name) is bool:
                value = "true"
            elif name in TYPES or name == "config" or name.partition(".")[0] in _MAPPINGS:
                faults.append(f"{flag}: found no value; write {flag} VALUE")
                continue
        yield name, value


def _from_text(kind: Any, text: str) -> Any:
    """A flag's value: YAML, or the text itself for a field that takes texts."""
    if get_origin(kind) is Literal or kind is str:
        return text
    if kind == str | None:
        return None if text in ("null", "None") else text
    return load_strictly(text)


def _typed(kind: Any, value: Any) -> Any:
    """The value as a field of this type holds it.

    Raises:
        ValueError: it is of another type.
    """
    options = get_args(kind)
    if get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in options
    elif get_origin(kind) is list:
        fits = isinstance(value, list) and all(type(entry) is int for entry in value)
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {name: _typed(float, entry) for name, entry in value.items()}
    elif options and get_origin(kind) is not dict:  # a type or None
        return None if value is None else _typed(options[0], value)
    elif kind is float and type(value) is int:
        fits = abs(value) < 1e300  # more is no float
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError
    return value


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
