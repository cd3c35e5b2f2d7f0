"""A plain install: the wheel, in an environment of its dependencies alone, trains and exports."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from stranger import bare_environment
from tiny import MODEL, flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRAIN_AND_LOAD = """
import runpy, sys
import mtl_diffusion
environment, script, output_dir = sys.argv[1:4]
assert mtl_diffusion.__file__.startswith(environment), mtl_diffusion.__file__
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(script, run_name="__main__")

from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(f"{output_dir}/pipeline", trust_remote_code=True)
assert type(pipe).__module__.startswith("diffusers_modules."), type(pipe)
(image,) = pipe(task="generate", num_inference_steps=2).images
assert image.size == (8, 8)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the source, so that no `build` folder is left there."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mtl_diffusion", source / "mtl_diffusion", symlinks=True, ignore=ignored)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(work)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_the_files_of_the_wheel_that_are_no_python(wheel):
    pages = {f"mtl_diffusion/publishing/page/{name}" for name in ("index.html", "page.js")}
    assert pages < set(wheel.namelist())
    (card,) = (name for name in wheel.namelist() if name.endswith("model_card.md"))
    assert card.startswith("mtl_diffusion/")
    assert wheel.read(card) == (ROOT / "model_card.md").read_bytes()


def test_a_plain_install_trains_exports_and_loads(wheel, tmp_path):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    needed = Metadata.from_email(wheel.read(name)).requires_dist
    needed = [str(requirement) for requirement in needed if requirement.marker is None]
    assert any(requirement.startswith("torch") for requirement in needed)
    python = bare_environment(tmp_path / "venv", *needed)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    wheel.extractall(packages)
    arguments = {"total_batch_size": 4, "max_train_steps": 5, "num_threads": 1}
    arguments |= {**MODEL, "validation_images": 4, "output_dir": tmp_path / "run"}
    command = [python, "-I", "-c", TRAIN_AND_LOAD, tmp_path / "venv", ROOT / "scripts/train.py"]
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, tmp_path / "run", *flags(**arguments)],
        cwd=tmp_path,
        env=variables | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "run/pipeline/README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
