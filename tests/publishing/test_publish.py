"""A run that publishes its checkpoints, with the real client and the loopback Hub."""

import re
import sys
import time
from pathlib import Path

import pytest
from forked import ARGUMENTS
from huggingface_hub import ModelCard
from loopback_hub import TOKEN
from stranger import files
from tiny import flags, write_shapes

from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 6

TRAIN = ARGUMENTS | {
    "max_train_steps": STEPS,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": "null",
    "gallery": "true",
    "push_to_hub": "true",
    "hub_strategy": "checkpoint",
    "hub_model_id": "me/trained",
}


@pytest.fixture(scope="module")
def run(hub, work):
    """The folder of a run that publishes each checkpoint; its first upload arrives after its last
    checkpoint is written."""
    data, folder = work / "data", work / "run"
    write_shapes(data, 64, 16)

    def gate(request):
        deadline = time.monotonic() + 300
        last = folder / "checkpoints" / f"step-{STEPS}"
        while "/commit/" in request and not last.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.waited |= "/commit/" in request and not last.exists()

    gate.waited = False
    hub.gate = gate
    arguments = TRAIN | {"dataset_name": data, "output_dir": folder}
    command = [sys.executable, "scripts/train.py", *flags(**arguments)]
    done = hub.run(command, work / "home")
    hub.gate = None
    assert done.returncode == 0, done.stderr
    (work / "train.log").write_text(done.stdout + done.stderr)
    assert not gate.waited, "the run waited for its upload"
    return folder


def test_checkpoints_are_published_while_the_run_goes_on(hub, run, work):
    titles = [commit.title for commit in hub.commits("me/trained")]
    assert titles == ["Trained for 2 steps", f"Trained for {STEPS} steps"]
    log = (work / "train.log").read_text()
    assert "step-4 is not published: the one before is on its way" in log
    last = hub.commits("me/trained")[-1].oid
    assert f"Published as {hub.url}/me/trained/commit/{last}" in log


def test_what_is_published(hub, run, work):
    published = hub.tree("me/trained")
    assert published == files(run / "pipeline")
    assert {"README.md", "gallery.png", *MultiTaskPipeline.code_files()} < set(published)
    searched = [path.read_bytes() for path in work.rglob("*") if path.is_file()]
    assert len(searched) > 40
    assert not any(TOKEN.encode() in content for content in [*searched, *published.values()])


def test_the_card_of_a_run(run):
    text = (run / "pipeline" / "README.md").read_text()
    # The data is in a folder.
    assert ModelCard(text).data.datasets is None and str(run.parent) not in text
    assert "](gallery.png)" in text and 'from_pretrained("me/trained"' in text
    assert re.search(r"Training took \d+\.\d minutes on 1 thread of ", text)
