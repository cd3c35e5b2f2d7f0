"""scripts/flagship.sh, from nothing to both models with their cards, at toy size."""

import os
import subprocess
from pathlib import Path

import pytest
from tiny import MODEL, flags, write_shapes

from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

ROOT = Path(__file__).parents[2]
NAMES = ("mtl-cifar10", "mtl-cifar10-fewstep")


@pytest.fixture
def flagship(forking_python):
    def run(*steps, **variables):
        command = ["bash", ROOT / "scripts/flagship.sh", *steps]
        environment = os.environ | {"PYTHON": forking_python} | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def words(**fields):
    """Flags in one variable, which the script splits at spaces."""
    return " ".join(flags(**fields)).replace(", ", ",")


@pytest.mark.slow
def test_one_command_makes_both_models_and_what_is_done_is_not_done_again(flagship, tmp_path):
    data = write_shapes(tmp_path / "data", num_train=256, num_test=40)
    same = MODEL | {"num_threads": 1, "report_to": "none", "validation_images": 4}
    few = {"max_train_steps": 2, "mixed_precision": "no"}
    few |= {"image_column": "null", "label_column": "null", "total_batch_size": 8}
    variables = {
        "OUT": str(tmp_path / "out"),
        "DATA": f"--dataset_name {data}",
        "RESOLUTION": "8",
        "EPOCHS": "1",
        "CLASSIFIER": str(tmp_path / "judge"),
        "CONFIG": "configs/quickstart.yaml",
        "TRAIN_FLAGS": words(**same, max_train_steps=2, num_attention_heads=1),
        "FEW_FLAGS": words(**same, **few, edit_pairs=8),
        "MATCH_FLAGS": words(**same, **few, lr_warmup_steps=1),
        "FIGURES": "--preset smoke --num_images 10 --edit_images 4 --inpaint_images 2 "
        "--num_strengths 2 --reference_images 40 --batch_size 10",
    }
    first = flagship(**variables)
    assert first.returncode == 0 and "Training the classifier" in first.stderr, first.stderr
    for name in NAMES:
        folder = tmp_path / "out" / name
        card = (folder / "README.md").read_text()
        assert "**Samples**" in card and "**Edits**" in card and "gallery.png" in card
        assert (folder / "gallery.png").exists()
        pipe = MultiTaskPipeline.from_pretrained(folder)
        assert (pipe.chains is None) == (name == NAMES[0])

    again = flagship("classifiers", "cards", **variables)
    assert again.returncode == 0, again.stderr
    assert "Training the classifier" not in again.stderr
    for name in NAMES:
        assert "**Samples**" in (tmp_path / "out" / name / "README.md").read_text()


def test_a_step_that_is_not_there_is_refused(flagship):
    refused = flagship("figure")
    assert refused.returncode == 2
    assert "there is no step 'figure'; the steps are: classifiers train" in refused.stderr
