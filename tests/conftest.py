"""Tests need no network and write nowhere but to temporary folders."""

import os
import sys
import tempfile

import pytest

# The Hugging Face libraries read these when they are imported, so they are set before any test is.
_cache = tempfile.TemporaryDirectory(prefix="mtl_diffusion-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _cache.name,
    "HF_DATASETS_CACHE": os.path.join(_cache.name, "datasets"),
}

# Models of 8 channels lose more by waiting for other threads than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CLASSES = ("cat", "dog", "ship")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """torch's own generator gives each test the same numbers, alone and in any order."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def build_pipe():
    """Builds a pipeline of 8x8 pixels and 8 channels that is not trained, but does not say zero."""
    import torch
    from tiny import MODEL

    from mtl_diffusion.config import TrainConfig
    from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
    from mtl_diffusion.training.model import build_scheduler, build_tokenizer, build_unet

    def build(seed=0, tasks=tuple(TASKS), classes=CLASSES, **fields):
        config = TrainConfig(**MODEL | fields, strength_levels=5, reserved_tokens=3)
        tokenizer = build_tokenizer(tasks, classes, config.strength_levels, config.reserved_tokens)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet = build_unet(config, len(tokenizer.get_vocab()))
            torch.nn.init.normal_(unet.conv_out.weight, std=0.3)
        pipe = MultiTaskPipeline(unet.eval(), tokenizer, build_scheduler(config))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture(scope="session")
def pipe(build_pipe):
    """One for all tests: leave it as it is, and copy what you change."""
    return build_pipe()


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A whole run, of `forked.train`, that nothing interrupts."""
    from forked import SHORT, train

    code, run = train(tmp_path_factory.mktemp("reference") / "run", *SHORT)
    assert code == 0, run.text
    return run


@pytest.fixture
def no_validation(monkeypatch):
    """Runs in this process that do not validate."""
    from mtl_diffusion import loop

    monkeypatch.setattr(loop, "validate", lambda run, step, **options: None)


@pytest.fixture
def forking_python(tmp_path_factory):
    """The path of a file in place of Python's: see `forked.python_of_forks`."""
    from forked import python_of_forks

    with python_of_forks(tmp_path_factory.mktemp("python")) as python:
        yield python
