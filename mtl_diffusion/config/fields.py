"""The settings of a run: typed fields, and how they are written down and compared.

A field is documented once, under it; that text is its `--help`. Its type has the values that are
allowed (`ranges.py`); how fields depend on each other is `limits.py`, and how they are read from
YAML and flags is `command_line.py`. Nothing here imports torch, so that help is shown at once.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_type_hints

import yaml

from .ranges import (
    AnyFloat,
    BatchSize,
    Fraction,
    FractionBelowOne,
    Layers,
    Levels,
    Minutes,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Proportion,
    Threads,
    Tokens,
    Width,
)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; `faults` holds one line per mistake."""

    def __init__(self, faults: Sequence[str] | str):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{count} in the configuration:{lines}")


# --- the fields ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    """Data"""

    dataset_name: str = "shapes"
    """"shapes" (drawn by this package, no download), a dataset's name on the Hub, or a local
    folder: of images, of folders of images per class, or of parquet and other tables."""
    dataset_config_name: str | None = None
    """Configuration of the dataset. None: its only or default one."""
    train_split: str = "train"
    """Split that is trained on; slices such as train[:90%] work."""
    validation_split: str = "test"
    """Held-out split, for validation and evaluation; slices such as train[90%:] work. Of a dataset
    with no other split than train_split, test is a tenth of it, which is not trained on."""
    image_column: str | None = None
    """Column with the images. None: the only column of images."""
    label_column: str | None = None
    """Column with the class labels. None: the only column of class labels; without one, and with
    "none", there are no classes."""
    resolution: Pixels = 16
    """Side of the square images, in pixels; 8 or more, and divisible by
    2 ** (number of block_out_channels - 1)."""
    random_flip: bool = True
    """Mirror half of the training images left to right."""
    streaming: bool = False
    """Read train_split as it is needed, from disk or from the Hub, instead of keeping all of it in
    memory. Then both splits are whole ones, without slices, and the classes have names; of
    validation_split only validation_images are kept."""
    shuffle_buffer_size: PositiveInt = 10000
    """Rows that streaming shuffles among, in each process; they wait in memory as they are stored,
    undecoded."""


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    block_out_channels: list[Width] = field(default_factory=lambda: [32, 64])
    """Channels of each level of the UNet, finest first; each level halves the resolution."""
    layers_per_block: Layers = 1
    """Residual layers per level."""
    attention_resolutions: list[Width] = field(default_factory=lambda: [8])
    """Feature-map sides, in pixels, that get self- and cross-attention. The middle block always
    has it."""
    num_attention_heads: Width = 2
    """Heads per attention layer; divides every entry of block_out_channels."""
    norm_num_groups: Width = 8
    """Groups of each group norm; divides every entry of block_out_channels."""
    dropout: FractionBelowOne = 0.0
    """Dropout probability inside the residual layers; 0 or more, below 1."""
    token_dim: Width = 64
    """Width of the embedding of the task, class and strength tokens."""
    token_paths: Literal["both", "attention", "embedding"] = "both"
    """How the tokens reach the network: by cross-attention, with the time embedding, or both."""
    strength_levels: Levels = 9
    """Tokens that the strength of an edit, 0 to 1, is interpolated between; 2 or more."""
    reserved_tokens: Tokens = 16
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

    tasks: dict[str, Proportion] = field(
        default_factory=lambda: {"generate": 1.0, "inpaint": 1.0, "edit": 1.0}
    )
    """Proportion of each task among the samples of a batch; normalised. 0 leaves a task out. The
    mean losses of the tasks are added, so a proportion does not change a task's weight."""
    objective: Literal["denoising", "distillation"] = "denoising"
    """denoising: learn to denoise. distillation: learn to draw in 1, 2 or 4 steps as
    pretrained_model_name_or_path does in many, with the guidance of each task built in."""
    teacher_steps: PositiveInt = 5
    """With distillation: steps of the teacher's solver for each step that is learned."""
    teacher_model_name_or_path: str | None = None
    """With distillation: exported pipeline that is learned from, a folder or a name on the Hub.
    Then pretrained_model_name_or_path may be a model of few steps, which goes on learning. None:
    pretrained_model_name_or_path."""
    edit_pairs: PositiveInt = 4096
    """With distillation: training images that the teacher edits before the first step, in many
    evaluations each; from these pairs edit is learned, as one evaluation."""
    edit_classifier: str | None = None
    """With distillation: folder of an image classifier, from scripts/train_classifier.py
    --noise 0.25. Edits learn to agree with the teacher's in its last features, too. None: in pixels
    alone."""
    task_weighting: Literal["uncertainty", "uncertainty_per_task", "fixed", "sum"] = "uncertainty"
    """How the losses of the tasks are balanced: by a learned uncertainty of each task and noise
    level, or of each task alone, by task_weights, or not at all."""
    task_weights: dict[str, Proportion] | None = None
    """Weight of each task's loss; needed with task_weighting fixed, and only then. None: no
    weights of your own."""
    gradient_aggregation: Literal["sum", "upgrad", "mgda", "imtlg", "alignedmtl"] = "sum"
    """How the tasks' gradients become one: by adding them up, or by a method of torchjd, which
    is an extra of this package."""
    class_dropout: Fraction = 0.1
    """Share of the samples, 0 to 1, whose class token is hidden, for guidance."""
    task_dropout: Fraction = 0.1
    """Share of the samples, 0 to 1, whose task token is hidden."""
    alignment_classifier: str | None = None
    """Folder of an image classifier, from scripts/train_classifier.py. The middle features of the
    UNet learn to align with its features of the clean image. It is used in training only. None: no
    alignment."""
    alignment_weight: NonNegativeFloat = 0.5
    """Weight of 1 - the cosine between the two; 0 or more."""
    perceptual_weight: NonNegativeFloat = 0.0
    """Weight of a perceptual loss in the features of alignment_classifier, early in the run; 0 or
    more."""
    perceptual_images: NonNegativeFloat = 0.15
    """How long it lasts: at full weight for one half of this, fading out over the other. Below 1: a
    share of the run's images; 1 or more: images."""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise (the defaults are those of EDM, Karras et al. 2022, Table 1)"""

    sigma_mean: AnyFloat = -1.2
    """Mean of ln(sigma) in training; EDM's P_mean."""
    sigma_std: PositiveFloat = 1.2
    """Standard deviation of ln(sigma) in training; EDM's P_std."""
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the images, whose values are -1 to 1."""
    sigma_min: PositiveFloat = 0.002
    """Lowest noise level of sampling, in units of image values."""
    sigma_max: PositiveFloat = 80.0
    """Highest noise level of sampling, in units of image values."""


@dataclass(frozen=True)
class OptimisationConfig:
    """Optimisation"""

    max_train_steps: PositiveInt | None = 1200
    """Length of the run, in optimiser steps. None: as many as fit into max_train_minutes, at the
    rate that is measured when the run starts; validation and checkpoints come on top."""
    total_batch_size: BatchSize = 32
    """Samples that one optimiser step sees, over all processes."""
    per_device_batch_size: BatchSize | None = None
    """Most samples that a process holds at once; the rest of its share is accumulated. None: the
    whole share at once."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the hidden weights of the UNet, AdamW for the others. adamw: AdamW for all."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, of Muon and AdamW alike."""
    lr_warmup_steps: NonNegativeFloat = 0.04
    """Linear warm-up of the learning rate. Below 1: a share of the run; 1 or more: steps."""
    lr_scheduler: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear decay to zero.
    warmup_stable_decay is constant until lr_decay of the run is left, then linear to zero. Such a
    run can be lengthened: run again with more max_train_steps, it goes on from where the decay
    began."""
    lr_decay: PositiveFraction = 0.2
    """Share of the run that the decay of warmup_stable_decay takes; above 0, at most 1."""
    adam_beta1: FractionBelowOne = 0.9
    """Decay of AdamW's mean of gradients; 0 or more, below 1."""
    adam_beta2: FractionBelowOne = 0.99
    """Decay of AdamW's mean of squared gradients; 0 or more, below 1."""
    adam_epsilon: PositiveFloat = 1e-8
    """Constant that AdamW adds to its denominator."""
    adam_weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, of Muon and AdamW alike."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that the gradient is clipped to. A large number, such as 1e9, never clips."""
    use_ema: bool = True
    """Keep an exponential moving average of the weights, and validate and export that."""
    ema_half_life: PositiveFraction = 0.05
    """Half-life of the average, as a share of the run's images; above 0, at most 1."""
    ema_ramp: PositiveFraction = 0.05
    """The half-life never exceeds this share of the images seen so far; above 0, at most 1."""


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    output_dir: str = "runs/default"
    """Folder for checkpoints, logs and the exported pipeline."""
    seed: NonNegativeInt = 0
    """Seed of everything random."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the network's arithmetic; the weights stay float32."""
    compile: bool = False
    """Compile the network; the first step waits for it."""
    compile_mode: Literal["default", "reduce-overhead"] = "default"
    """torch.compile's mode. reduce-overhead replays CUDA graphs: for a model so small that a GPU
    waits for the kernels to be launched."""
    channels_last: bool = True
    """Keep images in channels-last memory order."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    num_threads: Threads | None = None
    """CPU threads of a process. None: OMP_NUM_THREADS, or else all cores, shared evenly by this
    machine's processes."""
    num_processes: PositiveInt | None = None
    """Processes that the run is meant to have; another number is refused. None: as many as the
    launcher starts."""
    max_train_minutes: Minutes | None = None
    """Stop cleanly, with a checkpoint, after this wall-clock time in minutes; or, where
    max_train_steps is null, the length of the run, with all schedules. None: no limit."""
    checkpointing_steps: PositiveInt = 500
    """Optimiser steps between checkpoints."""
    checkpoints_total_limit: PositiveInt | None = 2
    """Checkpoints that are kept, newest first. None: all."""
    resume_from_checkpoint: str | None = "latest"
    """"latest" continues the newest checkpoint of output_dir, if there is one; a folder continues
    that checkpoint. None or "none": start anew, which is refused if output_dir holds a run."""
    validation_steps: PositiveInt = 500
    """Optimiser steps between validations."""
    validation_images: PositiveInt = 256
    """Held-out images that each validation uses."""
    logging_steps: PositiveInt = 10
    """Optimiser steps between log entries."""
    report_to: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard"
    """Tracker that the curves are logged to."""
    tracker_project_name: str = "mtl_diffusion"
    """Project that the run is filed under by the tracker."""
    gallery: bool = True
    """Draw a gallery of the exported pipeline's own samples, for its model card."""
    push_to_hub: bool = False
    """Publish the exported pipeline on the Hub after training."""
    hub_strategy: Literal["end", "checkpoint"] = "end"
    """When push_to_hub publishes: at the end, or at each checkpoint too, while training goes on."""
    hub_model_id: str | None = None
    """Repository on the Hub, as user/name. None: the name of output_dir, under your account."""
    hub_private_repo: bool = False
    """Make the repository private when it is created."""
    dry_run: bool = False
    """Check the configuration, print it in full, and stop."""


# dataclass collects fields from the last base to the first, hence this order.
@dataclass(frozen=True)
class TrainConfig(RunConfig, OptimisationConfig, NoiseConfig, TaskConfig, ModelConfig, DataConfig):
    """All settings of a run, side by side."""

    def __post_init__(self):
        # A command line has "none", the program None.
        if self.resume_from_checkpoint == "none":
            object.__setattr__(self, "resume_from_checkpoint", None)
        for name in PATHS:
            path = getattr(self, name)
            if path is not None and path.startswith("~") and "\0" not in path:
                object.__setattr__(self, name, os.path.expanduser(path))

    @property
    def shares(self) -> dict[str, float]:
        """The share of a batch of each task that takes part; they sum to 1."""
        total = sum(self.tasks.values())
        return {name: part / total for name, part in self.tasks.items() if part > 0}

    @property
    def repository(self) -> str:
        """The repository on the Hub: hub_model_id, or the last part of output_dir as it is given,
        whether it is a link or not."""
        return self.hub_model_id or os.path.basename(os.path.abspath(self.output_dir))

    @property
    def warmup_steps(self) -> int:
        """The learning rate's warm-up, in optimiser steps."""
        assert self.max_train_steps is not None, "length.with_length gives it one"
        share = self.lr_warmup_steps < 1
        return round(self.lr_warmup_steps * (self.max_train_steps if share else 1))


TYPES = get_type_hints(TrainConfig)
# Fields that are, or may be, the path of a file or a folder; `~` in them is the home directory.
PATHS = (
    *("output_dir", "resume_from_checkpoint", "dataset_name", "pretrained_model_name_or_path"),
    *("alignment_classifier", "teacher_model_name_or_path", "edit_classifier"),
)
GROUPS = (DataConfig, ModelConfig, TaskConfig, NoiseConfig, OptimisationConfig, RunConfig)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The fields as JSON and YAML can hold them, in the order of `--help`."""
    values = asdict(config)
    return {f.name: values[f.name] for group in GROUPS for f in fields(group)}


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
        if name in allowed or (name in old and name in new and old[name] == new[name]):
            continue
        before = show(old[name]) if name in old else absent
        now = show(new[name]) if name in new else absent
        lines.append(f"{name}: the checkpoint has {before}, this run has {now}")
    return lines


# --- words of the messages ----------------------------------------------------------------------


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The nearest of the names, as a question to append; nothing if none is near."""
    near = get_close_matches(name, list(names), n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def show(value: Any) -> str:
    """A value as JSON has it; a long one is cut."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text):,} characters)"


def listed(values: Iterable[Any]) -> str:
    """Values with commas between them."""
    return ", ".join(map(str, values))
