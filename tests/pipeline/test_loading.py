"""A folder that is damaged, or of other parts, is refused by name: it never gives a wrong image."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load as read
from safetensors.torch import save_file
from stranger import files

from mtl_diffusion import MultiTaskPipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
TOKENIZER, GUARD = "tokenizer/tokenizer.json", "conv_out.bias"
PARTS, FP16 = {"max_shard_size": 20_000}, {"variant": "fp16"}

installed = MultiTaskPipeline.from_pretrained
trusted = partial(DiffusionPipeline.from_pretrained, trust_remote_code=True)
both_ways = pytest.mark.parametrize("load", [installed, trusted], ids=["installed", "trusted"])


@pytest.fixture
def damaged(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def other(build_pipe):
    """Another model with the same vocabulary."""
    return build_pipe(seed=1)


def weights_of(pipe):
    return pipe.unet.conv_out.weight.detach().float()


def tensors_in(path):
    """Read whole: `safetensors.torch.load_file` maps the file, which these tests overwrite."""
    return read(path.read_bytes())


# --- damages, each a function of a folder -------------------------------------------------------


def changed(file, change):
    """What is in a file of JSON or of tensors is changed."""

    def damage(folder):
        path = folder / file
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        else:
            content = tensors_in(path)
            change(content)
            save_file(content, path, metadata={"format": "pt"})

    return damage


def truncated(folder):
    os.truncate(folder / WEIGHTS, 20_000)


def only_bin(folder):
    torch.save(tensors_in(folder / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def swap_words(table):
    words = table["model"]["vocab"]
    words["<class:cat>"], words["<class:dog>"] = words["<class:dog>"], words["<class:cat>"]


def drop_word(table):
    words = table["model"]["vocab"]
    del words[max(words, key=words.get)]


DAMAGES = [
    (changed(WEIGHTS, lambda t: t.pop(GUARD)), rf"unet does not .*: {GUARD}; "),
    (changed(WEIGHTS, lambda t: t.update(a=torch.ones(1))), "unet does not .*: a; "),
    (
        changed(WEIGHTS, lambda t: t[GUARD].fill_(float("nan"))),
        rf"unet: {GUARD} has NaN or infinite values",
    ),
    (changed(WEIGHTS, lambda t: t.update({GUARD: torch.ones(3, 1)})), GUARD),  # in diffusers' words
    (truncated, "diffusion_pytorch_model"),
    (only_bin, "has no weights as safetensors|no file named diffusion_pytorch_model"),
    (changed(TOKENIZER, drop_word), r"compare tokenizer/tokenizer\.json with .*unet/config\.json"),
    (changed(TOKENIZER, swap_words), "tokenizer.json is of another model.*cat>, <class:dog>"),
]


@both_ways
@pytest.mark.parametrize("damage, words", DAMAGES)
def test_a_damage_is_refused_by_name(damaged, damage, words, load):
    damage(damaged)
    with pytest.raises((ValueError, OSError, RuntimeError), match=words):
        load(damaged)


# --- variants and parts -------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{}, PARTS])
def test_a_variant_leaves_other_weights_as_they_are(pipe, folder, tmp_path, parts):
    half = installed(folder, torch_dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half", **parts)
    for _ in range(2):
        half.save_pretrained(tmp_path / "half", **FP16, **parts)
    for load in (installed, trusted):
        again = load(tmp_path / "half", **FP16, torch_dtype=torch.float16)
        assert again.unet.dtype == torch.float16
        assert torch.equal(weights_of(again), weights_of(half))
        assert torch.equal(weights_of(load(tmp_path / "half")), weights_of(pipe))


def test_a_damaged_variant_is_named(folder, tmp_path):
    installed(folder, torch_dtype=torch.float16).save_pretrained(tmp_path / "half", **FP16)
    changed(HALF, lambda tensors: tensors.pop(GUARD))(tmp_path / "half")
    with pytest.raises(ValueError, match=f"unet does not have .*: {GUARD}"):
        installed(tmp_path / "half", **FP16)


def test_weights_in_parts(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "parts", **PARTS)
    parts = sorted(tmp_path.glob("parts/unet/*-of-*.safetensors"))
    assert len(parts) > 1
    weights = installed(tmp_path / "parts").unet.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in pipe.unet.state_dict().items())
    gone = next(iter(tensors_in(parts[0])))
    changed(parts[0], lambda tensors: tensors.pop(gone))(tmp_path)
    with pytest.raises((ValueError, OSError), match=gone):
        installed(tmp_path / "parts")


# --- one model, and no mixture of two -----------------------------------------------------------


@pytest.mark.parametrize("old, new", [({}, PARTS), (PARTS, {}), (FP16 | PARTS, {})])
def test_a_model_replaces_another_one_as_a_whole(pipe, other, tmp_path, old, new):
    other.save_pretrained(tmp_path, **old)
    (tmp_path / "notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path / "alone", **new)
    pipe.save_pretrained(tmp_path, **new)
    loaded = installed(tmp_path)
    assert torch.equal(weights_of(loaded), weights_of(pipe))
    names = [{p.name for p in (f / "unet").iterdir()} for f in (tmp_path, tmp_path / "alone")]
    assert names[0] == names[1] and (tmp_path / "notes.txt").read_text() == "mine"


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


def test_weights_are_as_readable_as_the_rest(pipe, tmp_path, monkeypatch):
    """Also in a folder of the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o027)
    try:
        pipe.save_pretrained("~/saved")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o640}
