"""The pipeline behaves as diffusers' own do: callbacks and offloading."""

import diffusers
import numpy as np
import pytest
import torch
from drawing import MASK, STEPS, sample
from packaging.version import Version

from mtl_diffusion.pipeline.pipeline import TASKS

every_task = pytest.mark.parametrize("task", TASKS)


@every_task
def test_a_callback_sees_each_step_and_may_change_the_latents(pipe, task):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), list(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    images = sample(pipe, task, callback_on_step_end=callback)
    timesteps = [timestep for _, timestep, _ in seen]
    assert [step for step, *_ in seen] == list(range(STEPS)) == list(range(pipe.num_timesteps))
    assert timesteps == sorted(timesteps, reverse=True)
    assert all(names == ["latents"] for *_, names in seen)
    masked = task in ("inpaint", "edit")
    assert (images[0, :, MASK if masked else np.ones_like(MASK)] == 0.5).all()


@pytest.mark.parametrize(
    "offload",
    [
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        pytest.param(
            lambda pipe: pipe.unet.enable_group_offload(
                onload_device=torch.device("cpu"), offload_type="leaf_level"
            ),
            marks=pytest.mark.skipif(
                Version(diffusers.__version__) < Version("0.42"), reason="needs a GPU there"
            ),
        ),
    ],
    ids=["model", "group"],
)
@every_task
def test_offloading(mine, offload, task):
    """Without a GPU there is nowhere to load to: the hooks run, and change nothing."""
    before = sample(mine, task)
    offload(mine)
    assert mine._execution_device.type == "cpu"
    for _ in range(2):
        assert torch.equal(sample(mine, task), before)
