"""Real runs of the scripts that share one start-up, and the faults that are done to them.

A server imports torch and this package once; each run is a fork of it.
"""

import hashlib
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from small_checkpoints import steps
from tiny import MODEL, few_steps, flags
from tqdm import tqdm

from mtl_diffusion.checkpoints.saver import THREAD

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
STEPS = 12
# Sixty images and batches of eight: an epoch ends within step 7, and checkpoints lie around it.
ARGUMENTS = {
    **MODEL,
    "dropout": 0.1,
    "total_batch_size": 8,
    "max_train_steps": STEPS,
    "checkpointing_steps": 3,
    "validation_images": 4,
    "report_to": "none",
    "num_threads": 1,
}
STATE = ("unet", "ema", "optimizer", "weighting")

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["mtl_diffusion.loop", "mtl_diffusion.config.command_line", "forked"]
)


class Run:
    """A run in processes of its own; `wait` returns their exit codes."""

    def __init__(self, folder, *faults, processes=1, **arguments):
        """faults: callables that are called in each process before the script is."""
        self.folder, self.log = Path(folder), Path(f"{folder}.log")
        argv = flags(**{"output_dir": folder} | ARGUMENTS | arguments)
        self.log.write_text("")
        self.processes = start([SCRIPT, *argv], self.log, processes, (in_a_hurry, *faults))

    def wait(self, seconds=120):
        """Exit codes, -9 for a SIGKILL; one code if there is one process."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, f"still running after {seconds} s: {self.text}"
        return codes[0] if len(codes) == 1 else codes

    def signal(self, number):
        """To its first process, which may have ended by itself in the meantime."""
        with suppress(ProcessLookupError):
            os.kill(self.processes[0].pid, number)

    def wait_for(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.002)

    @property
    def text(self):
        return self.log.read_text()

    @property
    def steps(self):
        """Of its checkpoints, complete or not."""
        return steps(self.folder / "checkpoints")

    def state(self, step=STEPS):
        """File name -> sha256, of each file of tensors of a checkpoint, which has to be there."""
        files = [*(self.folder / "checkpoints" / f"step-{step}").glob("*.safetensors")]
        assert files, f"there is no step {step} but {self.steps}: {self.text}"
        return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(argv, log, processes=1, faults=()):
    """A script and its flags in forks, with the variables of their ranks if there are several."""
    variables = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": str(free_port())}
    variables |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    started = []
    for rank in range(processes):
        own = variables | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        given = (list(map(str, argv)), log, faults, own if processes > 1 else {})
        started.append(context.Process(target=_child, args=given))
        started[-1].start()
    return started


def call(argv, log, processes=1):
    """Exit codes of a script that ends by itself; its output is appended to the log."""
    started = start(argv, log, processes)
    for process in started:
        process.join()
    return [process.exitcode for process in started]


@contextmanager
def python_of_forks(folder):
    """A file in place of Python's: the scripts that others start with it are forks, too."""
    asked, answered, log, python = (
        folder / name for name in ("asked", "answered", "log", "python")
    )
    os.mkfifo(asked)
    os.mkfifo(answered)
    lines = [f'printf "%s\\0" "$@" > {asked}', f"code=$(cat {answered})", f"cat {log} >&2"]
    python.write_text("\n".join(["#!/usr/bin/env bash", *lines, "exit $code"]))
    python.chmod(0o755)

    def serve():
        while argv := asked.read_text().split("\0")[:-1]:
            log.write_text("")
            answered.write_text(str(*call(argv, log)))

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        yield str(python)
    finally:
        asked.write_text("")
        server.join()


def train(folder, *faults, **arguments):
    """A run to its end: (exit code, Run)."""
    run = Run(folder, *faults, **arguments)
    return run.wait(), run


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(argv, log, faults, variables):
    os.environ |= variables
    write_to(log)
    os.chdir(SCRIPT.parents[1])
    # Under nohup, or in the background of a shell, the tests ignore signals that a run must heed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own is one of several processes, which a kill leaks
    for fault in faults:
        fault()
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def write_to(log):
    """The output of this process goes into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def rank():
    return int(os.environ.get("RANK", 0))


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


# --- faults -------------------------------------------------------------------------------------


def in_a_hurry():
    """Sixty images, and pictures in three steps."""
    import mtl_diffusion.data.source as source

    source.shapes = partial(source.shapes, num_train=60, num_test=8)
    few_steps(setattr)


def leave_out(name):
    import mtl_diffusion.loop

    setattr(mtl_diffusion.loop, name, lambda *arguments, **options: None)


SHORT = no_validation, no_export = partial(leave_out, "validate"), partial(leave_out, "export")


def before_step(number, what, only_rank=None, beside=False):
    """Calls `what` before that step, or each; first nothing is being written, or `beside`."""
    import mtl_diffusion.loop

    train_step = mtl_diffusion.loop.train_step

    def step(run, index, meter):
        if number in (index, None) and only_rank in (None, rank()):
            for thread in threading.enumerate():
                if thread.name == THREAD and not beside:
                    thread.join()
            what()
        train_step(run, index, meter)

    mtl_diffusion.loop.train_step = step


def die(number, only_rank=None):
    before_step(number, kill_myself, only_rank)


def slow_steps(seconds):
    before_step(None, partial(time.sleep, seconds), beside=True)


def limit_before_step(number, size):
    """No file may grow beyond `size` bytes: a write then fails with EFBIG, as on a full disk."""
    limit = (resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    before_step(number, partial(resource.setrlimit, *limit))


def poisoned(forward, part, row=0):
    """`Objective.forward`, but the loss of one sample is NaN, or a gradient infinite."""

    def poison(self, *arguments, **options):
        plain, weighted = forward(self, *arguments, **options)
        if part == "gradient":
            weighted.register_hook(lambda gradient: gradient * float("inf"))
            return plain, weighted
        factor = plain.new_ones(len(plain))
        factor[row] = float("nan")
        return plain * factor, weighted * factor

    return poison


def poison(step, row=0, only_rank=0):
    """The loss of a sample of each microbatch is NaN from that step on."""
    from mtl_diffusion.training.losses import Objective

    bad = poisoned(Objective.forward, "loss", row)
    before_step(step, partial(setattr, Objective, "forward", bad), only_rank)


def check_killed_and_run_again(folder, kills, *faults, **arguments):
    """A run that is killed several times ends with the bytes of one that nothing interrupted.

    kills: (the step in which it is killed, the step after which it then had resumed or 0).
    """
    faults = (*SHORT, *faults)
    code, whole = train(folder / "whole", *faults, **arguments)
    assert code in (0, [0, 0]), whole.text
    for step, resumed in kills:
        code, run = train(folder / "killed", *faults, partial(die, step), **arguments)
        assert code in (-9, [-9, -9]), run.text
        assert (f"resuming after step {resumed}" in run.text) == (resumed > 0), run.text
    code, run = train(folder / "killed", *faults, **arguments)
    assert code in (0, [0, 0]) and "resuming after step" in run.text, run.text
    assert run.state() == whole.state()
