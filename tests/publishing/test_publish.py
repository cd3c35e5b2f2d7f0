"""A run that publishes its export, and `mtl-diffusion publish`; real client, loopback Hub."""

import json
import re
import sys

import pytest
from forked import ARGUMENTS
from huggingface_hub import ModelCard
from loopback_hub import TOKEN
from metrics import METRICS
from stranger import files
from tiny import flags, write_shapes

from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.publishing import export

pytestmark = pytest.mark.slow

TRAIN = ARGUMENTS | {"max_train_steps": 6, "gallery": "true", "push_to_hub": "true"}
INSTALLED = """
from mtl_diffusion import MultiTaskPipeline
pipe = MultiTaskPipeline.from_pretrained("me/cli", revision="v1")
pipe.push_to_hub("me/installed")
answers.append([0, type(pipe).__module__])
"""


def test_a_run_publishes_its_export(hub, work):
    folder = work / "run"
    given = {"dataset_name": write_shapes(work / "data", 64, 16), "output_dir": folder}
    given |= {"hub_model_id": "me/trained"}
    done = hub.run([sys.executable, "scripts/train.py", *flags(**TRAIN | given)], work / "home")
    assert done.returncode == 0, done.stderr
    (commit,), log = hub.commits("me/trained"), done.stdout + done.stderr
    assert commit.title == "Trained for 6 steps"
    assert f"Published as {hub.url}/me/trained/commit/{commit.oid}" in log

    published = hub.tree("me/trained")
    assert published == files(folder / "pipeline")
    assert {"README.md", "gallery.png", f"{MultiTaskPipeline.module_name()}.py"} < set(published)
    searched = [path.read_bytes() for path in work.rglob("*") if path.is_file()]
    assert len(searched) > 30 and TOKEN not in log
    assert not any(TOKEN.encode() in content for content in [*searched, *published.values()])

    card = published["README.md"].decode()
    # The data is in a folder.
    assert ModelCard(card).data.datasets is None and str(work) not in card
    assert "](gallery.png)" in card and 'from_pretrained("me/trained"' in card
    assert re.search(r"Training took \d+\.\d minutes on 1 thread of ", card)


@pytest.fixture(scope="module")
def calls(hub, trained, work, publish):
    """What scripts/publish.py answers, [code, output] of each call; and their folders."""
    (work / "metrics.json").write_text(json.dumps(METRICS))
    hub.fail("me/broken/commit/", 500, times=2)
    # There is another model, in parts, with a card that was edited.
    other = export.of_checkpoint(trained / "checkpoints" / "step-2").pipeline
    other.save_pretrained(work / "other", max_shard_size="20KB")
    hub.add("me/over", files(work / "other") | {"README.md": b"mine", "notes.txt": b"mine"})
    pushed, metrics = ["--push_to_hub", "--hub_model_id"], ["--metrics", work / "metrics.json"]
    plain = ["--no_pictures", *pushed]
    calls = [
        [trained, "--private", "--revision", "v1", *metrics, *pushed, "me/cli"],
        [trained / "checkpoints" / "step-4", "--revision", "v2", "--private", *plain, "me/broken"],
        [trained, *plain, "me/over"],
    ]
    folders = [work / f"export {i}" for i in range(len(calls))]
    argvs = [
        ["--checkpoint", source, "--output_dir", folder, *rest]
        for (source, *rest), folder in zip(calls, folders, strict=True)
    ]
    return publish(*argvs, "again", then=INSTALLED), folders


def test_publishing_a_checkpoint(hub, calls):
    (code, said), folders = calls[0][0], calls[1]
    assert code == 0 and f"Step 6 is in {folders[0]}" in said
    assert hub.repositories["model", "me/cli"].private
    assert hub.commits("me/cli", "main") == []
    assert json.loads(hub.tree("me/cli", "v1")["metrics.json"]) == METRICS
    assert b"0.875" in hub.tree("me/cli", "v1")["README.md"]
    assert calls[0][-1] == [0, "mtl_diffusion.pipeline.pipeline"]  # loaded without trust
    extras = {"metrics.json", "gallery.png"}
    assert set(hub.tree("me/installed")) == set(hub.tree("me/cli", "v1")) - extras


def test_a_model_replaces_the_one_that_is_there(hub, calls):
    tree, exported = hub.tree("me/over"), files(calls[1][2])
    assert tree.pop("README.md") == tree.pop("notes.txt") == b"mine"
    exported.pop("README.md")
    assert tree == exported and len(hub.commits("me/over")) == 2
    assert "README.md of me/over was edited there, and is kept; delete it" in calls[0][2][1]


def test_a_failed_push_leaves_the_export_and_a_command_that_works(hub, calls):
    (code, said), folder = calls[0][1], calls[1][1]
    assert code == 1 and "me/broken can't be written on the Hub (HTTP 500)" in said
    assert (folder / "model_index.json").exists()
    assert calls[0][3][0] == 0, calls[0][3]
    assert [commit.title for commit in hub.commits("me/broken", "v2")] == ["Trained for 4 steps"]
