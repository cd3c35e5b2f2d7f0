"""The configurations that are shipped, and the help: documented by the fields themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.fields import TITLES, TYPES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_config_is_sound_and_says_why(path):
    config = parse(["--config", str(path), "--dry_run"])
    assert config.dry_run and config.output_dir != TrainConfig().output_dir
    for line in path.read_text().splitlines():
        assert "# " in line


def test_help_has_the_text_and_the_default_of_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    words = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens too
    source = (ROOT / "mtl_diffusion/config/fields.py").read_text()
    for name in TYPES:
        text = re.search(rf'\n    {name}: (?:.|\n)*?\n    """((?:.|\n)*?)"""\n', source)[1]
        assert f"--{name}" in words and "".join(text.split()) + "(default:" in words, name
    assert all(f"{''.join(title.split())}:--{name}" in words for name, title in TITLES.items())
    assert "--mixed_precision{no,bf16,fp16}" in words


def test_help_needs_no_library_that_is_slow_to_import():
    code = (
        "import sys, mtl_diffusion\n"
        "from mtl_diffusion.config.command_line import parse\n"
        "mtl_diffusion.__version__\n"
        "try: parse(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "slow = {'torch', 'numpy', 'diffusers', 'transformers', 'accelerate', 'datasets'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
