"""The README's snippet, in an environment of diffusers, transformers and torch alone."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from PIL import Image
from stranger import bare_environment, files

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
QUICKSTART = "runs/quickstart/pipeline"
ALONE = """
import importlib.util
for name in ("mtl_diffusion", "accelerate", "datasets", "jsonargparse", "matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, name
"""
# The snippet's own calls are seen from outside: what each was asked, and what it gave.
WATCHED = """
assert {call["task"] for call in seen} == {"generate", "inpaint", "edit"}
"""
WATCH = """
from diffusers import DiffusionPipeline
seen, load = [], DiffusionPipeline.from_pretrained

def from_pretrained(*args, **options):
    pipe = load(*args, **options)
    call = type(pipe).__call__

    def watched(self, **arguments):
        seen.append(arguments)
        return call(self, **arguments)

    type(pipe).__call__ = watched
    return pipe

DiffusionPipeline.from_pretrained = from_pretrained
"""


def snippet(source: str) -> str:
    """The first Python of the README that loads a pipeline, from another place."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "from_pretrained" in block)
    assert code.count(QUICKSTART) == 1
    return code.replace(QUICKSTART, source)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "venv"
    return bare_environment(folder, "diffusers", "transformers", "torch")


@pytest.fixture(scope="module")
def folder(build_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe = build_pipe(tasks=("generate", "inpaint", "edit"), classes=("ring", "cross"))
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(folder):
    with LoopbackHub() as hub:
        hub.add("user/name", files(folder))
        yield hub


@pytest.mark.parametrize("place", ["folder", "repository"])
def test_it_runs_as_it_stands(python, folder, hub, tmp_path, place):
    source = str(folder) if place == "folder" else "user/name"
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-I", "-c", ALONE + WATCH + snippet(source) + WATCHED],
        cwd=tmp_path,
        env=variables | hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "ring.png").size == (8, 8)
    assert bool(hub.requests) == (place == "repository")
