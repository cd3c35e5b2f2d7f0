"""The scripts that write other datasets, which the configs of these read."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.data.images import load_splits
from mtl_diffusion.training.model import image_format

CONFIGS = Path(__file__).parents[2] / "configs"


def read(name: str, folder: Path):
    """The training images that a config reads from a folder."""
    config = parse(["--config", str(CONFIGS / f"{name}.yaml"), f"--dataset_name={folder}"])
    return load_splits(config, image_format(config))[0]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs a script, which writes to the folder `data`."""

    def run(name: str, *flags: object) -> None:
        argv = [name, *map(str, flags), "--output_dir", str(tmp_path / "data")]
        monkeypatch.setattr("sys.argv", argv)
        runpy.run_path(str(CONFIGS.parent / "scripts" / name), run_name="__main__")

    return run


def test_digits_of_scikit_learn(tmp_path, script):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    script("digits.py")
    data = read("digits", tmp_path / "data")
    assert 1500 < len(data) < 1797 and data.class_names == (*"0123456789",)
    assert data.images.shape[1:] == (3, 8, 8) and data.images.max() > 200


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


def test_emoji_of_npm(tmp_path, script, capsys):
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

    data = read("emoji", tmp_path / "data")
    assert data.class_names == ("Flags", "People & Body")
    assert data.images.shape[1:] == (4, 64, 64)
