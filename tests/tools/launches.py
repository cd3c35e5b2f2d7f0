"""Runs that a real `accelerate launch` starts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from forked import ARGUMENTS, SCRIPT, Run
from tiny import flags

from mtl_diffusion.checkpoints.store import load_latest


def heed_interrupts():
    """In the background of a shell the tests ignore SIGINT, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launch(Run):
    """A real `accelerate launch`, in a session of its own."""

    def __init__(self, folder, log, *launcher, **arguments):
        self.folder, self.log = Path(folder), Path(log)
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher]
        command += [str(SCRIPT), *flags(**ARGUMENTS | {"output_dir": folder} | arguments)]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        variables |= {"PYTHONPATH": str(SCRIPT.parents[1])}
        with open(self.log, "w") as file:
            self.launcher = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=os.environ | variables,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    def wait_for_training(self):
        """Ids of the processes that train, by rank."""

        def trains():
            assert self.launcher.poll() is None, self.text
            return re.search(r"[1-9]\d*\.?\d*k?/800k", self.text)

        self.wait_for(trains, 120)
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        pids = map(int, path.read_text().split())
        return [i for i in pids if b"train.py" in Path(f"/proc/{i}/cmdline").read_bytes()]

    def wait_for_end(self, pids):
        """Until none of the processes is left."""
        self.wait_for(lambda: not any(map(running, pids)), 120)
        self.launcher.wait(120)

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
