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

sys.modules["mtl_diffusion"] = None  # an import raises ModuleNotFoundError
"""


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
    found, wanted = set(), list(map(Requirement, texts))
    while wanted:
        found.add(one := wanted.pop())
        for other in map(Requirement, distribution(one.name).requires or ()):
            marker, other.marker = other.marker, None
            extras = ("", *one.extras)
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                wanted += {other} - found
    return {requirement.name for requirement in found}
