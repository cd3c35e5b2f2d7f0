"""Between the versions of two environments: `make test-oldest` has the oldest and the newest.

OTHER_PYTHON=path/to/python python -m pytest tests/pipeline/test_versions.py
"""

import inspect
import json
import os

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from stranger import files, run_elsewhere, sample_every_task

from mtl_diffusion import MultiTaskPipeline

OTHER_PYTHON = os.environ.get("OTHER_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        OTHER_PYTHON is None,
        reason="OTHER_PYTHON is not set: the Python of an environment with other versions",
    ),
]

# In the other environment: loads what this one saved, draws, saves it.
THERE = """
import json, sys
import diffusers, numpy as np, transformers
from diffusers import DiffusionPipeline

folder, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
np.savez(f"{out}/images.npz", **sample_every_task(pipe))
pipe.save_pretrained(f"{out}/saved")
print(json.dumps({"diffusers": diffusers.__version__, "transformers": transformers.__version__}))
"""


@pytest.fixture(scope="module")
def there(folder, tmp_path_factory):
    """What the other environment made of it: images.npz and saved/."""
    out = tmp_path_factory.mktemp("there")
    code = inspect.getsource(sample_every_task) + THERE
    printed = run_elsewhere(code, folder, out, folder=out, python=os.path.abspath(OTHER_PYTHON))
    versions = json.loads(printed.splitlines()[-1])
    import diffusers
    import transformers

    assert versions["diffusers"] != diffusers.__version__
    assert versions["transformers"] != transformers.__version__
    return out


@pytest.fixture(scope="module")
def expected(pipe):
    return sample_every_task(pipe)


def test_the_others_draw_the_same_pixels(there, expected):
    with np.load(there / "images.npz", allow_pickle=False) as images:
        assert set(images) == set(expected)
        for task, image in images.items():
            np.testing.assert_allclose(image, expected[task], atol=1e-4, err_msg=task)


@pytest.mark.parametrize("load", [MultiTaskPipeline, DiffusionPipeline])
def test_what_the_others_saved_draws_the_same_pixels_here(there, expected, load):
    trust = {} if load is MultiTaskPipeline else {"trust_remote_code": True}
    images = sample_every_task(load.from_pretrained(there / "saved", **trust))
    for task, image in images.items():
        np.testing.assert_allclose(image, expected[task], atol=1e-4, err_msg=task)


def test_weights_and_sources_pass_unchanged(folder, there):
    before, after = files(folder), files(there / "saved")
    same = [name for name in before if name.endswith((".py", ".safetensors"))]
    assert len(same) == 3
    assert [name for name in same if before[name] != after[name]] == []
