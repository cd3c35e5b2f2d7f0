"""Several processes, and the launcher that started them. docs/reliability.md lists these tests."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from forked import (
    ARGUMENTS,
    SCRIPT,
    SHORT,
    Run,
    die,
)

from mtl_diffusion.checkpoints.store import load_latest
from mtl_diffusion.data.shapes import shapes

STOPPED = 75


def test_a_rank_that_dies_ends_the_other(tmp_path):
    """Without a launcher; with gloo, whose connection breaks."""
    run = Run(tmp_path / "run", *SHORT, partial(die, 4, only_rank=1), processes=2)
    run.processes[1].join(60)
    died = time.monotonic()
    codes = run.wait()
    print(f"the other ended {time.monotonic() - died:.1f} s later")
    assert codes[1] == -9 and codes[0] not in (0, STOPPED) and time.monotonic() - died < 30
    assert run.steps == [3]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Sixty images in folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, rows in shapes(8, num_train=60, num_test=10).items():
        for i, row in enumerate(rows):
            place = folder / split / str(row["label"])
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{i}.png")
    return folder


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

    def wait_for_end(self, pids, seconds=60):
        """Seconds until none of the processes is left."""
        started = time.monotonic()
        while any(running(pid) for pid in pids) or self.launcher.poll() is None:
            if time.monotonic() - started > seconds:
                os.killpg(self.launcher.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {self.text}")
            time.sleep(0.02)
        return time.monotonic() - started


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TWO = ("--multi_gpu", "--num_processes=2", "--main_process_port=0")


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_one_process_under_a_launcher_that_dies(number, pictures, tmp_path):
    """The launcher is gone at once; the trainer notices, saves and ends. SIGINT goes to both."""
    launch = Launch(tmp_path / "run", pictures, "--num_processes=1")
    pids = launch.wait_for_training()
    assert len(pids) == 1
    if number == "SIGINT":
        os.killpg(launch.launcher.pid, signal.SIGINT)
    else:
        launch.launcher.send_signal(signal.Signals[number])
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after {number}")
    assert seconds < 20 and len(launch.steps) == 1
    reason = "SIGINT" if number == "SIGINT" else "the end of its launcher"
    assert f"stopped by {reason} after step {launch.steps[0]}" in launch.text
    assert load_latest(launch.folder / "checkpoints")[0].step == launch.steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_two_processes_under_a_launcher_that_is_told_to_stop(number, pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, *TWO)
    pids = launch.wait_for_training()
    assert len(pids) == 2
    if number == "SIGINT":
        os.killpg(launch.launcher.pid, signal.SIGINT)
    else:
        launch.launcher.send_signal(signal.Signals[number])
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after {number}, the launcher with {launch.launcher.returncode}")
    assert seconds < 30 and launch.launcher.returncode != 0 and len(launch.steps) == 1, launch.text
    assert load_latest(launch.folder / "checkpoints")[0].step == launch.steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_launch(rank, pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, *TWO)
    pids = launch.wait_for_training()
    os.kill(pids[rank], signal.SIGKILL)
    seconds = launch.wait_for_end(pids)
    print(f"ended {seconds:.1f} s after rank {rank}, with {launch.launcher.returncode}")
    assert seconds < 45 and launch.launcher.returncode not in (0, None)


@pytest.mark.slow
def test_the_launch_that_starts_one_process_instead_of_two(pictures, tmp_path):
    launch = Launch(tmp_path / "run", pictures, "--cpu", "--num_processes=2")
    assert launch.launcher.wait(120) != 0
    assert "accelerate launch started one process, and MASTER_ADDR and" in launch.text
    assert not launch.steps
