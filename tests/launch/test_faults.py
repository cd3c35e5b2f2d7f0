"""Faults that are injected into a run, and its state after them."""

import os
import re
import signal
import time
from functools import partial

import pytest
from forked import (
    SHORT,
    STEPS,
    Run,
    before_step,
    limit_before_step,
    no_export,
    poison,
    slow_steps,
    train,
)

from mtl_diffusion.checkpoints.store import load_latest
from mtl_diffusion.launch.stop import StopRequest

STOPPED = 75


def ends_like(reference, run, **arguments):
    """Run again, it ends with the bytes of the run that nothing interrupted."""
    code, run = train(run.folder, *SHORT, **arguments)
    assert code in (0, [0, 0]), run.text
    return run.state() == reference.state()


TWO = {"processes": 2, "per_device_batch_size": 2}


@pytest.fixture(scope="module")
def reference_of_two(tmp_path_factory):
    """A whole run of two processes, which accumulate."""
    code, run = train(tmp_path_factory.mktemp("two") / "run", *SHORT, **TWO)
    assert code == [0, 0], run.text
    return run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_and_saves_once(name, reference, tmp_path):
    """And the ones that follow it, every ten milliseconds until the process is gone, do no harm."""
    run = Run(tmp_path / "run", *SHORT, partial(slow_steps, 0.1))
    run.wait_for(lambda: run.steps == [3])
    while run.processes[0].is_alive():
        run.signal(signal.Signals[name])
        time.sleep(0.01)
    assert run.wait() == STOPPED, run.text
    assert f"stopped by {name} after step {run.steps[-1]}; run again to go on" in run.text
    assert len(run.steps) == 2 and 3 < run.steps[-1] <= 6 and "Traceback" not in run.text
    assert ends_like(reference, run)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_every_signal_asks_for_a_stop_unless_it_was_ignored(name):
    """As `nohup` does it."""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest(None) as stop:
            signal.raise_signal(number)
            assert not stop.due()
        signal.signal(number, signal.SIG_DFL)
        with StopRequest(None) as stop:
            signal.raise_signal(number)
            assert stop.due() and stop.reason == name
    finally:
        signal.signal(number, before)


def signal_myself(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_one_signalled_rank_stops_both_at_the_same_step(reference_of_two, tmp_path):
    signalled = partial(before_step, 4, signal_myself, only_rank=1)
    code, run = train(tmp_path / "run", *SHORT, signalled, **TWO)
    assert code == [STOPPED, STOPPED] and run.steps == [3, 5], run.text
    assert "stopped by another process after step 5" in run.text
    assert ends_like(reference_of_two, run, **TWO)


def test_the_wall_clock_budget(reference, tmp_path):
    slow = partial(slow_steps, 0.2)
    code, run = train(tmp_path / "run", *SHORT, slow, max_train_minutes=0.6 / 60)
    assert code == STOPPED and "stopped by max_train_minutes after step" in run.text
    assert ends_like(reference, run)


def reader_is_gone():
    """The output goes to a pipe without a reader, as after `2>&1 | tee` was interrupted."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def test_a_run_outlives_the_reader_of_its_output(reference, tmp_path):
    run = Run(tmp_path / "run", *SHORT, partial(before_step, 2, reader_is_gone))
    run.wait()  # its code may be Python's own, for a line that could not be printed at the end
    assert run.state() == reference.state()


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(reference_of_two, tmp_path):
    fault = partial(poison, 4, row=1, only_rank=1)
    code, run = train(tmp_path / "run", *SHORT, fault, **TWO)
    assert code == [1, 1] and run.steps == [3]
    messages = re.findall(r"FloatingPointError: (.*)", run.text)
    assert len(messages) == 2
    for message in messages:  # every rank knows where it was
        assert message.startswith("step 5: a loss or a gradient is not finite")
        assert re.search(r"process 1: (generate|inpaint|edit) at sigma [\d.]+: nan", message)
    for tensors in load_latest(run.folder / "checkpoints")[0].tensors.values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert ends_like(reference_of_two, run, **TWO)


FULL = partial(limit_before_step, 4, 30_000)


def test_a_periodic_save_that_fails_is_logged_and_tried_again(reference, tmp_path):
    code, run = train(tmp_path / "run", *SHORT, FULL, partial(limit_before_step, 7, -1))
    assert code == 0 and run.steps == [9, STEPS], run.text
    folder = run.folder / "checkpoints" / "step-6"
    assert (
        f"the checkpoint of step 6 could not be written: [Errno 27] File too large: '{folder}'. "
        "Older ones are untouched; training goes on, and the next one is tried"
    ) in run.text
    assert run.state() == reference.state()


def test_a_last_save_that_fails_ends_the_run(reference, tmp_path):
    code, run = train(tmp_path / "run", *SHORT, FULL)
    assert code == 1 and run.steps == [3]
    for step in (6, 9, 12):
        assert f"the checkpoint of step {step} could not be written: [Errno 27]" in run.text
    assert os.listdir(run.folder / "checkpoints") == ["step-3"]
    assert ends_like(reference, run)


def test_a_save_that_fails_at_a_stop_ends_all_ranks(tmp_path):
    stop = partial(before_step, 4, signal_myself)
    code, run = train(tmp_path / "run", *SHORT, FULL, stop, processes=2)
    assert code == [1, 1] and run.steps == [3], run.text
    assert "the main process could not write the checkpoint" in run.text


def curves_cannot_be_written():
    from accelerate import Accelerator

    def log(self, values, step=None):
        raise OSError(28, "No space left on device")

    Accelerator.log = log


def test_curves_and_pictures_that_cannot_be_written_cost_a_line(reference, tmp_path):
    code, run = train(tmp_path / "run", no_export, curves_cannot_be_written, logging_steps=5)
    assert code == 0 and run.state() == reference.state()
    assert "the curves could not be logged: [Errno 28] No space left on device" in run.text
    assert "the validation could not be written: [Errno 28]" in run.text
