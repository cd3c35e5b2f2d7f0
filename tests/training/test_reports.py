"""What a run tells between its steps, by one process and by two."""

import json
from functools import partial

import numpy as np
import pytest
from forked import die, no_export, no_validation, rank, train
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHORT = {"max_train_steps": 2, "dropout": 0.0, "validation_images": 5}


def note_work(folder):
    """Each process writes down how many images pass its network while it validates."""
    import mtl_diffusion.training.reports as reports
    from mtl_diffusion import loop

    validate = loop.validate

    def noting(run, step, **options):
        images = []
        hook = run.best_unet.register_forward_hook(
            lambda _, given, __: images.append(len(given[0]))
        )
        validate(run, step, **options)
        hook.remove()
        (folder / f"rank-{rank()}").write_text(str(sum(images)))

    assert loop.validate is reports.validate
    loop.validate = noting


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By the number of processes: (the run, how many images each process has passed through)."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(str(processes))
        work = partial(note_work, folder)
        code, run = train(folder / "run", no_export, work, processes=processes, **SHORT)
        assert code in (0, [0, 0]), run.text
        passes = [int((folder / f"rank-{i}").read_text()) for i in range(processes)]
        found[processes] = run.folder / "validation", passes
    return found


def test_processes_share_a_validation(runs):
    (_, [whole]), (_, shares) = runs[1], runs[2]
    assert sum(shares) == whole
    assert min(shares) > 0.2 * whole  # one has the grids of two tasks, the other that of the third


def test_their_losses_and_grids_are_those_of_one(runs):
    (alone, _), (together, _) = runs[1], runs[2]
    tables = [json.loads((path / "step-2.json").read_text()) for path in (alone, together)]
    assert tables[0]["num_images"] == tables[1]["num_images"] == 5
    for task, levels in tables[0]["loss"].items():
        for level, entry in levels.items():
            assert tables[1]["loss"][task][level] == pytest.approx(entry, abs=3e-5)
            assert entry["zero"] > 0
    names = {path.name for path in alone.glob("*.png")}
    assert names == {f"step-2-{task}.png" for task in ("generate", "inpaint", "edit")}
    for name in names:
        one, two = (np.asarray(Image.open(path / name), int) for path in (alone, together))
        assert np.abs(one - two).max() <= 1  # rounding


def test_a_process_may_have_no_image_to_validate_on(tmp_path):
    """One image and three processes: the second has none, nor has the third."""
    code, run = train(
        tmp_path / "run", processes=3, max_train_steps=1, validation_images=1, total_batch_size=9
    )
    assert code == [0, 0, 0], run.text
    assert json.loads((run.folder / "validation" / "step-1.json").read_text())["num_images"] == 1
    assert (run.folder / "pipeline" / "model_index.json").exists()


# --- trackers -------------------------------------------------------------------------------------


def test_a_run_that_goes_on_replaces_its_curves(tmp_path):
    """Killed after step 5, it goes on from step 3: what is logged twice is shown once."""
    arguments = {"report_to": "tensorboard", "logging_steps": 1, "max_train_steps": 6}
    faults = (no_export, no_validation, partial(die, 5))
    assert train(tmp_path / "run", *faults, **arguments)[0] == -9
    code, run = train(tmp_path / "run", *faults[:2], **arguments, processes=2)
    assert code == [0, 0], run.text
    assert [path for path in (run.folder / "logs").rglob("*") if path.is_dir()] == [
        run.folder / "logs" / "mtl_diffusion"
    ]
    curves = EventAccumulator(str(run.folder / "logs" / "mtl_diffusion")).Reload()
    assert [event.step for event in curves.Scalars("learning_rate")] == [1, 2, 3, 4, 5, 6]
    summaries = curves.summary_metadata
    assert "_hparams_/session_start_info" in summaries


def wandb_without_a_key():
    """wandb's answer where it finds no key and no terminal to ask for one."""
    import importlib.machinery
    import sys
    import types

    def init(**options):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = init
    sys.modules["wandb"] = module
    import accelerate.tracking

    accelerate.tracking._available_trackers.append(accelerate.utils.LoggerType.WANDB)


def wandb_of_another_kind():
    import sys

    wandb_without_a_key()
    sys.modules["accelerate.tracking"]._available_trackers.pop()


@pytest.mark.parametrize(
    ("fault", "processes", "words"),
    [
        (wandb_without_a_key, 1, "No API key configured"),
        (wandb_without_a_key, 2, "No API key configured"),
        (wandb_of_another_kind, 1, "accelerate passes it over"),
    ],
)
def test_a_tracker_that_cannot_be_started_is_one_message(fault, processes, words, tmp_path):
    code, run = train(tmp_path / "run", fault, report_to="wandb", processes=processes)
    assert code in (2, [2, 2]) and "Traceback" not in run.text and run.steps == [], run.text
    assert f"report_to: found 'wandb', which could not be started: {words}" in run.text
