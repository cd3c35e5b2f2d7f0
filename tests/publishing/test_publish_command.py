"""`mtl-diffusion publish`: several calls in one process, real client, loopback Hub."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from loopback_hub import TOKEN
from metrics import METRICS
from stranger import files

from mtl_diffusion.publishing import export

pytestmark = pytest.mark.slow

SCRIPT = """
import contextlib, io, json, os, runpy, sys
sys.argv = ["publish.py"]
from mtl_diffusion.publishing import upload
upload.DELAYS = (0.01,)
answers = []
for argv in json.loads(os.environ["CALLS"]):
    sys.argv = ["publish.py", *argv]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path("scripts/publish.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):
        said.write(code)
        code = 1
    answers.append([code, said.getvalue()])
from mtl_diffusion import MultiTaskPipeline
pipe = MultiTaskPipeline.from_pretrained("me/cli", revision="v1")
pipe.push_to_hub("me/installed")
answers.append([0, type(pipe).__module__])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def calls(hub, trained, work):
    """What scripts/publish.py answers, several times in one process: (code, output) each."""
    (work / "metrics.json").write_text(json.dumps(METRICS))
    hub.fail("me/denied/commit/", 403)
    hub.fail("me/broken/commit/", 500, times=2)
    step = trained / "checkpoints" / "step-4"
    # There is another model, in parts, with a card that was edited.
    other = export.of_checkpoint(trained / "checkpoints" / "step-2")
    other = export.write(other, work / "other", pictures=False, max_shard_size="20KB")
    hub.add("me/over", files(other) | {"README.md": b"mine", "notes.txt": b"mine"})
    folders = [str(work / f"export {i}") for i in range(4)]
    pushed = ["--push_to_hub", "--hub_model_id"]
    metrics = ["--metrics", str(work / "metrics.json")]
    plain = ["--no_pictures", *pushed]
    argvs = [
        [str(trained), folders[0], "--private", "--revision", "v1", *metrics, *pushed, "me/cli"],
        [str(step), folders[1], *plain, "me/denied"],
        [str(step), folders[2], "--revision", "v2", "--private", *plain, "me/broken"],
        [str(trained), folders[3], *plain, "me/over"],
    ]
    argvs = [["--checkpoint", a, "--output_dir", b, *rest] for a, b, *rest in argvs]
    done = hub.run([sys.executable, "-c", SCRIPT], work / "cli", CALLS=json.dumps(argvs))
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folders


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
    tree, exported = hub.tree("me/over"), files(Path(calls[1][3]))
    assert tree.pop("README.md") == tree.pop("notes.txt") == b"mine"
    assert tree.pop("README.generated.md") == exported.pop("README.md")
    assert tree == exported and len(hub.commits("me/over")) == 2
    assert "README.md of me/over was edited, and is kept" in calls[0][3][1]


def test_a_failed_push_leaves_the_export_and_the_command(hub, calls, trained):
    answers, folders = calls
    for number, name, words in ((1, "me/denied", "right to write"), (2, "me/broken", "HTTP 500")):
        code, said = answers[number]
        assert code == 1 and words in said and name in said
        assert (Path(folders[number]) / "model_index.json").exists()
        command = shlex.split(said.splitlines()[-1])
        step = str(trained / "checkpoints" / "step-4")
        assert command[:4] == ["mtl-diffusion", "publish", "--checkpoint", step]
        assert command[command.index("--output_dir") + 1] == folders[number]
        assert command[command.index("--hub_model_id") + 1] == name
        assert "--push_to_hub" in command
        assert ("--private" in command) == ("--revision" in command) == (name == "me/broken")


def test_the_command_works(hub, calls, work):
    command = shlex.split(calls[0][2][1].splitlines()[-1])
    done = hub.run([sys.executable, "-m", "mtl_diffusion", *command[1:]], work / "again")
    assert done.returncode == 0, done.stderr
    assert [commit.title for commit in hub.commits("me/broken", "v2")] == ["Trained for 4 steps"]
