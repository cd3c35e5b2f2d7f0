"""What `save_pretrained` writes loads anywhere, without this package, and draws the same.

OTHER_PYTHON=path/to/python python -m pytest tests/pipeline/test_shipping.py -k others

runs it between two environments, too: `make test-oldest` has the oldest and the newest versions.
"""

import hashlib
import inspect
import json
import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from stranger import files, run_elsewhere

from mtl_diffusion import MultiTaskPipeline
from mtl_diffusion.pipeline.source import join, source

MODULE = MultiTaskPipeline.module_name()
OTHER_PYTHON = os.environ.get("OTHER_PYTHON")
NO_OTHER = "OTHER_PYTHON is not set: the Python of an environment with other versions"


trusted = partial(DiffusionPipeline.from_pretrained, trust_remote_code=True)


def sample_every_task(pipe) -> dict:
    """An image of each task, as an array; `inspect.getsource` brings it to other processes."""
    import numpy as np
    import torch

    pipe.set_progress_bar_config(disable=True)
    random = np.random.default_rng(0)
    good = {
        "image": random.random((8, 8, 3), dtype=np.float32),
        "mask_image": random.random((8, 8)) > 0.5,
        "class_label": pipe.class_names[-1],
    }
    more = {"generate": {"class_label": 0}, "edit": {"image_guidance_scale": 1.5}}
    return {
        task: pipe(
            task=task,
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=3,
            output_type="np",
            **{name: good[name] for name in pipe.spec(task).required} | more.get(task, {}),
        ).images
        for task in pipe.tasks
    }


def scale_of(pipe):
    """What tells the two versions of the code apart: generate's default guidance."""
    return pipe.default_guidance("generate")


@pytest.fixture(scope="module")
def gentle(folder, tmp_path_factory):
    """The same model with the code of another version: generate's default guidance is less."""
    target = tmp_path_factory.mktemp("gentle") / "pipeline"
    shutil.copytree(folder, target)
    text = (target / f"{MODULE}.py").read_text()
    assert text.count("guidance_scale = 2.0") == 1
    text = text.replace("guidance_scale = 2.0", "guidance_scale = 1.25")
    module = f"pipeline_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    (target / f"{MODULE}.py").unlink()
    (target / f"{module}.py").write_text(text)
    index = target / "model_index.json"
    index.write_text(index.read_text().replace(MODULE, module))
    return target


def test_what_is_written(folder):
    assert set(files(folder)) == {
        f"{MODULE}.py",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert (folder / f"{MODULE}.py").read_text() == source()
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {  # stock components that older libraries know
        "_class_name": [MODULE, "MultiTaskPipeline"],
        "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_name_that_two_files_define_is_refused():
    files = {"a.py": "from .b import b\n\ndef b():\n    pass\n", "b.py": "import os\n\nb = 3\n"}
    with pytest.raises(ValueError, match=r"b is defined by b\.py and by a\.py"):
        join(files, "a.py")


def test_the_installed_class_runs_no_code_of_the_folder(pipe, folder, tmp_path):
    trap = shutil.copytree(folder, tmp_path / "trap")
    for path in trap.glob("*.py"):
        path.write_text("raise SystemExit('ran')")
    loaded = MultiTaskPipeline.from_pretrained(trap)
    assert type(loaded) is MultiTaskPipeline
    images, expected = sample_every_task(loaded), sample_every_task(pipe)
    # Not to the bit: loaded weights lie elsewhere in memory, and other CPU kernels run there.
    assert all(np.allclose(images[task], expected[task], atol=1e-4) for task in expected)


def test_versions_live_side_by_side_and_can_be_pickled(folder, gentle, tmp_path):
    first, other = trusted(folder), trusted(gentle)
    assert type(trusted(folder)) is type(first) is not type(other)
    for pipe, scale, where in ((first, 2.0, folder), (other, 1.25, gentle)):
        again = pickle.loads(pickle.dumps(pipe))  # what this test wrote itself
        assert type(again) is type(pipe) and scale_of(again) == scale
        text = inspect.getsource(type(pipe))
        (file,) = where.glob("pipeline_*.py")
        assert text.startswith("class MultiTaskPipeline(") and text in file.read_text()
        pipe.save_pretrained(tmp_path / str(scale))
        assert files(tmp_path / str(scale)) == files(where)


def test_an_edited_file_is_read_anew(folder, tmp_path):
    edited = Path(shutil.copytree(folder, tmp_path / "edited"))
    assert scale_of(trusted(edited)) == 2.0
    text = (edited / f"{MODULE}.py").read_text()
    (edited / f"{MODULE}.py").write_text(text.replace("guidance_scale = 2.0", "guidance_scale = 4"))
    assert scale_of(trusted(edited)) == 4


def test_the_code_of_another_version_is_replaced(gentle, tmp_path):
    folder = Path(shutil.copytree(gentle, tmp_path / "saved"))
    mine = folder / "pipeline_training.py"
    mine.touch()
    (folder / "pipeline.py").touch()  # of an export before 0.2
    MultiTaskPipeline.from_pretrained(folder).save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == {f"{MODULE}.py", mine.name}


ELSEWHERE = """
import json, sys
from multiprocessing import get_context

import diffusers, numpy as np, transformers
from diffusers import DiffusionPipeline

folders, out = dict(zip(("first", "second", "gentle"), sys.argv[1:4])), sys.argv[4]
scales = {"first": 2.0, "second": 2.0, "gentle": 1.25}
pipes, images = {}, {}

def load(name):
    pipe = DiffusionPipeline.from_pretrained(folders[name], trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def keep(name):
    for task, image in sample_every_task(pipes[name]).items():
        images[f"{name}/{len(images)}/{task}"] = image

for name in folders:  # the earlier ones still draw after the later ones are loaded
    pipes[name] = load(name)
    keep("first")
keep("second")
assert {name: pipe.default_guidance("generate") for name, pipe in pipes.items()} == scales
assert pipes["first"].class_names == ("cat", "dog", "ship")
assert pipes["second"].class_names == ("rose", "tulip")
np.savez(f"{out}/images.npz", **images)
for name, pipe in pipes.items():
    pipe.save_pretrained(f"{out}/{name}")
with get_context("spawn").Pool(1) as workers:  # a worker gets the pipeline by pickle
    for pipe in pipes.values():
        assert workers.apply(getattr, (pipe, "class_names")) == pipe.class_names
print(json.dumps([diffusers.__version__, transformers.__version__]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "python",
    [
        pytest.param(sys.executable, id="these versions"),
        pytest.param(
            OTHER_PYTHON, id="others", marks=pytest.mark.skipif(not OTHER_PYTHON, reason=NO_OTHER)
        ),
    ],
)
def test_three_folders_load_where_this_package_is_not_installed(
    build_pipe, folder, gentle, tmp_path, python
):
    build_pipe(seed=1, classes=("rose", "tulip")).save_pretrained(tmp_path / "given")
    folders = {"first": folder, "second": tmp_path / "given", "gentle": gentle}
    code = inspect.getsource(sample_every_task) + ELSEWHERE
    given = (code, *folders.values(), tmp_path)
    threads = str(torch.get_num_threads())  # sums are cut alike, to the last bit
    printed = run_elsewhere(
        *given, folder=tmp_path, python=os.path.abspath(python), OMP_NUM_THREADS=threads
    )
    here = {
        name: sample_every_task(MultiTaskPipeline.from_pretrained(folders[name]))
        for name in ("first", "second")
    }
    others = python == OTHER_PYTHON
    with np.load(tmp_path / "images.npz", allow_pickle=False) as images:
        assert len(images) == 4 * len(here["first"])
        for key, image in images.items():
            name, _, task = key.split("/")
            tolerance = 1e-4 if others else 0
            assert np.allclose(image, here[name][task], atol=tolerance, rtol=0), key
    # Each writes the files that it was loaded from; other versions write other configurations.
    for name, before in folders.items():
        after, ends = files(tmp_path / name), (".py", ".safetensors") if others else ""
        kept = {path: text for path, text in files(before).items() if path.endswith(ends)}
        assert len(kept) >= 2 and kept == {path: after[path] for path in kept}, name
        assert others or after.keys() == kept.keys()
    if others:
        versions = zip(json.loads(printed.splitlines()[-1]), (diffusers, transformers), strict=True)
        assert all(theirs != ours.__version__ for theirs, ours in versions)
        for load in (MultiTaskPipeline.from_pretrained, trusted):
            for task, image in sample_every_task(load(tmp_path / "first")).items():
                np.testing.assert_allclose(image, here["first"][task], atol=1e-4, err_msg=task)
