"""Other people's machines, for the tests: processes that never heard of this package."""

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

# Goes before a script that runs with this environment's Python: our package isn't there.
NOT_INSTALLED = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mtl_diffusion":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
try:
    import mtl_diffusion
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("mtl_diffusion is installed here")
"""


def sample_every_task(pipe) -> dict:
    """An image of each task, as an array; `inspect.getsource` brings it to other processes."""
    import sys

    import numpy as np
    import torch

    pipe.set_progress_bar_config(disable=True)
    random = np.random.default_rng(0)
    image = random.random((8, 8, 3), dtype=np.float32)
    mask = random.random((8, 8)) > 0.5
    label = pipe.class_names[-1]
    calls = {
        "generate": {"class_label": label},
        "inpaint": {"image": image, "mask_image": mask},
        "edit": {"image": image, "class_label": label, "image_guidance_scale": 1.5},
        "colorize": {"image": image, "strength": 0.2},
    }
    good = {"image": image, "mask_image": mask, "class_label": label}
    for task in set(pipe.tasks) - set(calls):  # what it needs, by the code that the model carries
        required = sys.modules[type(pipe).__module__].TASKS[task].required
        calls[task] = {name: good[name] for name in required}
    common = {"num_inference_steps": 3, "output_type": "np"}
    return {
        task: pipe(
            task=task, generator=torch.Generator().manual_seed(7), **common, **arguments
        ).images
        for task, arguments in calls.items()
    }


def run_elsewhere(code, *arguments, folder: Path, python=sys.executable, **variables: str) -> str:
    """What code prints that runs in `folder` without this package, with nothing in its caches."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    caches = {"HF_HOME": f"{folder}/home", "HF_MODULES_CACHE": f"{folder}/modules"}
    done = subprocess.run(
        [python, "-c", NOT_INSTALLED + code, *map(str, arguments)],
        env=environment | caches | variables,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    """Path in the folder -> content."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def bare_environment(folder: Path, *names: str) -> Path:
    """A virtual environment of these packages and what they require; returns its Python.

    Nothing is downloaded: the packages are links to those that are installed here.

    Args:
        names: requirements, such as "torch" or "ruamel.yaml>=0.18".
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in sorted(_required(*names)):
        installed = distribution(name)
        tops = {path.parts[0] for path in installed.files if path.suffix != ".pth"}
        for top in sorted(tops - {"..", "__pycache__"}):
            target = Path(installed.locate_file(top))
            if target.exists() and not (packages / top).exists():
                os.symlink(target, packages / top)
    return folder / "bin" / "python"


def _required(*texts: str) -> set[str]:
    """Names of distributions, with those that they require, and so on."""
    found, wanted = set(), list(texts)
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement in found:
            continue
        found.add(requirement)
        for text in distribution(requirement.name).requires or ():
            marker = Requirement(text).marker
            extras = ("", *requirement.extras)
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(text.partition(";")[0])
    return {requirement.name for requirement in found}
