"""A process that dies by SIGKILL between any two operations on files."""

import multiprocessing
import os
import signal
import sys

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def die_at(operation: int, work, *arguments) -> int:
    """The exit code of a fork that is killed right before its n-th operation, if it has one.

    `work` runs no torch kernel that would start threads.
    """

    def run():
        left = operation

        def hook(name, _):
            nonlocal left
            if name in OPERATIONS:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        work(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode
