import pytest
from forked import no_validation, train
from loopback_hub import LoopbackHub

STEPS = 6


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run with the checkpoints of steps 2, 4 and 6 and an exported pipeline."""
    code, run = train(
        tmp_path_factory.mktemp("trained") / "run",
        no_validation,
        max_train_steps=STEPS,
        checkpointing_steps=2,
        checkpoints_total_limit="null",
        gallery="true",
        hub_model_id="me/trained",
    )
    assert code == 0, run.text
    return run.folder


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder for the tests of a file."""
    return tmp_path_factory.mktemp("work")
