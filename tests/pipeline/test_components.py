"""Components that users build, replace or change: taken or refused, and saved so that they load."""

import copy
from functools import partial

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from drawing import sample

from mtl_diffusion import MultiTaskPipeline

load = partial(DiffusionPipeline.from_pretrained, trust_remote_code=True)


def draw(pipe):
    return sample(pipe, class_label=None, num_inference_steps=2)


def check_same(pipe, other):
    torch.testing.assert_close(draw(pipe), draw(other), atol=1e-4, rtol=1e-3)


# Types


def nothing(component):
    return None


def wrapped(unet):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(unet, peft.LoraConfig(target_modules=["to_q"]))


def euler(scheduler):
    return EulerDiscreteScheduler.from_config(scheduler.config)


@pytest.mark.parametrize(
    "name, build, words",
    [
        ("unet", nothing, "unet is of the type NoneType; it must be UNet2DConditionModel"),
        ("unet", torch.nn.DataParallel, r"unet is of the type DataParallel; .* give its \.module"),
        ("unet", wrapped, r"type PeftModel; .* its \.get_base_model\(\), which keeps the"),
        ("tokenizer", nothing, "NoneType; it must be PreTrainedTokenizerBase, the one that"),
        ("scheduler", euler, "type EulerDiscreteScheduler; it must be EDMDPMSolver.* or EDMEulerS"),
    ],
)
def test_another_type_is_refused_wherever_it_is_given(mine, name, build, words):
    before = getattr(mine, name)
    other = build(before)
    with pytest.raises(ValueError, match=words):
        setattr(mine, name, other)
    assert getattr(mine, name) is before
    with pytest.raises(ValueError, match=words):
        MultiTaskPipeline(**{**mine.components, name: other})


def test_a_tokenizer_of_another_model_is_refused(mine, folder, build_pipe):
    other = build_pipe(classes=("rose", "tulip"))
    mine.tokenizer = other.tokenizer
    words, takes = other.vocabulary.size, mine.unet.config.encoder_hid_dim
    with pytest.raises(ValueError, match=f"tokenizer has {words} words and the unet takes {takes}"):
        draw(mine)
    mine.unet = other.unet
    check_same(mine, other)
    assert mine.class_names == ("rose", "tulip")
    as_many_words = build_pipe(classes=("rose", "tulip", "ivy")).tokenizer
    with pytest.raises(ValueError, match=r"tokenizer\.json is of another model"):
        MultiTaskPipeline.from_pretrained(folder, tokenizer=as_many_words)


def test_components_of_ones_own_are_taken(pipe, folder, tmp_path):
    UNet2DConditionModel.from_pretrained(folder, subfolder="unet").save_pretrained(tmp_path)
    unets = [
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        UNet2DConditionModel.from_pretrained(tmp_path),
        pipe.unet,
    ]
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()  # what it came from may be gone
    for unet in unets:
        loaded = load(folder, unet=unet)
        assert loaded.unet is unet
        check_same(loaded, pipe)
    scheduler = EDMEulerScheduler.from_pretrained(folder, subfolder="scheduler")
    assert MultiTaskPipeline.from_pretrained(folder, scheduler=scheduler).scheduler is scheduler
    unet = copy.deepcopy(pipe.unet)
    torch.nn.init.constant_(unet.conv_in.bias, float("inf"))
    with pytest.raises(ValueError, match=r"unet: conv_in\.bias has NaN or infinite values"):
        MultiTaskPipeline.from_pretrained(folder, unet=unet)


# What is saved loads again


def test_a_changed_pipeline_is_saved_so_that_it_loads(mine, pipe, tmp_path):
    mine.unet = torch.compile(mine.unet, backend="eager")
    mine.scheduler = EDMEulerScheduler.from_config(mine.scheduler.config)
    mine.save_pretrained(tmp_path)
    again = load(tmp_path)
    check_same(again, mine)
    assert type(again.unet) is UNet2DConditionModel and type(again.scheduler) is EDMEulerScheduler
    mine.scheduler = EDMDPMSolverMultistepScheduler.from_config(again.scheduler.config)
    check_same(mine, pipe)


def test_an_adapter_is_added_drawn_saved_and_loaded(mine, pipe, folder, tmp_path):
    add_adapter(mine.unet)
    adapted = draw(mine)
    assert not torch.allclose(adapted, draw(pipe), atol=1e-3)
    assert torch.equal(draw(load(folder, unet=mine.unet)), adapted)
    mine.unet.save_lora_adapter(tmp_path / "lora")
    again, file = MultiTaskPipeline.from_pretrained(folder), "pytorch_lora_weights.safetensors"
    again.unet.load_lora_adapter(tmp_path / "lora", prefix=None, weight_name=file)
    torch.testing.assert_close(draw(again), adapted, atol=1e-4, rtol=1e-3)
    mine.unet.fuse_lora()
    mine.unet.unload_lora()
    mine.save_pretrained(tmp_path / "merged")
    merged = draw(load(tmp_path / "merged"))
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-3)


# What would not load is not saved


def add_adapter(unet):
    peft = pytest.importorskip("peft")
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def delete_adapter(unet):
    add_adapter(unet)
    unet.delete_adapters("default")


def add_layer(unet):
    unet.mid_block.extra = torch.nn.Linear(2, 2)


def remove_values(unet):
    unet.conv_out.to("meta")


@pytest.mark.parametrize(
    "change, words",
    [
        (add_layer, r"unet has layers that .*mid_block\.extra\.weight"),
        (remove_values, r"unet: conv_out\.weight has no value; it is not saved"),
        (add_adapter, r"unet has layers that .* pipe\.unet\.save_lora_adap"),
        (delete_adapter, r"pipe\.unet\.unload_lora\(\)"),
    ],
)
def test_what_would_not_load_is_not_saved(mine, tmp_path, change, words):
    change(mine.unet)
    with pytest.raises(ValueError, match=words):
        mine.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
