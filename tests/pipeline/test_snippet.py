"""The README's snippet with the models of the repository, where this package isn't installed."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from stranger import bare_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODELS = [ROOT / "pretrained/mtl-cifar10", ROOT / "pretrained/mtl-cifar10-fewstep"]
ALONE = """
import importlib.util
for name in ("mtl_diffusion", "accelerate", "datasets", "matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, name
"""
AFTER = """
assert car.size == truck.size == half.size == (32, 32)
kept, painted = (16, 0, 32, 32), (0, 0, 16, 32)
assert half.crop(kept).tobytes() == car.crop(kept).tobytes()
assert half.crop(painted).tobytes() != car.crop(painted).tobytes()
assert truck.tobytes() != car.tobytes()
"""


def test_it_runs_as_it_stands(tmp_path):
    """With each of the models in one process, which has the packages that the README names."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    snippet = next(block for block in blocks if "from_pretrained" in block)
    name = MODELS[0].relative_to(ROOT).as_posix()
    assert snippet.count(name) == 1
    assert re.findall(r'pipe\(task="(\w+)"', snippet) == ["generate", "edit", "inpaint"]
    runs = [snippet.replace(name, str(model)) + AFTER for model in MODELS]
    python = bare_environment(tmp_path / "venv", "diffusers", "transformers", "torch")
    done = subprocess.run(
        [python, "-I", "-c", ALONE + "".join(runs)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_the_weights_fit_into_a_repository(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 16.5e6
