"""Short runs of real training, in this process, of models with 8 channels on images of 8 pixels."""

from dataclasses import replace

import pytest
from tiny import RUN, few_steps, own_state, write_shapes

from mtl_diffusion import loop
from mtl_diffusion.config import TrainConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with 60 training and 16 test images of five classes of shapes."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 60, 16)


@pytest.fixture(scope="session")
def base(data):
    return TrainConfig(dataset_name=data, **RUN)


@pytest.fixture(autouse=True, scope="module")
def hurry():
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch.setattr)
        yield


@pytest.fixture
def config(base, tmp_path):
    return replace(base, output_dir=str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def one_state_a_test():
    """accelerate keeps its state for the whole process: each test gets a new one."""
    with own_state():
        yield


@pytest.fixture
def steps_only(monkeypatch):
    """Runs that neither validate nor export."""
    for name in ("validate", "export"):
        monkeypatch.setattr(loop, name, lambda *run, **options: None)
