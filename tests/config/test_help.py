"""The configurations that are shipped, and the help: documented by the fields themselves."""

import os
import re
import subprocess
import sys
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


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys, mtl_diffusion\n"
        "from mtl_diffusion.config.command_line import parse\n"
        "mtl_diffusion.__version__\n"
        "try: parse(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "slow = {'torch', 'numpy', 'diffusers', 'transformers', 'accelerate', 'datasets'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    before = os.times().children_user
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    # Of the process, not of the clock: half a second.
    assert os.times().children_user - before < 5
