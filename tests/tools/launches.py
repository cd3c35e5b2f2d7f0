"""Runs that a real `accelerate launch` starts."""

import os
import re
import sys
from pathlib import Path

from accelerate.commands import accelerate_cli
from forked import ARGUMENTS, SCRIPT, Run, context, write_to
from tiny import flags

from mtl_diffusion.checkpoints.store import load_latest


class Launch(Run):
    """A real `accelerate launch`, in a session of its own; what it starts are real processes."""

    def __init__(self, folder, log, *launcher, **arguments):
        self.folder, self.log = Path(folder), Path(log)
        self.log.write_text("")
        flags_of_run = flags(**ARGUMENTS | {"output_dir": folder} | arguments)
        command = ["accelerate", "launch", *launcher, str(SCRIPT), *flags_of_run]
        self.launcher = context.Process(target=_launch, args=(command, log))
        self.launcher.start()
        self.processes = [self.launcher]

    def wait_for_training(self):
        """Ids of the processes that train, by rank."""

        def trains():
            assert self.launcher.is_alive(), self.text
            return re.search(r"[1-9]\d*\.?\d*k?/800k", self.text)

        self.wait_for(trains, 120)
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        pids = map(int, path.read_text().split())
        return [i for i in pids if b"train.py" in Path(f"/proc/{i}/cmdline").read_bytes()]

    def stop(self, number):
        """Sends a signal to the launcher, and waits until none of the processes is left."""
        pids = self.wait_for_training()
        os.kill(self.launcher.pid, number)
        self.wait_for(lambda: not any(map(running, pids)), 120)
        self.launcher.join(120)
        (step,) = self.steps  # saved once
        assert load_latest(self.folder / "checkpoints")[0].step == step
        return pids, step


def _launch(command, log):
    os.setsid()
    write_to(log)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(SCRIPT.parents[1])}
    sys.argv = command
    accelerate_cli.main()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
