"""The files that an image passes through, as docs/design.md lists them, really run."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import RUN, own_state, write_shapes
from traced import files_called

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.loop import train_step
from mtl_diffusion.training.meter import Meter
from mtl_diffusion.training.run import build

DESIGN = Path(__file__).parents[1] / "docs/design.md"


def listed(heading: str) -> list[str]:
    """The files of the numbered list under a heading."""
    section = (
        DESIGN.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    )
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.M)


class Arrived(Exception):
    """The optimiser has taken its step."""


def test_an_image_on_its_way_to_the_optimiser(tmp_path):
    config = TrainConfig(**RUN, dataset_name=write_shapes(tmp_path, 30, 10), tasks={"edit": 1})

    def stop(*_):
        raise Arrived

    with own_state():
        run = build(config, Accelerator(cpu=True))
        meter = Meter(run)
        train_step(run, 0, meter)  # what is cached afterwards is not called again
        hook = run.optimizer.register_step_post_hook(stop)

        def step():
            with pytest.raises(Arrived):
                train_step(run, 1, meter)

        found = files_called(step)
        hook.remove()
    found = {name for name in found if not name.startswith("config/")}
    named = listed("One image through training")
    assert sorted(found) == sorted(named) and len(named) <= 14


def test_a_call_of_edit(pipe):
    image = torch.rand(3, 8, 8)

    def call():
        pipe(task="edit", image=image, class_label="dog", num_inference_steps=2)

    call()
    named = listed("One image out of the pipeline")
    assert sorted(files_called(call)) == sorted(named) and len(named) <= 10
