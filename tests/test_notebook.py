"""notebooks/tour.ipynb runs from its first cell to its last, and its own assertions hold."""

import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TOUR = NOTEBOOKS / "tour.ipynb"


# Comes before the first cell: fewer steps, and no validation, which has its own tests.
IN_A_HURRY = """
from dataclasses import replace

import mtl_diffusion.loop
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

MultiTaskPipeline.default_steps = lambda self, task: 3
mtl_diffusion.loop.validate = lambda run, step, **options: None
mtl_diffusion.train = lambda config: mtl_diffusion.loop.train(replace(config, max_train_steps=20))
"""


@pytest.mark.slow
def test_the_tour_runs(monkeypatch):
    notebook = nbformat.read(TOUR, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_A_HURRY))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent), prepend=os.pathsep)
    options = {"timeout": 900, "resources": {"metadata": {"path": str(NOTEBOOKS)}}}
    nbclient.NotebookClient(notebook, **options).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 4


def test_the_tour_that_is_shown_was_run():
    """From the first cell to the last."""
    notebook = nbformat.read(TOUR, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert TOUR.stat().st_size < 400_000
