"""How much is measured, and at which settings of the sampler. Nothing here imports torch.

A field is documented once, under it; that text is its `--help`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

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
    edit_images: Count = 2_000
    """Held-out images that are edited, spread over all ordered pairs of classes."""
    num_strengths: Count = 10
    """Strengths of edits, evenly spaced up to 1. Likeness at equal class found is interpolated
    between them."""
    baselines: bool = True
    """Also inpaint and edit by other methods with the same weights."""
    baseline_guidance_scale: Annotated[FiniteFloat, Field(ge=0)] = 8.0
    """Class guidance of the other methods of editing; 1 is off."""
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
    # Six minutes for a model of 8 million parameters at 32 pixels on two cores: 14,000 images pass
    # through the network, of which two cores evaluate 45 a second. The rest is decoding.
    "smoke": Settings(
        num_images=100,
        reference_images=1_000,
        step_counts=[6],
        inpaint_images=10,
        edit_images=25,
        num_strengths=5,
        baselines=False,
        batch_size=50,
    ),
    "standard": Settings(),
}


def among(arguments: Mapping[str, Any], others: Settings) -> Settings:
    """The settings that are among some arguments, and the others.

    Raises:
        ValueError: an argument is not allowed.
    """
    given = {name: value for name, value in arguments.items() if name in Settings.model_fields}
    try:
        return Settings(**{**vars(others), **given})
    except ValidationError as error:
        faults = (f"{e['loc'][0]} is {e['input']!r}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(faults)) from error
