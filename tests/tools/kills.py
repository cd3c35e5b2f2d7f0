"""A run that is killed several times, and ends with the bytes of one that nothing interrupted."""

from functools import partial

from forked import SHORT, die, train


def check_killed_and_run_again(folder, kills, *faults, **arguments):
    """`kills`: (the step in which it is killed, the step after which it then had resumed or 0)."""
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
