"""Components that users build, replace or change: taken or refused, and saved so that they load."""

import copy
import json
import shutil
from pathlib import Path

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


def draw(pipe):
    return sample(pipe, class_label=None, num_inference_steps=2)


def check_same(pipe, other):
    torch.testing.assert_close(draw(pipe), draw(other), atol=1e-4, rtol=1e-3)


# Types


WRONG = {
    "none": ("unet", lambda pipe: None, "unet is None; it must be a UNet2DConditionModel"),
    "parallel": (
        "unet",
        lambda pipe: torch.nn.DataParallel(pipe.unet),
        r"unet is of the type DataParallel; .* give its \.module",
    ),
    "another unet": (
        "unet",
        lambda pipe: UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 4}),
        "unet takes 4 channels and gives 3; .* takes 7 and gives 3",
    ),
    "no tokenizer": ("tokenizer", lambda pipe: None, "tokenizer is None; it must be the tokenizer"),
    "no scheduler": ("scheduler", lambda pipe: None, "scheduler is None; it must be EDMDPM"),
    "euler": (
        "scheduler",
        lambda pipe: EulerDiscreteScheduler.from_config(pipe.scheduler.config),
        "type EulerDiscreteScheduler; it must be EDMDPMSolverMultistepScheduler or EDMEulerSch",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_type_is_refused_wherever_it_is_given(mine, folder, case):
    name, build, words = WRONG[case]
    other = build(mine)
    before = getattr(mine, name)
    with pytest.raises(ValueError, match=words):
        setattr(mine, name, other)
    assert getattr(mine, name) is before
    with pytest.raises(ValueError, match=words):
        MultiTaskPipeline(**{**mine.components, name: other})
    if case in ("none", "no scheduler", "euler", "another unet"):  # others stop before us
        with pytest.raises(ValueError, match=words):
            DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **{name: other})


@pytest.mark.parametrize(
    "changes",
    [{"sigma_data": float("nan")}, {"sigma_data": None}, {"sigma_min": 90.0}],
    ids=str,
)
def test_a_scheduler_without_noise_levels_is_refused(folder, tmp_path, changes):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    path = damaged / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match="scheduler has sigma_min"):
        MultiTaskPipeline.from_pretrained(damaged)


def test_a_tokenizer_that_does_not_fit_is_refused_when_it_is_used(mine, build_pipe):
    other = build_pipe(classes=("rose", "tulip"))
    mine.tokenizer = other.tokenizer
    words, takes = other.vocabulary.size, mine.unet.config.encoder_hid_dim
    with pytest.raises(ValueError, match=f"tokenizer has {words} words and the unet takes {takes}"):
        draw(mine)
    mine.unet = other.unet
    check_same(mine, other)
    assert mine.class_names == ("rose", "tulip")


def test_components_of_ones_own_are_taken(pipe, folder, tmp_path):
    UNet2DConditionModel.from_pretrained(folder, subfolder="unet").save_pretrained(tmp_path)
    unets = [
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        UNet2DConditionModel.from_pretrained(tmp_path),
        pipe.unet,
    ]
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()  # what it came from may be gone
    for unet in unets:
        loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, unet=unet)
        assert loaded.unet is unet
        check_same(loaded, pipe)
    scheduler = EDMEulerScheduler.from_pretrained(folder, subfolder="scheduler")
    assert MultiTaskPipeline.from_pretrained(folder, scheduler=scheduler).scheduler is scheduler


def test_a_unet_of_ones_own_that_is_not_finite(pipe, folder):
    unet = copy.deepcopy(pipe.unet)
    torch.nn.init.constant_(unet.conv_in.bias, float("inf"))
    with pytest.raises(ValueError, match=r"unet: conv_in\.bias has NaN or infinite values"):
        MultiTaskPipeline.from_pretrained(folder, unet=unet)


# What is saved loads again


def save_and_load(pipe, folder):
    pipe.save_pretrained(folder)
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


def test_fused_projections(mine, pipe, folder, tmp_path):
    mine.unet.fuse_qkv_projections()
    check_same(mine, pipe)
    check_same(save_and_load(mine, tmp_path / "fused"), pipe)
    own = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, unet=mine.unet)
    check_same(own, pipe)
    mine.unet.unfuse_qkv_projections()
    check_same(save_and_load(mine, tmp_path / "unfused"), pipe)


def test_a_compiled_unet(mine, pipe, tmp_path):
    mine.unet = torch.compile(mine.unet, backend="eager")
    check_same(mine, pipe)
    again = save_and_load(mine, tmp_path)
    assert type(again.unet) is UNet2DConditionModel
    check_same(again, pipe)


def test_another_scheduler(mine, tmp_path):
    mine.scheduler = EDMEulerScheduler.from_config(mine.scheduler.config)
    again = save_and_load(mine, tmp_path)
    assert type(again.scheduler) is EDMEulerScheduler
    check_same(again, mine)
    mine.scheduler = EDMDPMSolverMultistepScheduler.from_config(again.scheduler.config)
    draw(mine)


def add_layer(unet):
    unet.mid_block.extra = torch.nn.Linear(2, 2)


def remove_values(unet):
    unet.conv_out.to("meta")


def divide_by_zero(unet):
    torch.nn.init.constant_(unet.conv_in.bias, float("nan"))


def replace_layer(unet):
    unet.conv_out = torch.nn.Conv2d(8, 3, 1)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            add_layer,
            r"unet has the unexpected mid_block\.extra\.bias, mid_block\.extra\.weight; save",
        ),
        (replace_layer, r"unet has conv_out\.weight of shape \[3, 8, 1, 1\]; the configuration"),
        (remove_values, r"unet: conv_out\.weight has no value; it is not saved"),
        (divide_by_zero, r"unet: conv_in\.bias has NaN or infinite values; it is not saved"),
    ],
)
def test_what_would_not_load_is_not_saved(mine, tmp_path, change, words):
    change(mine.unet)
    with pytest.raises(ValueError, match=words):
        mine.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_file_that_was_written_wrong_does_not_count(mine, tmp_path, monkeypatch):
    save = UNet2DConditionModel.save_pretrained

    def save_less(self, folder, **options):
        save(self, folder, **options)
        file = next(iter(Path(folder).glob("*.safetensors")))
        file.write_bytes(file.read_bytes()[:-8])

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", save_less)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        mine.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model_index.json").exists()


# LoRA


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


LORA = "pytorch_lora_weights.safetensors"


def test_an_adapter_is_added_drawn_saved_and_loaded(mine, pipe, folder, tmp_path, peft):
    unet = mine.unet
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = draw(mine)
    assert not torch.allclose(adapted, draw(pipe), atol=1e-3)
    own = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, unet=unet)
    assert torch.equal(draw(own), adapted)

    with pytest.raises(
        ValueError, match=r"has the adapters default, .* pipe\.unet\.save_lora_adap"
    ):
        mine.save_pretrained(tmp_path / "saved")
    unet.save_lora_adapter(tmp_path / "lora")
    again = MultiTaskPipeline.from_pretrained(folder)
    again.unet.load_lora_adapter(tmp_path / "lora", prefix=None, weight_name=LORA)
    torch.testing.assert_close(draw(again), adapted, atol=1e-4, rtol=1e-3)

    unet.fuse_lora()
    unet.unload_lora()
    merged = save_and_load(mine, tmp_path / "merged")
    torch.testing.assert_close(draw(merged), adapted, atol=1e-4, rtol=1e-3)


def test_a_wrapper_of_adapters_is_refused(mine, peft):
    wrapped = peft.get_peft_model(mine.unet, peft.LoraConfig(target_modules=["to_q"]))
    with pytest.raises(
        ValueError, match=r"type PeftModel; .* give its \.get_base_model\(\), which"
    ):
        mine.unet = wrapped
    mine.unet = wrapped.get_base_model()
    draw(mine)
