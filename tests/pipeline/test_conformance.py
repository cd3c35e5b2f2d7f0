"""diffusers' own PipelineTesterMixin over every task, where a checkout of diffusers is at hand:

    DIFFUSERS_CHECKOUT=path/to/diffusers python -m pytest tests/pipeline/test_conformance.py

The wheel of diffusers comes without its tests. They run in a process of their own, because they
change diffusers, and with an empty configuration, because their markers are not ours.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mtl_diffusion.pipeline.pipeline import TASKS

SUITE = Path(__file__).parents[1] / "tools" / "conformance.py"
# That there is no GPU, in the suite's words; or, in ours, that the pipeline lacks what is tested.
REASONS = ("accelerator", "xformers", "left out")


@pytest.mark.slow
@pytest.mark.skipif(
    "DIFFUSERS_CHECKOUT" not in os.environ,
    reason="DIFFUSERS_CHECKOUT is not set: point it at a checkout of diffusers, with its tests",
)
def test_every_test_of_the_suite_passes_for_every_task_or_says_what_is_missing(tmp_path):
    for name in ("parameterized", "requests_mock"):  # what the suite imports and we don't
        pytest.importorskip(name, reason=f"diffusers' tests need {name}: pip install it")
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    command += ["-W", "ignore", f"--junit-xml={tmp_path / 'report.xml'}", str(SUITE)]
    done = subprocess.run(command, cwd=SUITE.parents[2], capture_output=True, text=True)
    assert (tmp_path / "report.xml").exists(), done.stdout + done.stderr
    passed, bad = [], {}
    for case in ElementTree.parse(tmp_path / "report.xml").iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        outcome = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            passed.append(name)
        elif outcome.tag != "skipped" or not any(r in outcome.get("message") for r in REASONS):
            bad[name] = outcome.get("message")
    assert bad == {}
    for task in TASKS:
        assert sum(name.startswith(f"{task.capitalize()}Test.") for name in passed) >= 19, task
