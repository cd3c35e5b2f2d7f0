"""Runs that a real `accelerate launch` starts."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from forked import ARGUMENTS, SCRIPT

from mtl_diffusion.checkpoints.store import load_latest


def heed_interrupts():
    """In the background of a shell the tests ignore SIGINT, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launch:
    """A real `accelerate launch`, in a session of its own."""

    def __init__(self, folder, log, *launcher, **arguments):
        given = ARGUMENTS | {"output_dir": folder} | arguments
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher]
        command += [SCRIPT, *(f"--{name}={value}" for name, value in given.items())]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        self.folder, self.log = Path(folder), Path(log)
        with open(self.log, "w") as file:
            self.launcher = subprocess.Popen(
                [str(word) for word in command],
                stdout=file,
                stderr=file,
                env=os.environ | variables | {"PYTHONPATH": str(SCRIPT.parents[1])},
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    @property
    def text(self):
        return self.log.read_text()

    @property
    def steps(self):
        return [int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")]

    def wait_for_training(self):
        """Ids of the processes that train, by rank."""
        deadline = time.monotonic() + 120
        while not re.search(r"[1-9]\d*\.?\d*k?/800k", self.text):
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.05)
        path = f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children"
        return [
            int(pid)
            for pid in Path(path).read_text().split()
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def wait_for_end(self, pids):
        """Until none of the processes is left."""
        deadline = time.monotonic() + 120
        while any(running(pid) for pid in pids) or self.launcher.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.text}"
            time.sleep(0.02)

    def stop(self, name):
        """Sends a signal, SIGINT to the whole group as a terminal does, and waits for the end."""
        pids = self.wait_for_training()
        send = os.killpg if name == "SIGINT" else os.kill
        send(self.launcher.pid, signal.Signals[name])
        self.wait_for_end(pids)
        (step,) = self.steps  # saved once
        assert load_latest(self.folder / "checkpoints")[0].step == step
        return pids, step


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
