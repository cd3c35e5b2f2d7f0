"""The pipeline behaves as diffusers' own do: bars, helpers, devices, precisions, callbacks."""

import copy

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from packaging.version import Version

from mtl_diffusion import MultiTaskPipeline

SIZE, STEPS = 8, 3
CALLS = {
    "generate": {"class_label": "cat"},
    "inpaint": {
        "image": torch.linspace(0, 1, 192).view(3, SIZE, SIZE),
        "mask_image": torch.eye(SIZE),
    },
    "edit": {"image": torch.linspace(0, 1, 192).view(3, SIZE, SIZE), "class_label": "dog"},
}
every_task = pytest.mark.parametrize("task", CALLS)


def draw(pipe, task="generate", **options):
    return pipe(
        task=task,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        output_type="pt",
        **CALLS[task],
        **options,
    ).images


@pytest.fixture
def mine(pipe):
    """A pipeline that may be changed."""
    return copy.deepcopy(pipe)


def test_the_progress_bar_counts_the_steps(mine, capsys):
    mine.set_progress_bar_config(disable=False, ascii=True, desc="Painting")
    draw(mine)
    shown = capsys.readouterr().err
    assert "Painting" in shown and f"{STEPS}/{STEPS}" in shown
    mine.set_progress_bar_config(disable=True)
    draw(mine)
    assert capsys.readouterr().err == ""


@every_task
def test_a_callback_sees_each_step_and_may_change_the_latents(pipe, task):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), list(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    images = draw(pipe, task, callback_on_step_end=callback)
    timesteps = [timestep for _, timestep, _ in seen]
    assert [step for step, *_ in seen] == list(range(STEPS)) == list(range(pipe.num_timesteps))
    assert timesteps == sorted(timesteps, reverse=True)
    assert all(names == ["latents"] for *_, names in seen)
    painted = torch.eye(SIZE).bool() if task == "inpaint" else torch.ones(SIZE, SIZE).bool()
    assert (images[0, :, painted] == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_a_precision_and_back(mine, dtype):
    before = draw(mine)
    assert mine.to(dtype) is mine
    assert mine.dtype == mine.unet.dtype == dtype
    assert draw(mine).dtype == torch.float32
    mine.to(torch.float32)
    assert mine.dtype == torch.float32
    assert (draw(mine) - before).abs().mean() < 0.1


def test_to_a_device(mine):
    assert mine.to("cpu").device.type == "cpu"
    assert mine.to("meta").unet.device.type == "meta"


def test_what_is_offloaded_and_in_which_order():
    assert MultiTaskPipeline.model_cpu_offload_seq == "unet"


@pytest.mark.parametrize(
    "enable, disable",
    [
        ("enable_attention_slicing", "disable_attention_slicing"),
        ("enable_freeu", "disable_freeu"),
        ("fuse_qkv_projections", "unfuse_qkv_projections"),
        (
            "enable_xformers_memory_efficient_attention",
            "disable_xformers_memory_efficient_attention",
        ),
        ("enable_vae_slicing", "disable_vae_slicing"),
        ("enable_vae_tiling", "disable_vae_tiling"),
    ],
)
def test_helpers_are_those_of_diffusers(mine, enable, disable):
    """Those of every pipeline are here; those of pipelines with a VAE or with Stable Diffusion's
    UNet are not, as in diffusers."""
    assert hasattr(mine, enable) == hasattr(DiffusionPipeline, enable)
    if enable == "enable_attention_slicing":
        before = draw(mine)
        mine.enable_attention_slicing(1)
        torch.testing.assert_close(draw(mine), before, atol=1e-4, rtol=1e-3)
        mine.disable_attention_slicing()
        torch.testing.assert_close(draw(mine), before, atol=1e-4, rtol=1e-3)


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
    before = draw(mine, task)
    offload(mine)
    assert mine._execution_device.type == "cpu"
    for _ in range(2):
        assert torch.equal(draw(mine, task), before)


def test_layerwise_casting(mine):
    mine.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    assert draw(mine).isfinite().all()


def test_channels_last(mine):
    before = draw(mine)
    mine.unet.to(memory_format=torch.channels_last)
    torch.testing.assert_close(draw(mine), before, atol=1e-4, rtol=1e-3)


def test_components_make_another_pipeline_of_the_same_parts(pipe):
    assert set(pipe.components) == {"unet", "tokenizer", "scheduler"}
    again = MultiTaskPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipe))
