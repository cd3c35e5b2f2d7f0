"""A folder that is damaged, or of other parts, is refused by name: it never gives a wrong image."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load as read
from safetensors.torch import save_file

from mtl_diffusion import MultiTaskPipeline
from mtl_diffusion.pipeline.loading import check_loaded

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
