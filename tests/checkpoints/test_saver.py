"""Checkpoints are written beside the training, and hold what was when they were begun."""

import threading
import time
from functools import partial

from forked import SHORT, before_step, die, kill_myself, train


def write_of(step, what):
    """Calls `what` before the checkpoint of that step is written, in the thread that writes it."""
    import mtl_diffusion.checkpoints.saver as module

    write = module.write

    def changed(folder, checkpoint, total_limit, keep):
        if checkpoint.step == step:
            what()
        return write(folder, checkpoint, total_limit, keep)

    module.write = changed


def write_waits_for_step(step, later):
    begun = threading.Event()
    write_of(step, partial(begun.wait, 60))
    before_step(later, begun.set, beside=True)


def test_training_goes_on_beside_a_save_which_holds_what_was_then(reference, tmp_path):
    """The writing of step 6 begins when step 8 does; whoever goes on from there ends the same."""
    code, run = train(
        tmp_path / "run", *SHORT, partial(write_waits_for_step, 6, 8), partial(die, 9)
    )
    assert code == -9 and run.steps == [6, 9], run.text
    arguments = {"resume_from_checkpoint": run.folder / "checkpoints" / "step-6"}
    code, branch = train(tmp_path / "branch", *SHORT, **arguments)
    assert code == 0 and branch.state() == reference.state()


def die_while_it_writes(step, at):
    write_of(step, partial(time.sleep, 60))
    before_step(at, kill_myself, beside=True)


def test_killed_beside_a_save_it_goes_on_from_the_one_before(reference, tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(die_while_it_writes, 6, 8))
    assert code == -9 and run.steps == [3], run.text
    code, run = train(run.folder, *SHORT)
    assert code == 0 and "resuming after step 3" in run.text and run.state() == reference.state()


def bug():
    raise RuntimeError("a bug")


def test_a_bug_in_the_thread_that_saves_ends_the_run(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(write_of, 6, bug))
    assert code == 1 and run.steps == [3], run.text
    assert "RuntimeError: a bug" in run.text
