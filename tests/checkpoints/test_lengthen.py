"""A run of warmup_stable_decay goes on from before its decay when it is given more steps."""

import shutil
from functools import partial

from forked import SHORT, die, train

PLATEAU = {
    "lr_scheduler": "warmup_stable_decay",
    "lr_decay": 0.5,
    "lr_warmup_steps": 2,
    "checkpoints_total_limit": 1,
}


def test_a_lengthened_run_is_the_longer_run(tmp_path):
    whole = train(tmp_path / "whole", *SHORT, max_train_steps=12, **PLATEAU)[1]
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=8, **PLATEAU)
    # The decay begins after step 4, and that checkpoint is kept beside the newest one.
    assert code == 0 and run.steps == [4, 8], run.text

    code, run = train(tmp_path / "run", *SHORT, partial(die, 5), max_train_steps=12, **PLATEAU)
    assert code == -9 and "it goes on from step 4, before the decay" in run.text
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 0, run.text
    assert run.state(12) == whole.state(12)

    # Run again with its own length it has nothing left to do.
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 0 and "resuming after step 12" in run.text


def test_without_a_checkpoint_from_before_the_decay_it_is_refused(tmp_path):
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=8, **PLATEAU)
    assert code == 0
    shutil.rmtree(run.folder / "checkpoints" / "step-4")
    code, run = train(tmp_path / "run", *SHORT, max_train_steps=12, **PLATEAU)
    assert code == 2 and "max_train_steps: found 12; step 8 is in the decay" in run.text
    assert run.steps == [8]
