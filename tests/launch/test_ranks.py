"""Several processes, and the launcher that started them. docs/reliability.md lists these tests."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from forked import ARGUMENTS, SCRIPT, SHORT, Run, die
from tables import write_images

from mtl_diffusion.checkpoints.store import load_latest

STOPPED = 75


def test_a_rank_that_dies_ends_the_other(tmp_path):
    """Without a launcher; with gloo, whose connection breaks."""
    run = Run(tmp_path / "run", *SHORT, partial(die, 4, only_rank=1), processes=2)
    run.processes[1].join(60)
    codes = run.wait(60)  # gloo's own limit is half an hour
    assert codes[1] == -9 and codes[0] not in (0, STOPPED)
    assert run.steps == [3]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Sixty images in folders."""
    places = [("train", i) for i in range(60)] + [("test", i) for i in range(10)]
    names = [f"{split}/class {i % 5}/{i}.png" for split, i in places]
    return write_images(tmp_path_factory.mktemp("pictures"), *names)


def heed_interrupts():
    """In the background of a shell the tests ignore SIGINT, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launch:
    """A real `accelerate launch`, in a session of its own."""

    def __init__(self, folder, pictures, *launcher, **arguments):
        given = ARGUMENTS | {
            "output_dir": folder,
            "dataset_name": pictures,
            "validation_split": "test",
            "max_train_steps": 100_000,
            "checkpointing_steps": 100_000,
        }
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", *launcher]
        command += [SCRIPT, *(f"--{name}={value}" for name, value in (given | arguments).items())]
        self.folder, self.log = Path(folder), Path(f"{folder}.log")
        with open(self.log, "w") as log:
            self.launcher = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    @property
    def text(self):
        return self.log.read_text()

    @property
    def steps(self):
        return [int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")]

    def trainers(self):
        """Ids of the processes that train, by rank."""
        path = f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children"
        return [
            int(pid)
            for pid in Path(path).read_text().split()
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def wait_for_training(self):
        deadline = time.monotonic() + 120
        while not re.search(r"[1-9]\d*\.?\d*k?/800k", self.text):
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.05)
        return self.trainers()

    def wait_for_end(self, pids, seconds=120):
        """Until none of the processes is left."""
        deadline = time.monotonic() + seconds
        while any(running(pid) for pid in pids) or self.launcher.poll() is None:
            assert time.monotonic() < deadline, f"still running after {seconds} s: {self.text}"
            time.sleep(0.02)

    def stop(self, name):
        """Sends a signal, SIGINT to the whole group as a terminal does, and waits for the end."""
        pids = self.wait_for_training()
        if name == "SIGINT":
            os.killpg(self.launcher.pid, signal.SIGINT)
        else:
            self.launcher.send_signal(signal.Signals[name])
        self.wait_for_end(pids)
        (step,) = self.steps  # saved once
        assert load_latest(self.folder / "checkpoints")[0].step == step
        return pids, step


@pytest.fixture
def launch(pictures, tmp_path):
    """Starts a launch, of which nothing is left after the test."""
    launches = []

    def start(*launcher):
        launches.append(Launch(tmp_path / "run", pictures, *launcher))
        return launches[-1]

    yield start
    for each in launches:
        with suppress(ProcessLookupError):
            os.killpg(each.launcher.pid, signal.SIGKILL)
        each.launcher.wait()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TWO = ("--multi_gpu", "--num_processes=2", "--main_process_port=0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_one_process_under_a_launcher_that_dies(name, launch):
    """The launcher is gone at once; the trainer notices, saves and ends. SIGINT goes to both."""
    launch = launch("--num_processes=1")
    pids, step = launch.stop(name)
    assert len(pids) == 1
    reason = "SIGINT" if name == "SIGINT" else "the end of its launcher"
    assert f"stopped by {reason} after step {step}" in launch.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_two_processes_under_a_launcher_that_is_told_to_stop(name, launch):
    launch = launch(*TWO)
    pids, _ = launch.stop(name)
    assert len(pids) == 2 and launch.launcher.returncode != 0, launch.text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_launch(rank, launch):
    launch = launch(*TWO)
    pids = launch.wait_for_training()
    os.kill(pids[rank], signal.SIGKILL)
    launch.wait_for_end(pids)
    assert launch.launcher.returncode not in (0, None)


@pytest.mark.slow
def test_the_launch_that_starts_one_process_instead_of_two(launch):
    launch = launch("--cpu", "--num_processes=2")
    assert launch.launcher.wait(120) != 0
    assert "accelerate launch started one process, and MASTER_ADDR and" in launch.text
    assert not launch.steps
