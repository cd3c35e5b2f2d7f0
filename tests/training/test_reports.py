"""What a run tells between its steps, by one process and by two."""

import json
from functools import partial

import numpy as np
import pytest
from forked import no_export, rank, train
from PIL import Image

SHORT = {"max_train_steps": 2, "dropout": 0.0, "validation_images": 5}


def note_work(folder):
    """Each process writes down how many images pass its network while it validates."""
    import mtl_diffusion.train as loop
    import mtl_diffusion.training.reports as reports

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
