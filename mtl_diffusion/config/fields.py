"""The settings of a run: typed fields.

A field is documented once, under it; that text is its `--help`. Its type has its range, which
pydantic checks; what it must have in common with other fields is in `limits.py`.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def _rising(pair: list[float]) -> list[float]:
    if pair[0] >= pair[1]:
        raise PydanticCustomError("rising", "must be the lower number first")
    return pair


Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# A command line has "none", the program None.
Start = Annotated[PathText | None, AfterValidator(lambda v: None if v == "none" else v)]
# Upper limits that no useful value reaches, and that do not exhaust the memory.
PositiveInt = Annotated[int, Field(ge=1, le=10**12)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**12)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(ge=0, le=1e6)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Widths = Annotated[list[Width], Field(min_length=1)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
Side = Annotated[int, Field(ge=8, le=4096)]
Size = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
Mode = Literal["L", "RGB", "RGBA"] | Annotated[int, Field(ge=1, le=256)]
Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Bands = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. `written` has the names of those that a file or a flag gave."""

    # --- Data

    dataset_name: PathText = "shapes"
    """"shapes" (drawn by this package, no download), a dataset's name on the Hub, or a local
    folder: of images, of folders of images per class, or of parquet and other tables."""
    dataset_config_name: Text | None = None
    """Configuration of the dataset. None: its only or default one."""
    train_split: Text = "train"
    """Split that is trained on; slices such as train[:90%] work."""
    validation_split: Text = "test"
    """Held-out split, for validation and evaluation; slices such as train[90%:] work. Of a dataset
    with no other split than train_split, test is a tenth of it, which is not trained on."""
    image_column: Text | None = None
    """Column with the images. None: the only column of images."""
    label_column: Text | None = None
    """Column with the class labels. None: the only column of class labels; without one, and with
    "none", there are no classes."""
    mask_column: Text | None = None
    """Column with a mask of each image, white in a region of interest. Then inpaint learns holes
    of these shapes, too. None: no masks."""
    condition_columns: dict[Name, Text] | None = None
    """Tasks that make an image of one of another kind: the name of each, and the column of what it
    is made of, such as {from_mask: mask}. They get their shares in tasks. None: no such task."""
    dataset_holes: Fraction = 0.5
    """Share of the samples of inpaint, 0 to 1, whose hole is a mask of mask_column: that of the
    image, or as often that of another one."""
    resolution: Size = 16
    """Side of the square images, in pixels, or [height, width]; each level of the UNet but the
    last halves them."""
    image_fit: Literal["crop", "pad", "stretch"] = "crop"
    """How images of another shape come to that of resolution: cut to their middle, with padding
    that is masked out of the loss, or stretched."""
    image_mode: Mode = "RGB"
    """L (grey), RGB, RGBA, or the number of bands of arrays: an array column, .npy, or TIFF."""
    image_dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    """How the numbers of the images are stored; 16 bits and floats are kept as they are."""
    value_range: Range | None = None
    """Numbers of black and white, such as [0, 4095] for 12 bits. None: all that integers have;
    float32 needs it."""
    shown_bands: Bands | None = None
    """Bands that pictures show as red, green and blue, counted from 0. None: the first three."""
    random_flip: bool = True
    """Mirror half of the training images left to right."""
    augmentation: Fraction = 0.0
    """Probability, 0 to 1, of each change of a training image: mirroring, scaling, rotation, shift.
    The network is conditioned on the amounts, which are zero in sampling. It works against
    memorising few images, and takes six of reserved_tokens."""
    balance_classes: bool = False
    """Draw an image of each class equally often, however many images the classes have."""
    streaming: bool = False
    """Read train_split as it is needed, from disk or from the Hub, instead of keeping all of it in
    memory. Then both splits are whole ones, without slices, and the classes have names; of
    validation_split only validation_images are kept."""
    shuffle_buffer_size: PositiveInt = 10000
    """Rows that streaming shuffles among, in each process; in memory they are not decoded yet."""

    # --- Model

    block_out_channels: Widths | None = None
    """Channels of each level of the UNet, finest first; each level halves the resolution. None:
    they follow the resolution, 8 to 256 pixels, down to feature maps of about 8."""
    layers_per_block: Annotated[int, Field(ge=1, le=100)] = 1
    """Residual layers per level."""
    attention_resolutions: list[Width] | None = None
    """Sides of the feature maps with self- and cross-attention; the middle block always has it.
    None: the last level's."""
    num_attention_heads: Width | None = None
    """Heads per attention layer; divides every entry of block_out_channels. None: 2, or 1."""
    norm_num_groups: Width | None = None
    """Groups of each group norm; divides every entry of block_out_channels. None: 8, or fewer."""
    dropout: FractionBelowOne = 0.0
    """Dropout probability inside the residual layers; 0 or more, below 1."""
    token_dim: Width = 64
    """Width of the embedding of the task, class and strength tokens."""
    strength_levels: Annotated[int, Field(ge=2, le=10_000)] = 9
    """Tokens that the strength of an edit, 0 to 1, is interpolated between; 2 or more."""
    reserved_tokens: Annotated[int, Field(ge=0, le=65_536)] = 16
    """Unused tokens, with which a task or a class can be added to a trained model."""
    pretrained_model_name_or_path: PathText | None = None
    """Exported pipeline to start from: a folder or a name on the Hub. None: random weights. Its
    network, tokens, sigma_data, sigma_min and sigma_max are kept: a field of these that is given
    another value is refused."""
    revision: Text | None = None
    """Branch, tag or commit of pretrained_model_name_or_path. None: its main branch."""
    train_only: Literal["tokens", "tokens+condition", "all"] = "all"
    """Weights of pretrained_model_name_or_path that are trained: the token table, also the input
    channels of the condition, or all."""

    # --- Tasks

    tasks: dict[str, Part] = field(
        default_factory=lambda: {"generate": 1.0, "inpaint": 1.0, "edit": 1.0}
    )
    """Part of each task among the samples of a batch; normalised. 0 leaves a task out. The
    mean losses of the tasks are added, so a proportion does not change a task's weight."""
    objective: Literal["denoising", "distillation", "matching"] = "denoising"
    """denoising: learn to denoise. distillation: learn to draw in 1, 2 or 4 steps as
    pretrained_model_name_or_path does in many, with the guidance of each task built in. matching:
    a model of few steps learns to draw images with the features of the training images."""
    teacher_steps: PositiveInt = 5
    """With distillation: steps of the teacher's solver for each step that is learned."""
    teacher_model_name_or_path: PathText | None = None
    """With distillation: exported pipeline that is learned from, a folder or a name on the Hub.
    Then pretrained_model_name_or_path may be a model of few steps, which goes on learning. None:
    pretrained_model_name_or_path."""
    teacher_guidance_interval: Range | None = None
    """With distillation: lowest and highest noise level where the teacher is guided by the class,
    such as [0, 1000] for all. Few steps learn such samples sooner, which are less diverse. None:
    those of each task."""
    edit_pairs: PositiveInt = 4096
    """With distillation: training images that the teacher edits before the first step, in many
    evaluations each; from these pairs edit is learned, as one evaluation."""
    feature_classifier: PathText | None = None
    """Folder of an image classifier, from scripts/train_classifier.py --noise 0.25. With
    distillation all tasks learn to agree with the teacher in its last features, too; None: in
    pixels alone. With matching it is needed: its features are matched."""
    task_weighting: Literal["uncertainty", "sum"] = "uncertainty"
    """How the losses of the tasks are balanced: by a learned uncertainty of each task and noise
    level, or not at all."""
    class_dropout: Fraction = 0.1
    """Share of the samples, 0 to 1, whose class token is hidden, for guidance."""
    task_dropout: Fraction = 0.1
    """Share of the samples, 0 to 1, whose task token is hidden."""
    alignment_classifier: PathText | None = None
    """Output of mtl-diffusion train_classifier. The middle features of the UNet learn to align with
    this classifier's features of the clean image, in training only. None: no alignment."""
    alignment_weight: NonNegativeFloat = 0.5
    """Weight of 1 - the cosine between the two; 0 or more."""

    # --- Noise

    sigma_mean: float = -1.2
    """Mean of ln(sigma) in training; EDM's P_mean."""
    sigma_std: PositiveFloat = 1.2
    """Standard deviation of ln(sigma) in training; EDM's P_std."""
    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the images, whose values are -1 to 1."""
    sigma_min: PositiveFloat = 0.002
    """Lowest noise level of sampling, in units of image values."""
    sigma_max: PositiveFloat = 80.0
    """Highest noise level of sampling, in units of image values."""

    # --- Optimisation

    max_train_steps: PositiveInt | None = 1200
    """Length of the run, in optimiser steps. None: as many as fit into max_train_minutes, at the
    rate that is measured when the run starts; validation and checkpoints come on top."""
    total_batch_size: BatchSize = 32
    """Samples that one optimiser step sees, over all processes."""
    per_device_batch_size: BatchSize | None = None
    """Samples that a process holds at once; the rest of its share is accumulated. None: all."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the hidden weights of the UNet, AdamW for the others. adamw: AdamW for all."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, of Muon and AdamW alike."""
    lr_warmup_steps: NonNegativeFloat = 0.04
    """Linear warm-up of the learning rate. Below 1: a share of the run; 1 or more: steps."""
    lr_scheduler: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear decay to zero.
    warmup_stable_decay is constant until lr_decay of the run is left, then linear to zero. Such a
    run can be lengthened: with more max_train_steps it goes on from where the decay began."""
    lr_decay: PositiveFraction = 0.2
    """Share of the run that the decay of warmup_stable_decay takes; above 0, at most 1."""
    adam_epsilon: PositiveFloat = 1e-8
    """Constant that AdamW adds to its denominator."""
    adam_weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, of Muon and AdamW alike."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that the gradient is clipped to. A large number, such as 1e9, never clips."""
    use_ema: bool = True
    """Keep an exponential moving average of the weights, and validate and export that."""
    ema_ramp: PositiveFraction = 0.05
    """Half-life of the average, as a share of the images seen so far; above 0, at most 1."""

    # --- Run

    output_dir: PathText = "runs/default"
    """Folder for checkpoints, logs and the exported pipeline."""
    seed: NonNegativeInt = 0
    """Seed of everything random."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the network's arithmetic; the weights stay float32. fp16 is for CUDA GPUs
    without bf16; its loss is scaled."""
    compile: bool = False
    """Compile the network; the first step waits for it."""
    compile_mode: Literal["default", "reduce-overhead"] = "default"
    """torch.compile's mode. reduce-overhead (CUDA graphs) is for models too small to fill a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    num_threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads of a process. None: OMP_NUM_THREADS, or else all cores, shared evenly by this
    machine's processes."""
    num_processes: PositiveInt | None = None
    """Processes that the run must have. None: as many as the launcher starts."""
    max_train_minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Stop cleanly, with a checkpoint, after this wall-clock time in minutes; or, where
    max_train_steps is null, the length of the run, with all schedules. None: no limit."""
    checkpointing_steps: PositiveInt = 500
    """Optimiser steps between checkpoints."""
    checkpoints_total_limit: PositiveInt | None = 2
    """Checkpoints that are kept, newest first. None: all."""
    resume_from_checkpoint: Start = "latest"
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
    gallery: bool = True
    """Draw a gallery of the exported pipeline's own samples, for its model card."""
    push_to_hub: bool = False
    """Publish the exported pipeline on the Hub after training."""
    hub_model_id: Text | None = None
    """Repository on the Hub, as user/name. None: the name of output_dir, under your account."""
    hub_private_repo: bool = False
    """Make the repository private when it is created."""
    dry_run: bool = False
    """Check the configuration, print it in full, and stop."""
    written: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @property
    def given(self) -> set[str]:
        """The fields that are written, or differ from their default."""
        return {n for n in TYPES if getattr(self, n) != getattr(_DEFAULT, n)} | self.written

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        sides = self.resolution
        return (sides[0], sides[1]) if isinstance(sides, list) else (sides, sides)

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return {"L": 1, "RGB": 3, "RGBA": 4}.get(self.image_mode, self.image_mode)

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


# The first field of each group of `--help`, and the group's title.
TITLES = {
    "dataset_name": "Data",
    "block_out_channels": "Model",
    "tasks": "Tasks",
    "sigma_mean": "Noise (the defaults are those of EDM, Karras et al. 2022, Table 1)",
    "max_train_steps": "Optimisation",
    "output_dir": "Run",
}
TYPES = {name: kind for name, kind in get_type_hints(TrainConfig).items() if name != "written"}
_DEFAULT = TrainConfig()
# Fields that a run which starts from a trained model takes from that model.
OF_MODEL = {"block_out_channels", "layers_per_block", "attention_resolutions", "dropout"}
OF_MODEL |= {"num_attention_heads", "norm_num_groups", "token_dim"}
OF_MODEL |= {"image_fit", "image_mode", "image_dtype", "value_range", "shown_bands"}
OF_MODEL |= {"strength_levels", "reserved_tokens", "sigma_data", "sigma_min", "sigma_max"}


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The nearest of the names, as a question to append; nothing if none is near."""
    near = get_close_matches(name, list(names), n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


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
