"""How much is measured, and at which settings of the sampler. Nothing here imports torch.

A field is documented once, under it; that text is its `--help`.
"""

import argparse
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from ..tools import flags


@dataclass(frozen=True)
class Settings:
    """What is measured"""

    num_images: int = 10_000
    """Samples of generate at each of its settings."""
    reference_images: int | None = None
    """Images of each split that distances are taken to. None: all."""
    num_inference_steps: int | None = None
    """Steps of every task, except in step_counts. None: the model's own."""
    step_counts: list[int] = field(default_factory=lambda: [5, 7, 9, 12, 18, 35])
    """Step counts of the curve of quality against evaluations. A model of few steps has its own."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest noise level of guidance for one more sampling, beside that at the model's
    own. None: no such sampling."""
    inpaint_images: int = 1_000
    """Held-out images that are completed, for each kind of mask; 2 or more."""
    inpaint_seeds: int = 9
    """Completions of each of them, for their diversity and their mean; nine take as many
    evaluations as one of RePaint's."""
    edit_images: int = 20
    """Held-out images of each class that are edited into each class."""
    num_strengths: int = 10
    """Strengths of edits and of their baselines, evenly spaced up to 1. Likeness at equal class
    found is interpolated between them."""
    strengths: list[float] = field(default_factory=list)
    """Further strengths, 0 to 1: measured too, without any influence on the comparison."""
    edit_guidance_scales: list[float] = field(default_factory=list)
    """Class guidance of edits besides the model's own; 1 is off."""
    baseline_guidance_scales: list[float] = field(default_factory=lambda: [3.0, 7.0])
    """Class guidance of the methods that edit by the generate task alone. Each is measured at all
    of these, and compared at the one that serves it best."""
    likelihood_images: int = 512
    """Held-out images whose bits per dimension are measured."""
    likelihood_steps: int = 48
    """Steps of the solver that measures them."""
    baselines: bool = True
    """Also inpaint and edit by methods that need the generate task alone."""
    batch_size: int = 250
    """Images at a time; part of the key of the samples."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the network. bfloat16 is faster on most GPUs, and on CPUs that have AMX or
    AVX512_BF16."""
    compile: bool = False
    """Compile the network (torch.compile): a minute of waiting, then a third faster or more."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self):
        least = {"num_images": 10, "inpaint_images": 2, "seed": 0, "strengths": 0}
        least |= dict.fromkeys(("edit_guidance_scales", "baseline_guidance_scales"), 0)
        least |= {"guidance_interval": 0}
        for name, value in vars(self).items():
            given, low = value if isinstance(value, list | tuple) else [value], least.get(name, 1)
            if any(type(v) in (int, float) and not v >= low for v in given):
                raise ValueError(f"{name} is {value}; it must be {low} or more")
            if not given and name not in ("strengths", "edit_guidance_scales"):
                raise ValueError(f"{name} is empty; give a number or more")
        interval = self.guidance_interval
        if interval is not None and not interval[0] <= interval[1] < math.inf:
            raise ValueError(
                f"guidance_interval is {self.guidance_interval}; it must be two finite numbers, "
                "the lower one first"
            )
        if any(strength > 1 for strength in self.strengths):
            raise ValueError(f"strengths are {self.strengths}; they must be 0 to 1")


PRESETS = {
    # Two cores do it in minutes.
    "smoke": Settings(
        num_images=100,
        reference_images=1_000,
        step_counts=[6, 18],
        inpaint_images=20,
        inpaint_seeds=2,
        edit_images=1,
        num_strengths=5,
        likelihood_images=20,
        likelihood_steps=16,
        batch_size=50,
    ),
    "standard": Settings(),
    "full": Settings(
        num_images=50_000,
        inpaint_images=5_000,
        edit_images=100,
        likelihood_images=5_000,
        batch_size=500,
    ),
}


def read_flags(description: str) -> tuple[Any, Settings]:
    """The flags of `mtl-diffusion evaluate`, and the settings among them."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = flags.parser(description, ArgumentParser, print_config=None)
    add = parser.add_argument
    flags.add(parser, "pipeline", "revision")
    home = os.path.expanduser
    trained = "output_dir of mtl-diffusion train_classifier"
    add("--classifier", required=True, type=home, help=trained)
    add(
        "--feature_space",
        type=home,
        help='where distances are taken: "inception", an image model of transformers such as '
        "facebook/dinov2-base, or a folder of train_classifier; default: --classifier",
    )
    flags.add(parser, "dataset_name", "dataset_config_name", dataset_name={"default": "shapes"})
    flags.add(parser, "train_split", "validation_split", "image_column", "label_column")
    add("--parts", nargs="+", help="generate, likelihood, inpaint, edit; default: all that apply")
    beside = "metrics.json of other models, whose curves of quality are drawn in the same plot"
    add("--beside", nargs="+", type=Path, default=[], help=beside)
    add("--at_least", type=float, help="fail if a task's class accuracy is below this share")
    add("--preset", choices=sorted(PRESETS), default="standard", help="defaults of the flags below")
    flags.add(parser, "output_dir", "device")
    parser.add_class_arguments(Settings, as_group=True)
    # The preset sets the defaults of the flags, so it is read before them.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="standard")
    preset = early.parse_known_args()[0].preset
    if preset in PRESETS:  # else the parser itself refuses it
        parser.set_defaults(vars(PRESETS[preset]))
    args = parser.parse_args()
    with flags.refusals():
        return args, Settings(**{f.name: args[f.name] for f in fields(Settings)})
