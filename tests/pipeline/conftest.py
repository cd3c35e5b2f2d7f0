import copy

import pytest


@pytest.fixture(scope="session")
def folder(pipe, tmp_path_factory):
    """What `save_pretrained` writes of it; leave it as it is, and copy what you change."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def mine(pipe):
    """A pipeline that may be changed."""
    return copy.deepcopy(pipe)


@pytest.fixture
def batches(pipe):
    """The batch size of each call of the UNet."""
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()
