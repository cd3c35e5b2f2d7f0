"""What a run tells between its steps, by one process and by two."""

from functools import partial

import pytest
from forked import die, no_export, no_validation, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_run_that_goes_on_replaces_its_curves(tmp_path):
    """Killed after step 5, it goes on from step 3: what is logged twice is shown once."""
    arguments = {"report_to": "tensorboard", "logging_steps": 1, "max_train_steps": 6}
    faults = (no_export, no_validation, partial(die, 5))
    assert train(tmp_path / "run", *faults, **arguments)[0] == -9
    code, run = train(tmp_path / "run", *faults[:2], **arguments, processes=2)
    assert code == [0, 0], run.text
    folder = run.folder / "logs" / "mtl_diffusion"
    assert [path for path in folder.parent.rglob("*") if path.is_dir()] == [folder]
    curves = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in curves.Scalars("learning_rate")] == [1, 2, 3, 4, 5, 6]


def wandb_without_a_key(known):
    """wandb's answer where it finds no key; unless it is `known`, accelerate passes it over."""
    import importlib.machinery
    import sys
    import types

    import accelerate.tracking

    def init(**options):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = init
    sys.modules["wandb"] = module
    if known:
        accelerate.tracking._available_trackers.append(accelerate.utils.LoggerType.WANDB)


@pytest.mark.parametrize(
    ("known", "processes", "words"),
    [(True, 2, "No API key configured"), (False, 1, "accelerate passes it over")],
)
def test_a_tracker_that_cannot_be_started_is_one_message(known, processes, words, tmp_path):
    fault = partial(wandb_without_a_key, known)
    code, run = train(tmp_path / "run", fault, report_to="wandb", processes=processes)
    assert code in (2, [2, 2]) and "Traceback" not in run.text and run.steps == [], run.text
    assert f"report_to: found 'wandb', which could not be started: {words}" in run.text
