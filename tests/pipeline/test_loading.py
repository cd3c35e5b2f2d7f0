"""A folder that is damaged, or of other parts, is refused by name: it never gives a wrong image."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler
from safetensors.torch import load as read
from safetensors.torch import save_file
from stranger import files

from mtl_diffusion import MultiTaskPipeline
from mtl_diffusion.pipeline.parts import check_loaded

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
GUARD = "conv_out.bias"


@pytest.fixture
def damaged(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


def load_file(path):
    """Read whole: `safetensors.torch.load_file` maps the file, which these tests overwrite."""
    return read(path.read_bytes())


def installed(folder, **options):
    return MultiTaskPipeline.from_pretrained(folder, **options)


def trusted(folder, **options):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)


both_ways = pytest.mark.parametrize("load", [installed, trusted])


def change_weights(change):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def poison(value):
    return change_weights(lambda tensors: tensors[GUARD].fill_(value))


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / WEIGHTS)


def only_bin(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def longer(folder):
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"more")


def swapped_words(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    table = json.loads(path.read_text())
    words = table["model"]["vocab"]
    words["<class:cat>"], words["<class:dog>"] = words["<class:dog>"], words["<class:cat>"]
    path.write_text(json.dumps(table))


def fewer_words(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    table = json.loads(path.read_text())
    words = table["model"]["vocab"]
    del words[max(words, key=words.get)]
    path.write_text(json.dumps(table))


DAMAGES = {
    "missing": (change_weights(lambda t: t.pop(GUARD)), rf"{WEIGHTS} lacks {GUARD}; "),
    "unexpected": (
        change_weights(lambda t: t.update(other=torch.ones(1))),
        rf"{WEIGHTS} has the unexpected other; ",
    ),
    "nan": (poison(float("nan")), rf"unet: {GUARD} has NaN or infinite values"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 20_000), "diffusion_pytorch_model"),
    "longer": (longer, "diffusion_pytorch_model"),
    "pickle": (pickled, "diffusion_pytorch_model"),
    "only bin": (only_bin, "diffusion_pytorch_model.bin|no file named diffusion_pytorch_model"),
    "fewer words": (fewer_words, r"compare tokenizer/tokenizer\.json with .*unet/config\.json"),
    "swapped words": (swapped_words, "tokenizer.json is of another model.*cat>, <class:dog>"),
}


@both_ways
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_refused_by_name(damaged, damage, load):
    hurt, words = DAMAGES[damage]
    hurt(damaged)
    with pytest.raises((ValueError, OSError), match=words):
        load(damaged)


def test_a_tensor_without_a_value(pipe):
    unet = copy.deepcopy(pipe.unet)
    unet.conv_out.to("meta")
    with pytest.raises(ValueError, match=r"conv_out\.weight has no value after loading"):
        check_loaded("me/model", unet, pipe.tokenizer)


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}], ids=str)
def test_a_tensor_of_another_shape(damaged, options):
    change_weights(lambda tensors: tensors.update({GUARD: torch.ones(3, 1)}))(damaged)
    words = rf"{WEIGHTS} has {GUARD} of shape \[3, 1\]; the configuration says \[3\]; downl"
    with pytest.raises(ValueError, match=words):
        installed(damaged, **options)
    with pytest.raises((ValueError, RuntimeError), match=GUARD):  # in diffusers' words
        trusted(damaged, **options)


def test_a_component_of_ones_own_is_compared_too(folder, pipe, build_pipe):
    own = MultiTaskPipeline.from_pretrained(folder, unet=pipe.unet)
    assert own.unet is pipe.unet
    other = build_pipe(classes=("rose", "tulip", "ivy"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is of another model"):
        MultiTaskPipeline.from_pretrained(folder, tokenizer=other.tokenizer)


@pytest.fixture(scope="module")
def variants(folder, tmp_path_factory):
    """Both precisions in one folder."""
    both = Path(shutil.copytree(folder, tmp_path_factory.mktemp("variants") / "pipeline"))
    installed(both, torch_dtype=torch.float16).save_pretrained(both, variant="fp16")
    return both


@both_ways
def test_variants(variants, load):
    assert (variants / WEIGHTS).exists() and (variants / HALF).exists()
    half = load(variants, variant="fp16", torch_dtype=torch.float16)
    full = load(variants)
    assert half.unet.dtype == torch.float16 and full.unet.dtype == torch.float32
    weights = full.unet.state_dict()
    for name, tensor in half.unet.state_dict().items():
        assert torch.equal(tensor, weights[name].half())


def test_a_damaged_variant_is_refused(variants, tmp_path):
    damaged = shutil.copytree(variants, tmp_path / "damaged")
    tensors = load_file(damaged / HALF)
    del tensors[GUARD]
    save_file(tensors, damaged / HALF, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{HALF} lacks {GUARD}"):
        installed(damaged, variant="fp16")


def test_weights_in_parts(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size=20_000)
    parts = list(tmp_path.glob("unet/*-of-*.safetensors"))
    assert len(parts) > 1
    weights = installed(tmp_path).unet.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in pipe.unet.state_dict().items())
    tensors = load_file(parts[0])
    gone = tensors.popitem()[0]
    save_file(tensors, parts[0], metadata={"format": "pt"})
    with pytest.raises((ValueError, OSError), match=gone):
        installed(tmp_path)


def test_pickles_are_not_written(pipe, tmp_path):
    with pytest.raises(ValueError, match="safe_serialization is False; weights are saved as safe"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.iterdir()) == []


# --- one model, and no mixture of two -----------------------------------------------------------


@pytest.fixture(scope="module")
def other(build_pipe):
    """Another model with the same vocabulary."""
    return build_pipe(seed=1)


def weights_of(pipe):
    return pipe.unet.conv_out.weight.detach().float()


def ids_in(folder):
    names = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    return {json.loads((folder / name).read_text())["_model_id"] for name in names}


def test_the_parts_of_a_model_have_one_id(folder, pipe, other, tmp_path):
    other.save_pretrained(tmp_path / "other")
    (one,), (two,) = ids_in(folder), ids_in(tmp_path / "other")
    assert one != two and len(one) == 12
    half = installed(folder, torch_dtype=torch.float16)
    half.scheduler = EDMEulerScheduler.from_config(half.scheduler.config)
    half.save_pretrained(tmp_path / "half")
    assert ids_in(tmp_path / "half") == {one}


@both_ways
@pytest.mark.parametrize("part", ["unet", "scheduler", "model_index.json"])
def test_parts_of_two_models_are_refused(damaged, other, tmp_path, part, load):
    other.save_pretrained(tmp_path / "other")
    if part == "model_index.json":
        shutil.copy(tmp_path / "other" / part, damaged)
    else:
        shutil.copytree(tmp_path / "other" / part, damaged / part, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"unet is of another model than .*: their _model_id is"):
        load(damaged)


def test_a_part_given_by_hand_is_warned_of(folder, other, tmp_path):
    other.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="unet is of the model .* and scheduler of"):
        mixed = installed(folder, unet=other.unet)
    mixed.save_pretrained(tmp_path / "mixed")  # which is one model from now on
    assert ids_in(tmp_path / "mixed") == ids_in(tmp_path)


@both_ways
def test_a_model_from_before_ids_loads(damaged, tmp_path, load):
    for file in damaged.rglob("*.json"):
        text = json.loads(file.read_text())
        if isinstance(text, dict) and text.pop("_model_id", None):
            file.write_text(json.dumps(text))
    before = load(damaged)
    before.to(torch.float16).save_pretrained(damaged, variant="fp16")
    assert len(list(damaged.glob("unet/*.safetensors"))) == 2  # it is the same model
    load(damaged)


SAVED = {"whole": {}, "parts": {"max_shard_size": 20_000}}
SAVED |= {"half": {"variant": "fp16"}, "half parts": {"variant": "fp16", "max_shard_size": 20_000}}


@pytest.mark.parametrize("new", SAVED)
@pytest.mark.parametrize("old", SAVED)
def test_a_model_replaces_another_one_as_a_whole(pipe, other, tmp_path, old, new):
    other.save_pretrained(tmp_path, **SAVED[old])
    (tmp_path / "notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path / "alone", **SAVED[new])
    pipe.save_pretrained(tmp_path, **SAVED[new])
    loaded = installed(tmp_path, variant=SAVED[new].get("variant"))
    assert torch.equal(weights_of(loaded), weights_of(pipe))
    names = [{p.name for p in (f / "unet").iterdir()} for f in (tmp_path, tmp_path / "alone")]
    assert names[0] == names[1] and (tmp_path / "notes.txt").read_text() == "mine"


def test_other_variants_of_the_same_model_stay(pipe, tmp_path):
    for options in (SAVED["half parts"], SAVED["parts"], SAVED["whole"]):
        pipe.save_pretrained(tmp_path, **options)
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert len(names) > 4 and "diffusion_pytorch_model.safetensors.index.json" not in names
    for variant in (None, "fp16"):
        assert torch.equal(weights_of(installed(tmp_path, variant=variant)), weights_of(pipe))


def test_whole_weights_beside_parts_are_refused(pipe, damaged):
    pipe.save_pretrained(damaged / "parts", max_shard_size=20_000)
    for part in damaged.glob("parts/unet/*"):
        part.rename(damaged / "unet" / part.name)
    with pytest.raises(ValueError, match="are of two models; delete the older one"):
        installed(damaged)


def test_a_save_that_fails_leaves_the_model_that_is_there(other, damaged, monkeypatch):
    before = files(damaged)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(other.scheduler), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(damaged)
    assert files(damaged) == before


def test_links_are_replaced_and_not_written_through(other, folder, tmp_path):
    before = files(folder)
    shutil.copytree(folder, tmp_path / "links", copy_function=os.symlink)
    (tmp_path / "linked").mkdir()
    for path in folder.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    for target in (tmp_path / "links", tmp_path / "linked"):
        other.save_pretrained(target)
        assert torch.equal(weights_of(installed(target)), weights_of(other))
    assert files(folder) == before


def test_weights_are_as_readable_as_the_rest(pipe, tmp_path):
    before = os.umask(0o027)
    try:
        pipe.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o640}


# --- what is said of a mistake ------------------------------------------------------------------


def test_only_a_variant_is_there(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match=r"has no weights without a variant; .*variant='fp16'"):
        installed(tmp_path)


@pytest.mark.parametrize(
    "device, words",
    [("meta", "would be lost"), ("cuda:99", "torch finds \\d+ GPUs"), ("gpu", "give cpu, cuda")],
)
def test_a_device_that_cannot_be(mine, device, words):
    with pytest.raises(ValueError, match=f"device is .*{words}"):
        mine.to(device)
    assert mine.device.type == "cpu"


def test_a_pipeline_made_of_another_keeps_its_type(folder):
    half = installed(folder, torch_dtype=torch.float16)
    assert MultiTaskPipeline.from_pipe(half).unet is half.unet
    assert half.unet.dtype == torch.float16


def test_a_home_is_not_expanded_by_python(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"save_directory is '~/m'; .*expanduser\(\)"):
        pipe.save_pretrained("~/m")
    assert not list(tmp_path.iterdir())


def test_a_deleted_adapter_is_unloaded_too(mine, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    mine.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    mine.unet.delete_adapters("default")
    with pytest.raises(ValueError, match=r"pipe\.unet\.unload_lora\(\)"):
        mine.save_pretrained(tmp_path)
    mine.unet.unload_lora()
    mine.save_pretrained(tmp_path)
