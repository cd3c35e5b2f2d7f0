"""Reads a configuration from YAML and flags, or from a dict, and reports all mistakes in one error.

Nothing here imports torch until the names of the tasks are checked, so that `--help` is quick.
"""

import os
import re
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..tools import flags
from ..tools.fields import add_fields, from_text, show, validated
from ..tools.yaml_reader import load_strictly
from . import limits
from .fields import TITLES, TYPES, ConfigError, TrainConfig, suggestion
from .written import REMOVED, to_dict

# Names in other trainers, and removed ones -> what to set here instead.
_ELSEWHERE = {
    "num_epochs num_train_epochs epochs max_epochs": (
        "max_train_steps: an epoch is the number of images / total_batch_size"
    ),
    "train_batch_size batch_size": "total_batch_size, the samples of a step over all processes",
    "per_device_train_batch_size micro_batch_size gradient_accumulation_steps "
    "accumulate_grad_batches": (
        "per_device_batch_size, the most samples at once: the rest of a process's share of "
        "total_batch_size is accumulated"
    ),
    "fp16 bf16": "mixed_precision, to no, bf16 or fp16",
} | REMOVED


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """Reads `--config FILE.yaml` and flags; a flag beats the file wherever it stands.

    Raises ConfigError with every mistake that was found. `--help` prints and exits.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = _parser(argv).parse_known_args(argv)
    faults, values, labels = list(_unknown(rest)), {}, {}
    for path in args.config:
        for name, value in _read(path or "", faults).items():
            values[name], labels[name] = value, f"{name} ({path})"
    del args.config
    for flag, text in vars(args).items():
        name, _, entry = flag.partition(".")
        if text is None:
            faults.append(f"--{flag}: found no value; write --{flag}=VALUE")
            continue
        value = from_text(TYPES[name], text)
        if entry:
            whole = values.get(name, getattr(TrainConfig(), name)) or {}
            value = {**whole, entry: value} if isinstance(whole, dict) else whole
        values[name], labels[name] = value, f"--{flag}"
    return checked(values, labels, faults)


def checked(
    values: Mapping[str, Any], labels: Mapping[str, str] | None = None, faults: Iterable[str] = ()
) -> TrainConfig:
    """The configuration with these values, and the defaults of the other fields.

    Args:
        labels: field -> its name in a message.
        faults: mistakes that are known already.

    Raises:
        ConfigError: with every mistake.
    """
    config, lines = _typed(values)
    known = [*known_tasks(), *(config.condition_columns or {})]
    lines |= dict(line.split(": ", 1) for line in limits.faults(config, known, lines))
    if lines or faults:
        names = {name: name for name in lines} | dict(labels or {})
        raise ConfigError([*faults, *(f"{names[name]}: {what}" for name, what in lines.items())])
    return config


def check(config: TrainConfig) -> TrainConfig:
    """The same, with ~ expanded; raises ConfigError with every mistake, as `parse` does."""
    return replace(checked(to_dict(config)), written=config.written)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undoes `to_dict`, of older versions too. Fields are checked one by one only (ConfigError)."""
    removed = " ".join(REMOVED).split()
    config, lines = _typed({name: v for name, v in values.items() if name not in removed})
    if lines:
        raise ConfigError([f"{name}: {what}" for name, what in lines.items()])
    return config


def _typed(values: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration, and field -> what is wrong; such fields have their default."""
    known, lines = validated(TrainConfig, {n: v for n, v in values.items() if n in TYPES})
    lines |= {n: f"unknown field{_hint(str(n))}" for n in values if n not in TYPES}
    return TrainConfig(**known, written=frozenset(known)), lines


def known_tasks() -> list[str]:
    """Names of the tasks that can be trained."""
    # Imported here: tasks are torch code, which --help must not wait for.
    from mtl_diffusion.pipeline.pipeline import TASKS

    return list(TASKS)


def _parser(argv: Sequence[str]) -> ArgumentParser:
    """A parser that refuses nothing: a flag's value is its text, or None where there is none."""
    usage = "%(prog)s [--config FILE.yaml] [--field VALUE ...]"
    parser = flags.parser("Train one denoiser on several tasks.", usage=usage)
    add, text = parser.add_argument, "YAML file of the fields below; flags beat it"
    add("--config", nargs="?", action="append", default=[], metavar="FILE.yaml", help=text)
    add_fields(parser, TrainConfig(), TITLES)
    for word in {word.partition("=")[0] for word in argv}:
        # An entry of a mapping.
        if re.fullmatch(r"--(tasks|condition_columns)\.[^.]+", word):
            add(word, nargs="?", dest=word[2:], default=SUPPRESS)
    return parser


def _unknown(words: Iterable[str]) -> Iterator[str]:
    """A line for each flag of no field, and for each text that is no flag's."""
    before = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            yield f"--{name}: unknown flag{_hint(name, '--')}"
        elif not before.startswith("--") or "=" in before:
            what = "must be --name value; a list is one value, '[32, 64]'"
            yield f"command line: found {show(word)}; {what}"
        before = word


def _hint(name: str, prefix: str = "") -> str:
    """What to write in place of a name that is no field's."""
    hints = (f"; set {what}" for names, what in _ELSEWHERE.items() if name in names.split())
    return next(hints, suggestion(name, TYPES, prefix))


def _read(path: str, faults: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file; its faults are appended to `faults`."""
    doubled: list[str] = []
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
        values = load_strictly(text, doubled)
        if not isinstance(values, dict):
            raise ValueError("it must hold lines such as seed: 1")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        faults.append(f"--config: found {show(path)}; must be a readable YAML file ({reason})")
        return {}
    faults += [f"{key} ({path}): found more than once; keep one" for key in doubled]
    return values
