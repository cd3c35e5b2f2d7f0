"""Short runs of real training, in this process, of models with 8 channels on images of 8 pixels."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
from tiny import RUN, own_state, unet_of, write_shapes

from mtl_diffusion import loop
from mtl_diffusion.config import TrainConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with 60 training and 16 test images of five classes of shapes."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 60, 16)


@pytest.fixture(scope="session")
def base(data):
    return TrainConfig(dataset_name=data, **RUN)


@pytest.fixture
def config(base, tmp_path):
    return replace(base, output_dir=str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def one_state_a_test():
    """accelerate keeps its state for the whole process: each test gets a new one."""
    with own_state():
        yield


@contextmanager
def _steps_only():
    """Runs that neither validate nor export."""
    with ExitStack() as patches:
        for name in ("validate", "export"):
            patches.enter_context(patch.object(loop, name, lambda *run, **options: None))
        yield


@pytest.fixture
def steps_only():
    with _steps_only():
        yield


@pytest.fixture(scope="module")
def weights(base, tmp_path_factory):
    """Trains the base with changes, and gives the UNet's weights. No run is repeated."""
    known = {}

    def trained(**changes):
        key = repr(sorted(changes.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            with own_state(), _steps_only():
                loop.train(replace(base, output_dir=str(folder), **changes))
            known[key] = unet_of(folder)
        return known[key]

    return trained
