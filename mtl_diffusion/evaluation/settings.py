"""How much is measured, and at which settings of the sampler. Nothing here imports torch.

A field is documented once, under it; that text is its `--help`.
"""

import argparse
import json
import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..tools import flags

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_images: Annotated[int, Field(ge=10)] = 10_000
    """Samples of generate at each of its settings, 10 or more."""
    reference_images: Count | None = None
    """Images of each split that distances are taken to. null: all."""
    num_inference_steps: Count | None = None
    """Steps of every task, except in step_counts. null: the model's default."""
    step_counts: Annotated[list[Count], Field(min_length=1)] = [5, 7, 9, 12, 18, 35]
    """Step counts of the curve of quality against evaluations. A model of few steps has its own."""
    inpaint_images: Annotated[int, Field(ge=2)] = 1_000
    """Held-out images that are completed, for each kind of mask, 2 or more."""
    inpaint_seeds: Count = 9
    """Completions of each of them, for their diversity and their mean."""
    edit_images: Count = 2_000
    """Held-out images that are edited, spread over all ordered pairs of classes."""
    num_strengths: Count = 10
    """Strengths of edits, evenly spaced up to 1. Likeness at equal class found is interpolated
    between them."""
    baselines: bool = True
    """Also inpaint and edit by other methods with the same weights."""
    baseline_guidance_scale: Annotated[FiniteFloat, Field(ge=0)] = 8.0
    """Class guidance of the other methods of editing; 1 is off."""
    likelihood_images: Count = 512
    """Held-out images whose bits per dimension are measured."""
    likelihood_steps: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Steps of the solver that measures them, a multiple of 4."""
    batch_size: Count = 250
    """Images at a time. With another one, nothing that was drawn before is used again."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the network. bfloat16 is faster on most GPUs, and on CPUs that have AMX or
    AVX512_BF16."""
    compile: bool = False
    """Compile the network (torch.compile): a minute of waiting, then a third faster or more."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""


PRESETS = {
    # Ten minutes for a model of 8 million parameters at 32 pixels on two cores: 20,000 images pass
    # through the network, of which two cores evaluate 45 a second.
    "smoke": Settings(
        num_images=100,
        reference_images=1_000,
        step_counts=[6],
        inpaint_images=10,
        inpaint_seeds=2,
        edit_images=25,
        num_strengths=5,
        baselines=False,
        likelihood_images=10,
        likelihood_steps=16,
        batch_size=50,
    ),
    "standard": Settings(),
    "full": Settings(
        num_images=50_000,
        inpaint_images=5_000,
        edit_images=10_000,
        likelihood_images=5_000,
        batch_size=500,
    ),
}


def read_flags(description: str) -> tuple[Any, Settings]:
    """The flags of `mtl-diffusion evaluate`, and the settings among them."""
    parser = flags.parser(description)
    add, home = parser.add_argument, os.path.expanduser
    flags.add(parser, "pipeline", "revision")
    trained = "output_dir of mtl-diffusion train_classifier"
    add("--classifier", required=True, type=home, help=trained)
    space = (
        'where distances are taken: "inception", an image model of transformers such as '
        "facebook/dinov2-base, or a folder of train_classifier; default: --classifier"
    )
    add("--feature_space", type=home, help=space)
    flags.add(parser, "dataset_name", "dataset_config_name", dataset_name={"default": "shapes"})
    flags.add(parser, "train_split", "validation_split", "image_column", "label_column")
    add("--parts", nargs="+", help="generate, likelihood, inpaint, edit; default: all that apply")
    add("--at_least", type=float, help="fail if a task's class accuracy is below this share")
    add("--preset", choices=list(PRESETS), default="standard", help="how much is measured")
    flags.add(parser, "output_dir", "device")
    group = parser.add_argument_group("In place of the preset's, whose standard is in brackets")
    for name, field in Settings.model_fields.items():
        text = f"{field.description} ({json.dumps(field.default)})".replace("%", "%%")
        group.add_argument(f"--{name}", type=_value, default=argparse.SUPPRESS, help=text)
    args = parser.parse_args()
    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    try:
        return args, Settings(**{**vars(PRESETS[args.preset]), **given})
    except ValidationError as error:
        faults = error.errors()
        parser.error("; ".join(f"{e['loc'][0]} is {e['input']!r}: {e['msg']}" for e in faults))


def _value(text: str) -> Any:
    """A value as JSON has it, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
