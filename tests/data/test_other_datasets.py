"""The configs of other datasets, each for a few steps on a stand-in of the dataset's layout."""

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from tiny import own_state

from mtl_diffusion import MultiTaskPipeline, TrainConfig, train
from mtl_diffusion.config.command_line import parse

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 20
SMALL = {
    "block_out_channels": "[8,8,8]",
    "norm_num_groups": 4,
    "token_dim": 8,
    "total_batch_size": 8,
    "max_train_steps": STEPS,
    "lr_warmup_steps": 1,
    "validation_images": 4,
    "report_to": "none",
    "num_threads": 1,
}
# What the hub's dataset is made of: columns of images and of labels with their classes, the side of
# the images, their mode, and the splits.
LAYOUTS = {
    "mnist": ("image", {"label": 10}, 28, "L", ("train", "test")),
    "cifar100": ("img", {"fine_label": 100, "coarse_label": 20}, 32, "RGB", ("train", "test")),
    "digits": ("image", {"label": 10}, 8, "L", ("train",)),
}


def write(folder, column, labels, side, mode, splits, count=200):
    random = np.random.default_rng(0)
    names = {label: [f"{label} {i}" for i in range(n)] for label, n in labels.items()}
    features = Features(
        {column: Image()} | {label: ClassLabel(names=names[label]) for label in labels}
    )
    shape = (count, side, side) if mode == "L" else (count, side, side, 3)
    for split in splits:
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        rows = {label: [i % n for i in range(count)] for label, n in labels.items()}
        rows[column] = [Picture.fromarray(image) for image in pixels]
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def trained(name: str, data: Path, tmp_path: Path) -> tuple[TrainConfig, MultiTaskPipeline]:
    given = SMALL | {"dataset_name": data, "output_dir": tmp_path / "run"}
    if name == "digits":
        given["block_out_channels"] = "[8,8]"
    flags = [f"--{key}={value}" for key, value in given.items()]
    config = parse(["--config", str(CONFIGS / f"{name}.yaml"), *flags])
    with own_state():
        train(config)
    return config, MultiTaskPipeline.from_pretrained(tmp_path / "run/pipeline")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_dataset_of_the_hub(name, tmp_path):
    column, labels, side, mode, splits = LAYOUTS[name]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", column, labels, side, mode, splits)
    config, pipe = trained(name, tmp_path / "data", tmp_path)
    assert pipe.size == config.resolution == side
    label, count = next(iter(labels.items()))
    assert pipe.class_names == tuple(f"{label} {i}" for i in range(count))


def test_a_folder_of_images_without_a_test_split(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            image = Picture.new("RGB", (40 + i, 30), (10 * i, 0, 0))
            image.save(tmp_path / "data" / name / f"{i}.jpg")
    _, pipe = trained("image_folder", tmp_path / "data", tmp_path)
    assert pipe.class_names == ("cat", "dog") and pipe.size == 32


def test_digits_of_scikit_learn(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    import runpy

    monkeypatch.setattr("sys.argv", ["digits.py", "--output_dir", str(tmp_path / "data")])
    runpy.run_path(str(CONFIGS.parent / "scripts/digits.py"), run_name="__main__")
    (file,) = (tmp_path / "data").iterdir()
    rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 1797 and rows.features["label"].names == [*"0123456789"]
    image = np.asarray(rows[0]["image"])
    assert image.shape == (8, 8) and image.max() > 200 and rows[0]["label"] == 0
