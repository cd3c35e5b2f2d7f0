"""One training step: it does not wait for the device, and non-finite values change nothing."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from forked import SHORT, poisoned
from forked import train as run_of_its_own
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.loop import train_step
from mtl_diffusion.tools.tensors import to_device
from mtl_diffusion.training.losses import Objective
from mtl_diffusion.training.meter import Meter
from mtl_diffusion.training.run import build

# What gives a number, or a shape that depends on numbers, back to Python.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


@pytest.fixture
def config(config):
    tasks = {"generate": 1, "inpaint": 1, "edit": 1, "colorize": 1, "upscale": 1}
    return replace(config, tasks=tasks, dropout=0.1, max_train_steps=100)


@pytest.fixture
def built():
    """Builds runs, and closes them."""
    with ExitStack() as open_runs:
        yield lambda config: build(config, open_runs.enter_context(begin(config)))


class Waits(TorchDispatchMode):
    """Notes the operators that a host would wait for, if the tensors were on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        indices = arguments[1] if function is torch.ops.aten.index.Tensor else ()
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if function in WAITING or by_mask:
            self.found.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("change", [{}, {"per_device_batch_size": 3}, {"task_weighting": "sum"}])
def test_no_operator_of_a_step_is_waited_for(config, built, change):
    run = built(replace(config, **change))
    meter = Meter(run)
    for step in (0, 7):  # an epoch ends in step 7
        with Waits() as waits:
            train_step(run, step, meter)
        assert not waits.found
    with Waits() as waits:
        meter.read()
    assert waits.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_not_waited_for(config, built):
    run = built(replace(config, mixed_precision="bf16"))
    meter = Meter(run)
    for step in range(3):  # what is made once is made
        train_step(run, step, meter)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 12):
            train_step(run, step, meter)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_upload_to_cuda_brings_the_numbers():
    for i in range(50):  # the pinned memory is used again only when it has been read
        assert to_device(torch.full((1000,), i), torch.device("cuda")).eq(i).all()


def everything_that_learns(run):
    tensors = [*run.objective.parameters()]
    for state in run.optimizer.state_dict()["state"].values():
        tensors += state.values()
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment(
    config, built, part, monkeypatch
):
    run = built(config)
    meter = Meter(run)
    for step in range(2):
        train_step(run, step, meter)
    before = everything_that_learns(run)
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", poisoned(Objective.forward, part, row=2))
        train_step(run, 2, meter)
    after = everything_that_learns(run)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    # The check comes later: the next steps are taken, and the message still has the right one.
    train_step(run, 3, meter)
    moved = zip(after, everything_that_learns(run), strict=True)
    assert any(not torch.equal(one, other) for one, other in moved)
    assert all(weight.isfinite().all() for weight in run.ema.module.parameters())
    with pytest.raises(FloatingPointError, match=r"^step 3: .* has not taken that step") as error:
        meter.read()
    if part == "loss":
        assert ": nan" in str(error.value)
    else:
        assert "Norm of the gradient: nan" in str(error.value)


def test_the_meter_reads_the_means_of_the_tasks(config, built, monkeypatch):
    run = built(replace(config, per_device_batch_size=3))
    meter, seen = Meter(run), []
    add = Meter.add

    def noting(self, record):
        seen.extend(zip(record.task.tolist(), record.loss.tolist(), strict=True))
        add(self, record)

    monkeypatch.setattr(Meter, "add", noting)
    for readings in range(2):
        seen.clear()
        for step in range(3 * readings, 3 * readings + 3):
            train_step(run, step, meter)
            meter.check()  # as before a checkpoint: it takes nothing from the means
        expected = {
            name: sum(loss for task, loss in seen if task == i) / sum(t == i for t, _ in seen)
            for i, name in enumerate(meter.names)
        }
        assert meter.read() == pytest.approx(expected, rel=1e-5)


def pretend_nccl():
    """Hosts then talk over a group of their own, as they do beside NCCL."""
    torch.distributed.get_backend = lambda: "nccl"


def test_hosts_agree_over_a_group_of_their_own(tmp_path):
    whole = run_of_its_own(tmp_path / "whole", *SHORT, processes=2)[1]
    code, run = run_of_its_own(tmp_path / "run", *SHORT, pretend_nccl, processes=2)
    assert code == [0, 0], run.text
    assert run.state() == whole.state()
