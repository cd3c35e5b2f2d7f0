"""The commands of docs/your_images.md, on data that the test makes, with a model of 8 channels."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/your_images.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = {
    command.split()[command.split().index("--dataset_name") + 1]: shlex.split(command)[2:]
    for command in re.findall(r"^mtl-diffusion train .*$", PAGE, re.M)
}
TOY = ["--block_out_channels=[8,8,8]", "--norm_num_groups=4", "--token_dim=8", "--report_to=none"]
TOY += ["--total_batch_size=4", "--max_train_steps=2", "--num_threads=1", "--gallery=false"]
RANDOM = np.random.default_rng(0)
# Folder -> the mode of its images; None: arrays.
MODES = {"photos": "RGB", "scans": "I;16", "faces": "RGB", "tiles": None, "sprites": "RGBA"}
CLASSES = ("photos", "tiles", "sprites")  # folders with a folder for each class
SECOND = {"scans": "mask", "faces": "map"}  # folder -> the column of the other images of its table


def picture(mode: str, path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(RANDOM.integers(0, 4096, (40, 32), np.uint16))
    elif mode == "P":
        image = Image.fromarray(RANDOM.integers(0, 2, (40, 32), np.uint8))
        image.putpalette([255, 0, 0, 0, 0, 255])
    else:
        image = Image.fromarray(RANDOM.integers(0, 256, (40, 32, len(mode)), np.uint8))
    image.save(path)


def write(name: str) -> None:
    """Twenty images as the page describes them, in the working directory."""
    for i in range(20):
        folder = Path(name, ("cat", "dog & more")[i % 2] if name in CLASSES else "")
        folder.mkdir(parents=True, exist_ok=True)
        if MODES[name] is None:
            tile = RANDOM.integers(0, 10_000, (32, 32, 5), np.uint16)
            np.save(folder / f"{i}.npy", tile if i % 2 else np.moveaxis(tile, -1, 0))
        else:
            picture(MODES[name], folder / f"{i}.png")
        if name in SECOND:
            picture("P", folder / f"{i}-2.png")
    if name in SECOND:
        rows = [f"{i}.png,{i}-2.png" for i in range(20)]
        (folder / "train.csv").write_text("\n".join([f"image,{SECOND[name]}", *rows]))


@pytest.mark.parametrize("name", MODES)
def test_a_case_of_the_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write(name)
    config = parse([*COMMANDS[name], *TOY])
    train(config)
    pipe = MultiTaskPipeline.from_pretrained(Path(config.output_dir) / "pipeline")
    assert set(pipe.tasks) == set(config.shares)
    image = pipe(task="generate", num_inference_steps=1).images[0]
    size = image.shape[1::-1] if name == "tiles" else image.size
    assert size == config.size[::-1]
    assert getattr(image, "mode", None) == MODES[name]
    assert COMMANDS.keys() == MODES.keys()
