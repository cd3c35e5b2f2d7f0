"""A pipeline from a checkpoint alone, written to a folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler
from metrics import METRICS
from safetensors.torch import load_file
from stranger import files

from mtl_diffusion.checkpoints.store import CheckpointError, load, save
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.publishing import export

PRETRAINED = Path(__file__).parents[2] / "pretrained"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("part", ["ema", "unet"])
def test_the_average_is_exported_where_there_is_one(trained, tmp_path, part):
    checkpoint = load(trained / "checkpoints" / "step-4")
    average, plain = checkpoint.tensors["ema"], checkpoint.tensors["unet"]
    assert not all(torch.equal(average[name], plain[name]) for name in plain)
    if part == "unet":
        del checkpoint.tensors["ema"]
    model = export.of_checkpoint(save(tmp_path / "run", checkpoint))
    assert model.step == 4 and not model.pipeline.unet.training
    exported = load_file(export.write(model, tmp_path / "export", pictures=False) / UNET)
    expected = checkpoint.tensors[part]
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in exported)


def test_half_the_bytes(trained, tmp_path):
    """What is kept in git: it loads as any other export does, in float32."""
    model = export.of_checkpoint(trained)
    whole = export.write(model, tmp_path / "whole", pictures=False)
    half = export.write(model, tmp_path / "half", pictures=False, half=True)
    assert (half / UNET).stat().st_size < 0.7 * (whole / UNET).stat().st_size
    expected = {name: tensor.half().float() for name, tensor in load_file(whole / UNET).items()}
    loaded = MultiTaskPipeline.from_pretrained(half).unet.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert next(model.pipeline.unet.parameters()).dtype == torch.float32  # the model itself


def test_a_model_of_few_steps_stays_one(trained, tmp_path):
    model = export.of_checkpoint(trained)
    parts = model.pipeline.unet, model.pipeline.tokenizer, EDMEulerScheduler()
    old = replace(model, pipeline=MultiTaskPipeline(*parts, default_chains(80.0)))
    folder = export.write(old, tmp_path / "old", pictures=False, half=True)
    assert MultiTaskPipeline.from_pretrained(folder).chains == default_chains(80.0)
    published = MultiTaskPipeline.from_pretrained(PRETRAINED / "mtl-cifar10-fewstep")
    assert published.chains == default_chains(80.0)
    assert MultiTaskPipeline.from_pretrained(PRETRAINED / "mtl-cifar10").chains is None


def test_the_export_of_a_run_is_that_of_its_newest_checkpoint(trained, tmp_path):
    folder = export.write(export.of_checkpoint(trained), tmp_path / "export")
    found, expected = files(folder), files(trained / "pipeline")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if not name.endswith(".png"))


def test_what_is_no_checkpoint_or_no_place_for_an_export(trained, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint, and no run with a complete one"):
        export.of_checkpoint(tmp_path)
    words, weights = (load(trained / "checkpoints" / "step-4") for _ in range(2))
    words.facts["words"] = {"<null>": 0}
    weights.tensors["ema"].pop("conv_out.bias")
    for bad, what in ((words, "words"), (weights, r"conv_out\.bias")):
        with pytest.raises(CheckpointError, match=rf"don't fit its configuration(.|\n)*{what}"):
            export.of_checkpoint(save(tmp_path / "run", bad))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is neither empty nor an export, .*, and is left alone"):
        export.write(export.of_checkpoint(trained), tmp_path / "mine", pictures=False)
    assert files(tmp_path / "mine") == {"thesis.txt": b"mine"}


OTHERS = ("notes.txt", ".git/objects/pack", "samples/gallery.png", "unet/notes.json")
OTHERS += ("backup/unet/diffusion_pytorch_model.safetensors", "model.onnx")


def test_an_export_replaces_what_an_export_wrote_and_nothing_else(trained, tmp_path):
    model = export.of_checkpoint(trained / "checkpoints" / "step-2")
    folder = export.write(model, tmp_path / "e", metrics=METRICS)
    model.pipeline.save_pretrained(folder, max_shard_size="20KB")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("mine")
    (folder / "link").symlink_to("/nowhere")
    card = (folder / "README.md").read_text()
    export.write(export.of_checkpoint(trained), folder, pictures=False)
    alone = export.write(export.of_checkpoint(trained), tmp_path / "alone", pictures=False)
    theirs, ours = set(files(folder)), set(files(alone))
    assert theirs == ours | set(OTHERS) and (folder / "link").is_symlink()
    assert all((folder / name).read_text() == "mine" for name in OTHERS)
    assert (folder / "README.md").read_text() != card and "link" not in theirs


def test_a_card_that_was_edited_is_kept(trained, tmp_path, caplog):
    model = export.of_checkpoint(trained)
    card = export.write(model, tmp_path / "e", pictures=False) / "README.md"
    edited = card.read_text().replace("# ", "# My ", 1)
    card.write_text(edited)
    export.write(model, tmp_path / "e", pictures=False)
    assert card.read_text() == edited
    assert f"{card} was edited, and is kept; delete it for a new one" in caplog.text


def test_only_the_allowed_files_are_uploaded(trained, tmp_path):
    folder = export.write(export.of_checkpoint(trained), tmp_path / "export", pictures=False)
    allowed = set(export.files_to_upload(folder))
    assert allowed == set(files(folder))
    for name in ("optimizer.bin", "events.out.tfevents", "secrets.py", "secrets.json", ".env"):
        (folder / name).touch()
    (folder / "unet" / "link.json").symlink_to("/etc/passwd")
    assert set(export.files_to_upload(folder)) == allowed
