"""diffusers' own PipelineTesterMixin over every task, where a checkout of diffusers is at hand:

    DIFFUSERS_CHECKOUT=path/to/diffusers python -m pytest tests/pipeline/test_conformance.py

The wheel of diffusers comes without its tests. They run in a process of their own, because they
change diffusers, and with an empty configuration, because their markers are not ours.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")
NEEDED = ("parameterized", "requests_mock")  # what the suite imports and we don't
# That there is no GPU, in the suite's words; or, in ours, that the pipeline lacks what is tested.
REASONS = (
    "requires a hardware accelerator",
    "requires accelerator+PyTorch",
    "xformers",
    "left out",
)


def skip_reason() -> str | None:
    if CHECKOUT is None:
        return "DIFFUSERS_CHECKOUT is not set: point it at a checkout of diffusers, with its tests"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"diffusers' tests need {', '.join(missing)}: pip install them" if missing else None


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Task and test -> (passed, skipped or failed; what was said)."""
    if reason := skip_reason():
        pytest.skip(reason)
    report = tmp_path_factory.mktemp("conformance") / "report.xml"
    suite = Path(__file__).parents[1] / "tools" / "conformance.py"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    command += ["-W", "ignore", f"--junit-xml={report}", str(suite)]
    done = subprocess.run(command, cwd=suite.parents[2], capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        said = "" if outcome is None else outcome.get("message", "")
        kind = "passed" if outcome is None else outcome.tag
        found[f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"] = kind, said
    assert found, done.stdout + done.stderr
    return found


def test_every_test_of_the_suite_passes_or_says_what_is_missing(cases):
    bad = {name: said for name, (kind, said) in cases.items() if kind in ("failure", "error")}
    assert bad == {}
    unexplained = {
        name: said
        for name, (kind, said) in cases.items()
        if kind == "skipped" and not any(words in said for words in REASONS)
    }
    assert unexplained == {}


def test_every_task_is_run(cases):
    from mtl_diffusion.pipeline.pipeline import TASKS

    for task in TASKS:
        passed = [
            name
            for name, (kind, _) in cases.items()
            if name.startswith(f"{task.capitalize()}Test.") and kind == "passed"
        ]
        assert len(passed) >= 19, task
