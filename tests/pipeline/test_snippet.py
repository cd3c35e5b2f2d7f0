"""The README's snippet with the model of the repository, where this package isn't installed."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from stranger import bare_environment, files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PRETRAINED = "pretrained/mtl-cifar10"
FEW_STEPS = "pretrained/mtl-cifar10-fewstep"
ALONE = """
import importlib.util
for name in ("mtl_diffusion", "accelerate", "datasets", "matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, name
"""
# The snippet's own calls are seen from outside.
WATCHED = """
assert {call["task"] for call in seen} == {"generate", "inpaint", "edit"}
assert car.size == truck.size == half.size == (32, 32)
kept, painted = (16, 0, 32, 32), (0, 0, 16, 32)
assert half.crop(kept).tobytes() == car.crop(kept).tobytes()
assert half.crop(painted).tobytes() != car.crop(painted).tobytes()
assert truck.tobytes() != car.tobytes()
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
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    code = next(block for block in blocks if "from_pretrained" in block)
    assert code.count(PRETRAINED) == 1
    return code.replace(PRETRAINED, source)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "venv"
    return bare_environment(folder, "diffusers", "transformers", "torch")


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        hub.add("user/name", files(ROOT / PRETRAINED))
        yield hub


@pytest.mark.parametrize("place", [PRETRAINED, FEW_STEPS, "user/name"])
def test_it_runs_as_it_stands(python, hub, tmp_path, place):
    on_hub = place == "user/name"
    source = place if on_hub else str(ROOT / place)
    before = len(hub.requests)
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-I", "-c", ALONE + WATCH + snippet(source) + WATCHED],
        cwd=tmp_path,
        env=variables | hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (len(hub.requests) > before) == on_hub


@pytest.mark.parametrize("folder", [PRETRAINED, FEW_STEPS])
def test_the_weights_fit_into_a_repository(folder):
    assert sum(path.stat().st_size for path in (ROOT / folder).rglob("*")) < 16.5e6
