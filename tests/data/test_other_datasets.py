"""scripts/emoji.py, which writes the dataset that configs/emoji.yaml reads."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.data.images import load_splits
from mtl_diffusion.training.model import image_format

ROOT = Path(__file__).parents[2]


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


def test_emoji_of_npm(tmp_path, monkeypatch, capsys):
    def script(package: Path) -> None:
        argv = ["emoji.py", f"--package={package}", f"--output_dir={tmp_path / 'data'}"]
        monkeypatch.setattr("sys.argv", argv)
        runpy.run_path(str(ROOT / "scripts/emoji.py"), run_name="__main__")

    with pytest.raises(SystemExit):
        script(tmp_path)
    assert "npm pack emoji-datasource-google" in capsys.readouterr().err

    write_package(tmp_path / "package")
    for _ in range(2):  # the second time writes the same files
        script(tmp_path / "package")
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

    given = ["--config", str(ROOT / "configs/emoji.yaml"), f"--dataset_name={tmp_path / 'data'}"]
    data, _ = load_splits(config := parse(given), image_format(config))
    assert data.class_names == ("Flags", "People & Body")
    assert data.images.shape[1:] == (4, 64, 64)
