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


def picture(mode: str, path: Path, size=(40, 32)) -> None:
    shape = (*size, len(mode)) if len(mode) > 1 else size
    pixels = RANDOM.integers(0, 256, shape, np.uint8)
    if mode == "I":
        image = Image.fromarray(RANDOM.integers(0, 4096, size, np.uint16))
    else:
        image = Image.fromarray(pixels % 2 if mode == "P" else pixels)
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(path)


def write(name: str) -> None:
    """Twenty images as the page describes them, in the working directory."""
    for i in range(20):
        folder = Path(name)
        if name in ("photos", "tiles", "sprites"):
            folder = folder / ("cat", "dog & more")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tiles":
            tile = RANDOM.integers(0, 10_000, (32, 32, 5), np.uint16)
            np.save(folder / f"{i}.npy", tile if i % 2 else np.moveaxis(tile, -1, 0))
            continue
        mode = {"photos": "RGB", "sprites": "RGBA", "scans": "I", "faces": "RGB"}[name]
        picture(mode, folder / f"{i}.png")
        if name == "scans":
            picture("L", folder / f"{i}-mask.png")
        if name == "faces":
            picture("P", folder / f"{i}-map.png")
    column = {"scans": "mask", "faces": "map"}.get(name)
    if column:
        rows = [f"{i}.png,{i}-{column}.png" for i in range(20)]
        (folder / "train.csv").write_text("\n".join([f"image,{column}", *rows]))


@pytest.mark.parametrize("name", ["photos", "scans", "faces", "tiles", "sprites"])
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
    mode = {"photos": "RGB", "faces": "RGB", "scans": "I;16", "sprites": "RGBA"}
    assert getattr(image, "mode", None) == mode.get(name)


def test_the_page_has_five_cases_and_is_short():
    assert len(COMMANDS) == 5 and len(PAGE.split()) <= 800
