"""The settings of a run: typed fields, read from YAML and the command line, strictly.

A field is documented once, under it; that text is its `--help`. Nothing here imports torch until
the names of the tasks are checked, so that help is shown at once.
"""

from __future__ import annotations

import json
import math
import re
import sys
from argparse import ArgumentError
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; `faults` holds one line per mistake."""

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{count} in the configuration:{lines}")


# --- the fields ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    """Data"""

    dataset_name: str = "shapes"
    """"shapes" (drawn by this package, no download), a dataset's name on the Hub, or a local
    folder, such as one with a folder of images per class."""
    dataset_config_name: str | None = None
    """Configuration of the dataset. None: its only or default one."""
    train_split: str = "train"
    """Split that is trained on; slices such as train[:90%] work."""
    validation_split: str = "test"
    """Held-out split, for validation and evaluation; slices such as train[90%:] work."""
    image_column: str | None = None
    """Column with the images. None: the only column of images."""
    label_column: str | None = None
    """Column with the class labels. None: the only column of class labels."""
    resolution: int = 16
    """Side of the square images, in pixels; 8 or more, and divisible by
    2 ** (number of block_out_channels - 1)."""
    random_flip: bool = True
    """Mirror half of the training images left to right."""


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    """Channels of each level of the UNet, finest first; each level halves the resolution."""
    layers_per_block: int = 1
    """Residual layers per level."""
    attention_resolutions: list[int] = field(default_factory=lambda: [8])
    """Feature-map sides, in pixels, that get self- and cross-attention. The middle block always
    has it."""
    num_attention_heads: int = 2
    """Heads per attention layer; divides every entry of block_out_channels."""
    norm_num_groups: int = 8
    """Groups of each group norm; divides every entry of block_out_channels."""
    dropout: float = 0.0
    """Dropout probability inside the residual layers; 0 or more, below 1."""
    token_dim: int = 64
    """Width of the embedding of the task, class and strength tokens."""
    strength_levels: int = 9
    """Tokens that the strength of an edit, 0 to 1, is interpolated between; 2 or more."""
    reserved_tokens: int = 16
    """Unused tokens, kept so that a task or a class can be added to a trained model without
    changing a shape."""
    pretrained_model_name_or_path: str | None = None
    """Exported pipeline to start from: a folder or a name on the Hub. None: random weights."""
    revision: str | None = None
    """Branch, tag or commit of pretrained_model_name_or_path. None: its main branch."""
    train_only: Literal["tokens", "tokens+condition", "all"] = "all"
    """Weights that are trained: the token table, also the input channels of the condition, or
    all. Less than all needs pretrained_model_name_or_path."""


@dataclass(frozen=True)
class TaskConfig:
    """Tasks"""

    tasks: dict[str, float] = field(
        default_factory=lambda: {"generate": 0.5, "inpaint": 0.25, "edit": 0.25}
    )
    """Proportion of each task among the samples of a batch; normalised. 0 leaves a task out."""
    task_weighting: Literal["uncertainty", "fixed", "sum"] = "uncertainty"
    """How the losses of the tasks are balanced: by a learned uncertainty, by task_weights, or
    not at all."""
    task_weights: dict[str, float] | None = None
    """Weight of each task's loss; needed with task_weighting fixed, and only then. None: no
    weights of your own."""
    class_dropout: float = 0.1
    """Share of the samples, 0 to 1, whose class token is hidden, for guidance."""
    task_dropout: float = 0.1
    """Share of the samples, 0 to 1, whose task token is hidden."""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise (the defaults are those of EDM, Karras et al. 2022, Table 1)"""

    sigma_mean: float = -1.2
    """Mean of ln(sigma) in training; EDM's P_mean."""
    sigma_std: float = 1.2
    """Standard deviation of ln(sigma) in training; EDM's P_std."""
    sigma_data: float = 0.5
    """Standard deviation of the images, whose values are -1 to 1."""
    sigma_min: float = 0.002
    """Lowest noise level of sampling, in units of image values."""
    sigma_max: float = 80.0
    """Highest noise level of sampling, in units of image values."""


@dataclass(frozen=True)
class OptimisationConfig:
    """Optimisation"""

    max_train_steps: int = 1200
    """Length of the run, in optimiser steps."""
    total_batch_size: int = 32
    """Samples that one optimiser step sees, over all processes."""
    per_device_batch_size: int | None = None
    """Most samples that a process holds at once; the rest of its share is accumulated. None: the
    whole share at once."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    lr_warmup_steps: float = 0.04
    """Linear warm-up of the learning rate. Below 1: a share of the run; 1 or more: steps."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear decay to zero."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients; 0 or more, below 1."""
    adam_beta2: float = 0.99
    """Decay of AdamW's mean of squared gradients; 0 or more, below 1."""
    adam_epsilon: float = 1e-8
    """What AdamW adds to its denominator."""
    adam_weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Norm that the gradient is clipped to. A large number, such as 1e9, never clips."""
    use_ema: bool = True
    """Keep an exponential moving average of the weights, and validate and export that."""
    ema_half_life: float = 0.05
    """Half-life of the average, as a share of the run's images; above 0, at most 1."""
    ema_ramp: float = 0.05
    """The half-life never exceeds this share of the images seen so far; above 0, at most 1."""


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    output_dir: str = "runs/default"
    """Folder for checkpoints, logs and the exported pipeline."""
    seed: int = 0
    """Seed of everything random."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the network's arithmetic; the weights stay float32."""
    compile: bool = False
    """Compile the network; the first step waits for it."""
    channels_last: bool = True
    """Keep images in channels-last memory order."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    num_threads: int | None = None
    """CPU threads of a process. None: all cores, shared evenly by this machine's processes."""
    max_train_minutes: float | None = None
    """Stop cleanly, with a checkpoint, after this wall-clock time in minutes. None: no limit."""
    checkpointing_steps: int = 500
    """Optimiser steps between checkpoints."""
    checkpoints_total_limit: int | None = 2
    """Checkpoints that are kept, newest first. None: all."""
    resume_from_checkpoint: str | None = "latest"
    """"latest" continues the newest checkpoint of output_dir, if there is one; a folder continues
    that checkpoint. None or "none": start anew, which is refused if output_dir holds a run."""
    validation_steps: int = 500
    """Optimiser steps between validations."""
    validation_images: int = 256
    """Held-out images that each validation uses."""
    logging_steps: int = 10
    """Optimiser steps between log entries."""
    report_to: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard"
    """Where the curves are logged."""
    tracker_project_name: str = "mtl_diffusion"
    """Project that the run is filed under by the tracker."""
    push_to_hub: bool = False
    """Publish the exported pipeline on the Hub after training."""
    hub_model_id: str | None = None
    """Repository on the Hub, as user/name. None: the name of output_dir, under your account."""
    hub_private_repo: bool = False
    """Make the repository private when it is created."""
    dry_run: bool = False
    """Check the configuration, print it in full, and stop."""

    def __post_init__(self):
        # One spelling inside the program; "none" is what people type on a command line.
        if self.resume_from_checkpoint == "none":
            object.__setattr__(self, "resume_from_checkpoint", None)


# dataclass collects fields from the last base to the first, hence this order.
@dataclass(frozen=True)
class TrainConfig(RunConfig, OptimisationConfig, NoiseConfig, TaskConfig, ModelConfig, DataConfig):
    """All settings of a run, side by side."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of a batch of each task that takes part; they sum to 1."""
        total = sum(self.tasks.values())
        return {name: part / total for name, part in self.tasks.items() if part > 0}

    @property
    def warmup_steps(self) -> int:
        """The learning rate's warm-up, in optimiser steps."""
        share = self.lr_warmup_steps < 1
        return round(self.lr_warmup_steps * (self.max_train_steps if share else 1))

    def faults(self, known_tasks: Collection[str], unreadable: Iterable[str] = ()) -> list[str]:
        """What is out of range or contradictory, a line each; empty if nothing is.

        Nothing is said of the fields in `unreadable`, nor of what depends on them, and a field
        that is wrong by itself is not compared with others: one mistake, one line.
        """
        lines, wrong = [], set(unreadable)
        for check in (_value_faults, _model_faults, _task_faults, _run_faults):
            found = [fault for fault in check(self, known_tasks, wrong) if fault[0] not in wrong]
            lines += [f"{name}: found {_show(getattr(self, name))}; {what}" for name, what in found]
            wrong |= {name for name, _ in found}
        return lines


_TYPES = get_type_hints(TrainConfig)
_LISTS = {name for name, kind in _TYPES.items() if kind == list[int]}
_MAPPINGS = {name for name, kind in _TYPES.items() if dict[str, float] in (kind, *get_args(kind))}
_PARTS = (DataConfig, ModelConfig, TaskConfig, NoiseConfig, OptimisationConfig, RunConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The fields as JSON and YAML can hold them, in the order of `--help`."""
    values = asdict(config)
    return {f.name: values[f.name] for part in _PARTS for f in fields(part)}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undo `to_dict`. Absent fields get their defaults; unknown or mistyped ones are refused."""
    parser = _parser()
    if faults := [fault for item in values.items() if (fault := _item_fault(parser, *item))]:
        raise ConfigError(faults)
    return _build(parser.parse_object(dict(values)))


def resolved(config: TrainConfig) -> str:
    """The whole configuration as YAML; `--config` reads it back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[str]:
    """Compare two `to_dict`s, a checkpoint's and this run's: a line per field that differs.

    Fields in `allowed` may differ.
    """
    absent = "nothing"
    lines = []
    for name in [*new, *(name for name in old if name not in new)]:
        before = _show(old[name]) if name in old else absent
        now = _show(new[name]) if name in new else absent
        if before != now and name not in allowed:
            lines.append(f"{name}: the checkpoint has {before}, this run has {now}")
    return lines


def known_tasks() -> list[str]:
    """Names of the tasks that can be trained."""
    # Imported here: tasks are torch code, which --help must not wait for.
    from mtl_diffusion.hub.pipeline import TASKS

    return list(TASKS)


# --- what a readable value may be ---------------------------------------------------------------

_RANGES = (
    ("resolution", lambda v: v >= 8, "8 or more"),
    ("strength_levels", lambda v: v >= 2, "2 or more, one for each end"),
    (
        "block_out_channels attention_resolutions layers_per_block num_attention_heads"
        " norm_num_groups token_dim max_train_steps total_batch_size per_device_batch_size"
        " num_threads checkpointing_steps checkpoints_total_limit validation_steps"
        " validation_images logging_steps",
        lambda v: v >= 1,
        "1 or more",
    ),
    (
        "reserved_tokens lr_warmup_steps adam_weight_decay seed",
        lambda v: v >= 0,
        "0 or more",
    ),
    (
        "sigma_std sigma_data sigma_min sigma_max learning_rate adam_epsilon max_grad_norm"
        " max_train_minutes",
        lambda v: v > 0,
        "above 0",
    ),
    ("dropout adam_beta1 adam_beta2", lambda v: 0 <= v < 1, "0 or more, and below 1"),
    ("class_dropout task_dropout", lambda v: 0 <= v <= 1, "0 to 1"),
    ("ema_half_life ema_ramp", lambda v: 0 < v <= 1, "above 0, and at most 1"),
    ("tasks task_weights", lambda v: v == 0 or 1e-6 <= v <= 1e6, "0, or 1e-6 to 1e6"),
    ("sigma_mean", lambda v: True, "any number"),
)
_ALLOWED = {name: rule for names, *rule in _RANGES for name in names.split()}
# The Hub's own rule for repositories.
_REPO_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.A)

Faults = Iterator[tuple[str, str]]  # (field, what is allowed or what to do)


def _value_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Each value by itself."""
    for name in _TYPES:
        value = getattr(config, name)
        if value == "" or (name == "block_out_channels" and value == []):
            yield name, "must not be empty"
        if name not in _ALLOWED or value is None:
            continue
        allowed, words = _ALLOWED[name]
        if isinstance(value, dict):
            numbers, words = value.values(), f"{words}, every number"
        elif isinstance(value, list):
            numbers, words = value, f"{words}, every number"
        else:
            numbers = [value]
        if not all(abs(number) < math.inf and allowed(number) for number in numbers):
            yield name, f"must be finite, and {words}"


def _model_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """The shapes of the UNet, and which of its weights are trained."""
    for name in ("norm_num_groups", "num_attention_heads"):
        divisor = getattr(config, name)
        if wrong.isdisjoint({"block_out_channels", name}):
            odd = [c for c in config.block_out_channels if c % divisor]
            if odd:
                yield name, f"must divide block_out_channels, and does not divide {_list(odd)}"
    if wrong.isdisjoint({"block_out_channels", "resolution"}):
        levels = len(config.block_out_channels)
        step = 2 ** (levels - 1)
        if config.resolution % step:
            what = f"must be a multiple of {step}: block_out_channels has {levels} levels"
            yield "resolution", what
        elif "attention_resolutions" not in wrong:
            sizes = [config.resolution // 2**level for level in range(levels)]
            if odd := [size for size in config.attention_resolutions if size not in sizes]:
                what = f"there is no feature map of side {_list(odd)}, only of {_list(sizes)}"
                yield "attention_resolutions", what
    if config.pretrained_model_name_or_path is None and (
        "pretrained_model_name_or_path" not in wrong
    ):
        if config.train_only != "all":
            yield "train_only", "must be all, or set pretrained_model_name_or_path to start from"
        if config.revision is not None:
            yield "revision", "must be null, or set pretrained_model_name_or_path, which it is of"


def _task_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Which tasks, how often, how heavy."""
    if "tasks" in wrong:
        return
    unknown = [str(name) for name in config.tasks if name not in known_tasks]
    if unknown:
        hints = "".join(_hint(name, known_tasks) for name in unknown)
        yield "tasks", f"no task is called {_list(unknown)}{hints}; there are {_list(known_tasks)}"
        return
    if not any(config.tasks.values()):
        yield "tasks", f"must have at least one task above 0; there are {_list(known_tasks)}"
        return
    rarest = min(config.shares, key=config.shares.__getitem__)
    smallest = math.ceil(1 / config.shares[rarest] - 1e-9)
    if "total_batch_size" not in wrong and config.total_batch_size < smallest:
        what = f"gives {rarest} less than one sample; use {smallest} or more, or change tasks"
        yield "total_batch_size", what

    weights = config.task_weights
    if not wrong.isdisjoint({"task_weights", "task_weighting"}):
        return
    if config.task_weighting != "fixed":
        if weights is not None:
            yield "task_weights", "must be null, or set task_weighting to fixed"
    elif weights is None:
        needed = _list(config.shares)
        yield "task_weights", f"must have a weight for each of {needed}: task_weighting is fixed"
    elif not config.shares.keys() <= weights.keys() <= config.tasks.keys():
        yield "task_weights", f"must have a weight for each of {_list(config.shares)}, and no other"
    elif not any(weights[name] for name in config.shares):
        yield "task_weights", "must have at least one weight above 0"


def _run_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Pairs of fields that cannot both be right, and the name on the Hub."""
    if wrong.isdisjoint({"sigma_min", "sigma_max"}) and config.sigma_min >= config.sigma_max:
        yield "sigma_min", f"must be below sigma_max, which is {_show(config.sigma_max)}"
    if wrong.isdisjoint({"per_device_batch_size", "total_batch_size"}) and (
        (config.per_device_batch_size or 1) > config.total_batch_size
    ):
        limit = config.total_batch_size
        yield "per_device_batch_size", f"must be at most total_batch_size, which is {limit}"
    if "lr_warmup_steps" not in wrong and config.lr_warmup_steps >= 1:
        if config.lr_warmup_steps % 1:
            yield "lr_warmup_steps", "must be whole steps, or a share of the run below 1"
        elif "max_train_steps" not in wrong and config.lr_warmup_steps > config.max_train_steps:
            yield "lr_warmup_steps", f"must be at most max_train_steps, {config.max_train_steps}"
    if config.hub_model_id is not None:
        user, _, name = config.hub_model_id.partition("/")
        if not (_REPO_NAME.fullmatch(user) and _REPO_NAME.fullmatch(name)):
            yield "hub_model_id", "must be user/name, of letters, digits, '-', '_' and '.'"
    elif (
        config.push_to_hub
        and "hub_model_id" not in wrong
        and not _REPO_NAME.fullmatch(Path(config.output_dir).name)
    ):
        yield "output_dir", "must end in a name that the Hub accepts, or set hub_model_id"


# --- reading ------------------------------------------------------------------------------------


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
        flag = f"--{name}={value}"
        if fault := _flag_fault(parser, name, value, flag):
            faults.append(fault)
            unreadable.add(_field(name))
        else:
            flags.append(flag)

    config = _build(parser.parse_args(flags, namespace=parser.parse_object(values)))
    faults += config.faults(known_tasks(), unreadable)
    if faults:
        raise ConfigError(faults)
    return config


@cache
def _parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("strict_yaml", _load_strictly, exceptions=(yaml.YAMLError,))
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
    for part in _PARTS:
        parser.add_class_arguments(part, as_group=True)
    return parser


def _build(namespace: Namespace) -> TrainConfig:
    return TrainConfig(**{name: namespace[name] for name in _TYPES})


class _Loader(yaml.SafeLoader):
    """PyYAML with YAML 1.2's words and numbers: `no` is a word, 2e-3 a number, no dates.

    Keys that are given twice are noted; PyYAML drops the first in silence.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.duplicates += [key for key, count in Counter(keys).items() if count > 1]
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0].removeprefix(_TAG) in ("int", "null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def _load(text: str) -> tuple[Any, list[str]]:
    """One YAML document, and the keys that it gives twice."""
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


def _load_strictly(text: str) -> Any:
    value, duplicates = _load(text)
    if duplicates:
        raise yaml.YAMLError(f"given twice: {_list(duplicates)}")
    return value


def _read(path: str, faults: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file; what is wrong with it goes to `faults`."""
    try:
        values, duplicates = _load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        faults.append(f"--config: found {_show(path)}; must be a readable YAML file ({reason})")
        return {}
    if not isinstance(values, dict):
        faults.append(f"--config: found {_show(path)}; must hold lines such as seed: 1")
        return {}
    faults += [f"{key} ({path}): found more than once; keep one" for key in duplicates]
    return values


def _pairs(argv: Sequence[str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """The command line as (name, value); what fits no pair goes to `faults`."""
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        flag, given, value = word.partition("=")
        name = flag.removeprefix("--")
        if flag == name:
            what = "must be --name value; a list is one value, '[32, 64]'"
            faults.append(f"command line: found {_show(word)}; {what}")
            continue
        if not given:
            # jsonargparse wants a value after every flag; ours may leave out `true`.
            if rest and not rest[0].startswith("--"):
                value = rest.popleft()
            elif _TYPES.get(name) is bool:
                value = "true"
            elif name == "config" or _field(name) in _TYPES:
                faults.append(f"{flag}: found no value; write {flag} VALUE")
                continue
        yield name, value


def _field(name: str) -> str:
    """The field that a flag sets: `tasks.edit` sets an entry of `tasks`, `list+` appends."""
    base, _, entry = name.partition(".")
    if base in _MAPPINGS and entry and "." not in entry:
        return base
    return name.removesuffix("+") if name.removesuffix("+") in _LISTS else name


def _flag_fault(parser: ArgumentParser, name: str, value: str, flag: str) -> str | None:
    if _field(name) not in _TYPES:
        return f"--{name}: unknown flag{_hint(name, _TYPES, '--')}"
    try:
        read = parser.parse_args([flag], defaults=False)[_field(name)]
    except (ArgumentError, OverflowError):
        kind = float if "." in name else _TYPES[_field(name)]
        return f"--{name}: found {_show(value)}; must be {_expected(kind)}"
    return _null_fault(f"--{name}", _field(name), read)


def _item_fault(parser: ArgumentParser, name: Any, value: Any, where: str = "") -> str | None:
    if name not in _TYPES:
        return f"{name}{where}: unknown field{_hint(str(name), _TYPES)}"
    try:
        read = parser.parse_object({name: value}, defaults=False)[name]
    except (ArgumentError, OverflowError):
        return f"{name}{where}: found {_show(value)}; must be {_expected(_TYPES[name])}"
    return _null_fault(f"{name}{where}", name, read)


def _null_fault(label: str, name: str, value: Any) -> str | None:
    # jsonargparse lets null pass for any type.
    if value is None and NoneType not in get_args(_TYPES[name]):
        return f"{label}: found null; must be {_expected(_TYPES[name])}"
    return None


# --- words --------------------------------------------------------------------------------------

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
        return f"one of {_list(get_args(kind))}"
    return _WORDS[kind] if kind in _WORDS else " or ".join(map(_expected, get_args(kind)))


def _hint(name: str, names: Iterable[str], prefix: str = "") -> str:
    near = get_close_matches(name, list(names), n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
