"""What `save_pretrained` writes loads anywhere, without this package, and draws the same."""

import hashlib
import inspect
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from stranger import NOT_INSTALLED, files, run_elsewhere, sample_every_task

from mtl_diffusion import MultiTaskPipeline
from mtl_diffusion.pipeline.source import FILES, join

CODE = MultiTaskPipeline.code_files()
MODULE = MultiTaskPipeline.module_name()


def trusted(folder, **options):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)


def another_version(folder, target, before, after):
    """A copy whose code differs, saved as a package with that code would save it."""
    shutil.copytree(folder, target)
    text = (target / f"{MODULE}.py").read_text()
    assert text.count(before) == 1
    text = text.replace(before, after)
    module = f"pipeline_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    (target / f"{MODULE}.py").unlink()
    (target / f"{module}.py").write_text(text)
    for name in ("pipeline.py", "model_index.json"):
        (target / name).write_text((target / name).read_text().replace(MODULE, module))
    return target


def flat_layout(folder, target):
    """A copy with the code as it was saved before: short files that import one another."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("pipeline*.py"))
    names = set(FILES) - {"__init__.py", "pipeline.py"}
    imports = [f"from .{name.removesuffix('.py')} import *  # noqa" for name in sorted(names)]
    for name in names:
        (target / name).write_text(FILES[name])
    (target / "pipeline.py").write_text("\n".join([FILES["pipeline.py"], *imports]))
    index = (target / "model_index.json").read_text().replace(MODULE, "pipeline")
    (target / "model_index.json").write_text(index)
    return target


@pytest.fixture(scope="module")
def other_pipe(build_pipe):
    return build_pipe(seed=1, classes=("rose", "tulip"))


def test_what_is_written(folder):
    assert set(files(folder)) == set(CODE) | {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    for name, text in CODE.items():
        assert (folder / name).read_text() == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("from .b import b\n\ndef b():\n    pass\n", "b is defined by b.py and by a.py"),
        ("from .b import b\nfrom os import path as np\n", "np is defined by the import of .*numpy"),
        ("from .b import b as c\n", "a.py has `from .b import b as c`; write `from .file"),
        ("from . import b\n", "write `from .file import name`"),
        ("def f():\n    from .b import b\n", "a.py imports a sibling inside a function"),
    ],
)
def test_files_that_cannot_be_joined(text, words):
    with pytest.raises(ValueError, match=words):
        join({"a.py": text, "b.py": "import numpy as np\n\nb = 3\n"}, "a.py")


def test_the_index_names_stock_components_that_older_libraries_know(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert len(index.pop("_model_id")) == 12 and index.pop("_diffusers_version")
    assert index == {
        "_class_name": [MODULE, "MultiTaskPipeline"],
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


@pytest.fixture(scope="module")
def gentle(folder, tmp_path_factory):
    """The same model with the code of another version: generate's default guidance is less."""
    target = tmp_path_factory.mktemp("gentle") / "pipeline"
    return another_version(folder, target, "guidance_scale = 2.0", "guidance_scale = 1.25")


def default_guidance(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=1)
    return pipe.guidance_scale


def test_versions_live_side_by_side_and_can_be_pickled(folder, gentle, tmp_path):
    first, other = trusted(folder), trusted(gentle)
    flat = trusted(flat_layout(folder, tmp_path / "flat"))
    assert default_guidance(flat) == 2.0
    assert type(trusted(folder)) is type(first) is not type(other)
    for pipe, scale, where in ((first, 2.0, folder), (other, 1.25, gentle)):
        again = pickle.loads(pickle.dumps(pipe))
        assert type(again) is type(pipe) and default_guidance(again) == scale
        buffer = io.BytesIO()
        torch.save(pipe, buffer)
        buffer.seek(0)
        assert default_guidance(torch.load(buffer, weights_only=False)) == scale
        text = inspect.getsource(type(pipe))
        (file,) = where.glob("pipeline_*.py")
        assert text.startswith("class MultiTaskPipeline(") and text in file.read_text()
        pipe.save_pretrained(tmp_path / str(scale))
        assert files(tmp_path / str(scale)) == files(where)


def test_an_edited_file_is_read_anew(folder, tmp_path):
    edited = Path(shutil.copytree(folder, tmp_path / "edited"))
    assert default_guidance(trusted(edited)) == 2.0
    text = (edited / f"{MODULE}.py").read_text()
    (edited / f"{MODULE}.py").write_text(text.replace("guidance_scale = 2.0", "guidance_scale = 4"))
    assert default_guidance(trusted(edited)) == 4


def test_the_code_of_another_version_is_replaced(gentle, tmp_path):
    folder = Path(shutil.copytree(gentle, tmp_path / "saved"))
    mine = folder / "pipeline_training.py"
    mine.touch()
    MultiTaskPipeline.from_pretrained(folder).save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == {*CODE, mine.name}


ELSEWHERE = """
from multiprocessing import get_context

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
assert pipes["first"].class_names == ("cat", "dog", "ship")
assert pipes["second"].class_names == ("rose", "tulip")
np.savez(f"{out}/images.npz", **images)
for name, pipe in pipes.items():
    pipe.save_pretrained(f"{out}/{name}")
with get_context("spawn").Pool(1) as workers:  # a worker gets the pipeline by pickle
    for pipe in pipes.values():
        assert workers.apply(getattr, (pipe, "class_names")) == pipe.class_names
"""


@pytest.mark.slow
def test_three_folders_load_where_this_package_is_not_installed(
    pipe, other_pipe, folder, gentle, tmp_path
):
    second = tmp_path / "second"
    other_pipe.save_pretrained(second)
    third = Path(shutil.copytree(gentle, tmp_path / "third"))
    saved = files(third)
    code = inspect.getsource(sample_every_task) + ELSEWHERE
    threads = str(torch.get_num_threads())  # sums are cut alike, to the last bit
    run_elsewhere(code, folder, second, tmp_path, folder=tmp_path, OMP_NUM_THREADS=threads)

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
    # Each writes the files that it was loaded from.
    assert files(tmp_path / "first") == files(folder)
    assert files(tmp_path / "second") == files(second)
    assert files(tmp_path / "third") == saved


MANY = """
from concurrent.futures import ThreadPoolExecutor

from diffusers import DiffusionPipeline

folders, threads, loads = sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])

def guidance_of(i):
    pipe = DiffusionPipeline.from_pretrained(folders[i % 2], trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=1)
    return pipe.guidance_scale

assert [guidance_of(i) for i in range(2)] == [2.0, 1.25]
with ThreadPoolExecutor(threads) as pool:
    assert list(pool.map(guidance_of, range(loads))) == [2.0, 1.25] * (loads // 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes, threads, loads", [(1, 6, 36), (4, 1, 4)])
def test_many_loads_of_two_versions(folder, gentle, tmp_path, processes, threads, loads):
    """Processes have a cache of modules of their own, as docs/publishing.md says."""
    command = [sys.executable, "-c", NOT_INSTALLED + MANY, str(folder), str(gentle)]
    running = [
        subprocess.Popen(
            [*command, str(threads), str(loads)],
            cwd=tmp_path,
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / f"modules {i}")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error
