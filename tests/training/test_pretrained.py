"""Runs that start from a published model: new tasks, classes and data, and what is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel
from safetensors.torch import load_file
from tables import IMAGE, encoded, write_parquet
from tiny import own_state, unet_of

from mtl_diffusion import loop
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.pipeline.tokens import Vocabulary


def pictures(folder, *names):
    """24 training and 8 test images of noise, of classes with these names."""
    features = {"image": IMAGE, "label": ClassLabel(names=list(names))}
    for split, count in (("train", 24), ("test", 8)):
        images = encoded(count, first=100 * (split == "test"))
        rows = {"image": images, "label": [i % len(names) for i in range(count)]}
        write_parquet(folder, rows, features, split)
    return str(folder)


@pytest.fixture(scope="module")
def published(base, tmp_path_factory):
    """The folder of a pipeline of two tasks that knows cats and dogs, and has 4 reserved words."""
    folder = tmp_path_factory.mktemp("published")
    config = replace(
        base,
        dataset_name=pictures(folder / "pets", "cat", "dog"),
        tasks={"generate": 1, "edit": 1},
        output_dir=str(folder / "run"),
    )
    with own_state(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", lambda run, step, **options: None)
        train(config)
    return folder / "run/pipeline"


@pytest.fixture
def further(config, published, tmp_path):
    """A run that starts from it, with a new class in front and a new task."""
    return replace(
        config,
        dataset_name=pictures(tmp_path / "more", "bird", "dog", "cat"),
        tasks={"colorize": 1, "generate": 1},
        pretrained_model_name_or_path=str(published),
    )


def before(published):
    return load_file(published / "unet/diffusion_pytorch_model.safetensors")


def words(pipeline_folder):
    return MultiTaskPipeline.from_pretrained(pipeline_folder).tokenizer.get_vocab()


def test_new_words_take_reserved_ids_and_old_ones_keep_theirs(further, published, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda run, step, **options: None)
    train(further)
    old, new = words(published), words(Path(further.output_dir) / "pipeline")
    assert sorted(old.values()) == sorted(new.values())
    kept = {word: index for word, index in old.items() if not word.startswith("<reserved")}
    assert kept.items() <= new.items()
    reserved = Vocabulary.of(old).reserved
    assert new["<task:colorize>"] == reserved[0] and new["<class:bird>"] == reserved[1]
    pipe = MultiTaskPipeline.from_pretrained(Path(further.output_dir) / "pipeline")
    # Classes keep the numbers that they had; labels of the new data follow them.
    assert pipe.class_names == ("cat", "dog", "bird")
    assert set(pipe.tasks) == {"generate", "edit", "colorize"}


def test_labels_of_new_data_mean_the_same_classes(further, monkeypatch, steps_only):
    seen = []
    run_loop = loop.loop
    monkeypatch.setattr(loop, "loop", lambda run, *rest: seen.append(run) or run_loop(run, *rest))
    train(further)
    (run,) = seen
    names = [run.train_data.class_names[label] for label in run.train_data.labels[:6]]
    assert names == ["bird", "dog", "cat", "bird", "dog", "cat"]


def test_it_starts_from_the_published_weights(further, published, steps_only):
    train(replace(further, learning_rate=1e-12))
    after = unet_of(further.output_dir)
    assert all((after[name] - w).abs().max() < 1e-6 for name, w in before(published).items())


@pytest.mark.parametrize(
    ("train_only", "moved"),
    [
        ("tokens", {"encoder_hid_proj", "class_embedding"}),
        ("tokens+condition", {"encoder_hid_proj", "class_embedding", "conv_in"}),
    ],
)
@pytest.mark.parametrize("use_ema", [True, False])
def test_train_only_changes_nothing_else(
    further, published, train_only, moved, use_ema, steps_only
):
    train(replace(further, train_only=train_only, use_ema=use_ema))
    after = unet_of(further.output_dir, "ema" if use_ema else "unet")
    changed = {name for name, w in before(published).items() if not torch.equal(w, after[name])}
    assert {name.split(".")[0] for name in changed} == moved
    assert {"encoder_hid_proj.weight", "class_embedding.linear_1.weight"} <= changed


def test_another_resolution_is_an_error(further):
    with pytest.raises(ValueError, match=r"resolution 8, resolution is 16"):
        train(replace(further, resolution=16, attention_resolutions=[]))


def test_too_many_new_words_are_an_error(further, tmp_path):
    many = pictures(tmp_path / "many", *"abcdef")
    with pytest.raises(ValueError, match=r"4 reserved tokens, and 7 new words need one.*colorize"):
        train(replace(further, dataset_name=many))
    assert not Path(further.output_dir, "checkpoints").exists()
