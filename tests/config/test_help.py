"""The configurations that are shipped, and the help: documented by the fields themselves."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mtl_diffusion.config import (
    TrainConfig,
)
from mtl_diffusion.config.command_line import parse

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_config_is_sound_and_says_why(path):
    config = parse(["--config", str(path), "--dry_run"])
    assert config.dry_run and config.output_dir != TrainConfig().output_dir
    for line in path.read_text().splitlines():
        assert "# " in line


def test_help_has_the_text_of_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    source = (ROOT / "mtl_diffusion/config/fields.py").read_text()
    for f in fields(TrainConfig):
        text = re.search(rf'\n    {f.name}: (?:.|\n)*?\n    """((?:.|\n)*?)"""\n', source)[1]
        assert f"--{f.name} " in words
        assert " ".join(text.split()) in words, f.name
