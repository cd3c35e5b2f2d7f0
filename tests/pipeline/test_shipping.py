"""What `save_pretrained` writes loads anywhere, without this package, and draws the same."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from packaging.version import Version
from stranger import NOT_INSTALLED, files, sample_every_task

import mtl_diffusion.pipeline
from mtl_diffusion import MultiTaskPipeline

HUB = Path(mtl_diffusion.pipeline.__file__).parent
SOURCES = {path.name for path in HUB.glob("*.py")} - {"__init__.py"}


@pytest.fixture(scope="module")
def other_pipe(build_pipe):
    return build_pipe(seed=1, classes=("rose", "tulip"))


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


def test_what_is_written(folder):
    assert set(files(folder)) == SOURCES | {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    for name in SOURCES:
        assert (folder / name).read_bytes() == (HUB / name).read_bytes()


def test_the_index_names_stock_components_that_older_libraries_know(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert {name: value for name, value in index.items() if name != "_diffusers_version"} == {
        "_class_name": ["pipeline", "MultiTaskPipeline"],
        "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_installed_class_runs_no_code_of_the_folder(pipe, folder, tmp_path):
    trap = shutil.copytree(folder, tmp_path / "trap")
    for path in trap.glob("*.py"):
        path.write_text("raise SystemExit('ran')")
    loaded = MultiTaskPipeline.from_pretrained(trap)
    assert type(loaded) is MultiTaskPipeline
    images = sample_every_task(loaded)
    for task, expected in sample_every_task(pipe).items():
        # Not to the bit: loaded weights lie elsewhere in memory, and other CPU kernels run there.
        assert np.allclose(images[task], expected, atol=1e-4)


@pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.38"),
    reason="before 0.38 diffusers runs the code of a local folder unasked",
)
def test_the_folder_is_not_trusted_unasked(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


def test_saving_again_writes_the_same_bytes(folder, tmp_path):
    MultiTaskPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    before, after = files(folder), files(tmp_path / "again")
    assert set(before) == set(after)
    assert [name for name in before if before[name] != after[name]] == []
    assert not any(str(folder.parent).encode() in text for text in after.values())


def test_only_the_components_configurations_are_touched(pipe, tmp_path):
    mine = tmp_path / "notes" / "my_config.json"
    mine.parent.mkdir()
    mine.write_text("not even JSON")
    pipe.save_pretrained(tmp_path)
    assert mine.read_text() == "not even JSON"


def test_a_tokenizer_of_another_model_is_refused(folder, other_pipe, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    other_pipe.tokenizer.save_pretrained(mixed / "tokenizer")
    with pytest.raises(ValueError, match="the tokenizer has 15 words and the unet takes 16"):
        MultiTaskPipeline.from_pretrained(mixed)


ELSEWHERE = """
from diffusers import DiffusionPipeline
import numpy as np

first, second, out = sys.argv[1:]
pipes = {}
images = {}

def keep(name):
    for task, image in sample_every_task(pipes[name]).items():
        images[f"{name}/{len(images)}/{task}"] = image

pipes["first"] = DiffusionPipeline.from_pretrained(first, trust_remote_code=True)
keep("first")
pipes["second"] = DiffusionPipeline.from_pretrained(second, trust_remote_code=True)
keep("second")
keep("first")
third = f"{out}/third"
pipes["third"] = DiffusionPipeline.from_pretrained(third, trust_remote_code=True)
keep("third")
keep("second")
for name, scale in (("first", 2.0), ("second", 2.0), ("third", 1.25)):
    pipes[name](num_inference_steps=1)
    assert pipes[name].guidance_scale == scale, name  # the file's own default
    assert hasattr(pipes[name], "of_another_version") == (name == "third")
assert pipes["first"].class_names == ("cat", "dog", "ship")
assert pipes["second"].class_names == ("rose", "tulip")
np.savez(f"{out}/images.npz", **images)
for name, pipe in pipes.items():
    pipe.save_pretrained(f"{out}/{name}")
"""


@pytest.mark.slow
def test_three_folders_load_where_this_package_is_not_installed(pipe, other_pipe, folder, tmp_path):
    second = tmp_path / "second"
    other_pipe.save_pretrained(second)
    (second / "edit.py").write_text((second / "edit.py").read_text() + "# of another version\n")
    third = Path(shutil.copytree(folder, tmp_path / "third"))
    (third / "generate.py").write_text(
        (third / "generate.py").read_text().replace("guidance_scale = 2.0", "guidance_scale = 1.25")
    )
    (third / "pipeline.py").write_text(
        (third / "pipeline.py").read_text() + "MultiTaskPipeline.of_another_version = True\n"
    )
    saved = files(third)
    script = NOT_INSTALLED + inspect.getsource(sample_every_task) + ELSEWHERE
    env = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums are cut alike, to the last bit
    }
    command = [sys.executable, "-c", script, str(folder), str(second), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    here = {
        name: sample_every_task(MultiTaskPipeline.from_pretrained(path))
        for name, path in {"first": folder, "second": second}.items()
    }
    guided = MultiTaskPipeline.from_pretrained(folder)
    guided.set_progress_bar_config(disable=True)
    here["third"] = here["first"] | {
        "generate": guided(
            class_label=guided.class_names[-1],
            guidance_scale=1.25,
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=3,
            output_type="np",
        ).images
    }
    with np.load(tmp_path / "images.npz", allow_pickle=False) as images:
        assert len(images) == 5 * len(pipe.tasks)
        for key, image in images.items():
            name, _, task = key.split("/")
            assert np.array_equal(image, here[name][task]), key
    # Each writes the files it was loaded from, though both have the same module's name.
    assert files(tmp_path / "first") == files(folder)
    assert files(tmp_path / "second") == files(second)
    assert files(tmp_path / "third") == saved
