"""Training inside another program: twice, in a thread, in a notebook."""

import signal
import threading
from dataclasses import replace

import pytest
from accelerate import Accelerator
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.config import ConfigError
from mtl_diffusion.launch.stop import SIGNALS


@pytest.fixture
def config_of(config, steps_only, tmp_path):
    """A short run, of a name of its own."""
    return lambda name, **changes: replace(config, output_dir=str(tmp_path / name), **changes)


def test_two_runs_of_two_precisions_in_one_process(config_of):
    for name, precision in (("a", "no"), ("b", "bf16"), ("c", "no")):
        loop.train(config_of(name, mixed_precision=precision))
    once, again, half = (unet_of(config_of(name).output_dir) for name in "acb")
    assert all((again[name] == weight).all() for name, weight in once.items())
    assert any((half[name] != weight).any() for name, weight in once.items())


def test_the_state_of_another_program_is_left_alone(config_of):
    theirs = Accelerator(mixed_precision="no")
    with pytest.raises(ConfigError, match="accelerate is in use in this process with 'no'"):
        loop.train(config_of("a", mixed_precision="bf16"))
    loop.train(config_of("b"))
    assert theirs.mixed_precision == "no"


def test_a_run_in_a_thread(config_of, caplog):
    thread = threading.Thread(target=loop.train, args=[config_of("thread")])
    thread.start()
    thread.join()
    loop.train(config_of("main"))
    one, other = (unet_of(config_of(name).output_dir) for name in ("thread", "main"))
    assert all((other[name] == weight).all() for name, weight in one.items())
    assert caplog.text.count("training in a thread: no signal stops it") == 1


def test_a_stop_leaves_the_handlers_of_the_program(config_of, monkeypatch):
    """An interrupted cell of a notebook: the next one can be interrupted, too."""
    # A shell that starts the tests in its background has them ignore it.
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in SIGNALS]
    step = loop.train_step

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)
    try:
        with pytest.raises(SystemExit) as stop:
            loop.train(config_of("a"))
        assert stop.value.code == 75
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        signal.signal(signal.SIGINT, at_start)
