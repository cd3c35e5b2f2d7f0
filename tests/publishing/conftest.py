import json
import sys

import pytest
from forked import no_validation, train
from loopback_hub import TOKEN, LoopbackHub

STEPS = 6
# scripts/publish.py, several times in one process; "again": the command that a failure has printed.
CALLS = """
import contextlib, io, json, os, runpy, shlex, sys
from mtl_diffusion.publishing import upload
upload.DELAYS = (0.01,)
answers = []
for argv in json.loads(os.environ["CALLS"]):
    if argv == "again":
        (printed,) = (said.splitlines()[-1] for code, said in answers if code)
        python, script, *argv = shlex.split(printed)
        assert (python, script) == ("python", "scripts/publish.py")
    sys.argv = ["publish.py", *argv]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path("scripts/publish.py", run_name="__main__")
        except SystemExit as stop:
            code, _ = 1, said.write(str(stop.code))
    answers.append([code, said.getvalue()])
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run with the checkpoints of steps 2, 4 and 6 and an exported pipeline."""
    code, run = train(
        tmp_path_factory.mktemp("trained") / "run",
        no_validation,
        max_train_steps=STEPS,
        checkpointing_steps=2,
        checkpoints_total_limit="null",
        gallery="true",
        hub_model_id="me/trained",
    )
    assert code == 0, run.text
    return run.folder


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder for the tests of a file."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def publish(hub, tmp_path_factory):
    """Calls scripts/publish.py with each list of words: [code, output] of each, as JSON has it.

    then: code that follows in that process, and may append to `answers`.
    """

    def publish(*calls, then=""):
        argvs = [call if call == "again" else [str(word) for word in call] for call in calls]
        command = [sys.executable, "-c", CALLS + then + "\nprint(json.dumps(answers))"]
        done = hub.run(command, tmp_path_factory.mktemp("home"), CALLS=json.dumps(argvs))
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return publish
