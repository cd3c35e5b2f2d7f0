"""The configs of other datasets, each for a few steps on a stand-in of the dataset's layout."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image as Picture
from tiny import RUN, flags, own_state

from mtl_diffusion import MultiTaskPipeline, TrainConfig, train
from mtl_diffusion.config.command_line import parse

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIGS_OWN = {"resolution", "attention_resolutions"}
SMALL = {name: value for name, value in RUN.items() if name not in CONFIGS_OWN}
CHANNELS = {"digits": "[8,8]", "emoji": "[8,8,8,8]"}


@pytest.fixture
def trained(tmp_path, no_validation):
    """Trains with a config on the folder `data`."""

    def trained(name: str) -> tuple[TrainConfig, MultiTaskPipeline]:
        given = {"dataset_name": tmp_path / "data", "output_dir": tmp_path / "run"}
        given |= SMALL | {"block_out_channels": CHANNELS[name], "lr_warmup_steps": 1}
        config = parse(["--config", str(CONFIGS / f"{name}.yaml"), *flags(**given)])
        with own_state():
            train(config)
        return config, MultiTaskPipeline.from_pretrained(tmp_path / "run/pipeline")

    return trained


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs a script, which writes to the folder `data`."""

    def run(name: str, *flags: object) -> None:
        argv = [name, *map(str, flags), "--output_dir", str(tmp_path / "data")]
        monkeypatch.setattr("sys.argv", argv)
        runpy.run_path(str(CONFIGS.parent / "scripts" / name), run_name="__main__")

    return run


def test_digits_of_scikit_learn(trained, tmp_path, script):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    script("digits.py")
    (file,) = (tmp_path / "data").iterdir()
    rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 1797 and rows.features["label"].names == [*"0123456789"]
    image = np.asarray(rows[0]["image"])
    assert image.shape == (8, 8) and image.max() > 200 and rows[0]["label"] == 0
    _, pipe = trained("digits")
    assert pipe.size == 8 and pipe.class_names == (*"0123456789",)


def write_package(folder: Path, count: int = 100) -> None:
    """So many people with five colours of skin each, components, and flags in pairs of copies."""
    images = folder / "img/google/64"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    emoji = []
    for i in range(count):
        skins = {tone: {"image": f"person {i} {tone}.png"} for tone in "abcde"}
        emoji += [
            {"category": "People & Body", "image": f"person {i}.png", "skin_variations": skins},
            {"category": "Flags", "image": f"flag {i}.png"},
            {"category": "Flags", "image": f"flag {i} again.png"},
            {"category": "Component", "image": f"component {i}.png"},
        ]
        for name in [skin["image"] for skin in (*emoji[-4:], *skins.values())]:
            pixels = random.integers(0, 256, (8, 8, 4), np.uint8)
            Picture.fromarray(pixels).save(images / name)
        (images / f"flag {i} again.png").write_bytes((images / f"flag {i}.png").read_bytes())
    (folder / "emoji.json").write_text(json.dumps(emoji))


def test_emoji_of_npm(trained, tmp_path, script, capsys):
    with pytest.raises(SystemExit):
        script("emoji.py", "--package", tmp_path)
    assert "npm pack emoji-datasource-google" in capsys.readouterr().err

    write_package(tmp_path / "package")
    for _ in range(2):  # the second time writes the same files
        script("emoji.py", "--package", tmp_path / "package")
    found = {path.stem: path.parts[-3:-1] for path in (tmp_path / "data").rglob("*.png")}
    sides = {(split, name) for split in ("train", "test") for name in ("Flags", "People & Body")}
    assert len(found) == 400 and {*found.values()} == sides
    assert 0.02 < sum(split == "test" for split, _ in found.values()) / 400 < 0.25
    tones = set()
    for i in range(100):
        assert found[f"flag {i}"] == found[f"flag {i} again"]
        (tone,) = {tone for tone in "abcde" if f"person {i} {tone}" in found}
        assert found[f"person {i} {tone}"] == found[f"person {i}"]
        tones.add(tone)
    assert tones == {*"abcde"}

    _, pipe = trained("emoji")
    assert pipe.class_names == ("Flags", "People & Body")
    assert (pipe.format.mode, pipe.size) == ("RGBA", 64)
    assert pipe.tasks == ("generate", "inpaint", "edit", "colorize")
