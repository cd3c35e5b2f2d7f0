"""One training step: it does not wait for the device, and non-finite values change nothing."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from forked import SHORT, poisoned
from forked import train as run_of_its_own
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_diffusion.checkpoints.resume import folder_of, restore, snapshot
from mtl_diffusion.checkpoints.store import save
from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.loop import train_step
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
    more = {"dropout": 0.1, "augmentation": 0.3, "reserved_tokens": 6}
    return replace(config, tasks=tasks, **more, max_train_steps=100)


@pytest.fixture
def built():
    """Builds runs, and closes them. `open` gives their accelerator alone."""
    with ExitStack() as open_runs:

        def built(config):
            return build(config, built.open(config))

        built.open = lambda config: open_runs.enter_context(begin(config))
        yield built


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


@pytest.mark.parametrize("change", [{}, {"per_device_batch_size": 3, "task_weighting": "sum"}])
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
    words = {"loss": ": nan", "gradient": "Norm of the gradient: nan"}[part]
    with pytest.raises(FloatingPointError, match=rf"^step 3: .* has not taken that step.*{words}"):
        meter.read()


def test_a_pipeline_of_a_run_knows_its_classes_and_leaves_its_modes(config, built):
    """Balanced classes come equally often. Without an average the UNet is the one in training."""
    change = {"train_split": "train[:13]", "balance_classes": True, "use_ema": False}
    run = built(replace(config, **change))
    assert len(set(run.train_data.labels.bincount().tolist())) > 1
    modes = [module.training for module in run.unet.modules()]
    with run.pipeline() as pipe:
        assert not any(module.training for module in pipe.unet.modules())
        assert pipe.class_frequencies == pytest.approx(dict.fromkeys(pipe.class_names, 0.2))
    assert [module.training for module in run.unet.modules()] == modes and any(modes)
    parts = [run.loader.batch(step).labels for step in range(5)]
    assert torch.cat(parts).bincount().tolist() == [8] * 5  # 40 samples


# --- float16, whose parts a CPU has, too ----------------------------------------------------------


@pytest.fixture
def scaled(built):
    """Builds a run whose network is in float16, with a loss scale, as accelerate's are on CUDA."""

    def build_scaled(config, scale=2.0**16):
        accelerator = built.open(config)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        run = build(config, accelerator)
        run.loss_scale.load_state_dict({**run.loss_scale.state_dict(), "scale": scale})
        run.unet.forward = torch.autocast("cpu", torch.float16)(run.unet.forward)
        return run

    return build_scaled


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_float16_with_a_loss_scale_learns_what_float32_learns(config, built, scaled, optimizer):
    config = replace(config, optimizer=optimizer)
    other = replace(config, output_dir=config.output_dir + "-fp16")
    full, half = built(config), scaled(other, scale=2.0**10)
    moments, losses = [], []
    for run in (full, half):
        torch.manual_seed(0)
        torch.nn.init.normal_(run.unet.conv_out.weight)  # zeros pass no gradient on
        meter = Meter(run)
        train_step(run, 0, meter)  # later steps depend on the roundings of the earlier ones
        losses.append(meter.read())
        state = run.optimizer.state.values()
        first = [part.get("momentum", part.get("exp_avg")) for part in state]
        moments.append(torch.cat([moment.flatten() for moment in first]))
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1]
    assert meter.skipped == 0
    assert (moments[0] - moments[1]).norm() < 0.02 * moments[0].norm()


def test_a_step_that_overflows_is_skipped_and_counted_and_a_resumed_run_goes_on_alike(
    config, scaled
):
    first = scaled(config, scale=2.0**30)
    meter, before = Meter(first), everything_that_learns(first)
    for step in range(2):
        train_step(first, step, meter)
    meter.check()
    assert meter.skipped == 2 and first.loss_scale.get_scale() == 2.0**28
    assert all(map(torch.equal, before, everything_that_learns(first)))
    path = save(folder_of(first), snapshot(first, 2))
    changed = {"output_dir": config.output_dir + "-2", "resume_from_checkpoint": str(path)}
    second, done = restore(scaled(replace(config, **changed)))
    assert done == 2
    for run in (first, second):
        meter = Meter(run)
        for step in range(2, 24):
            train_step(run, step, meter)
        meter.check()
    assert 0 < meter.skipped < 22
    one, other = (snapshot(run, 24) for run in (first, second))
    assert one.facts["loss_scale"] == other.facts["loss_scale"]
    for part, tensors in one.tensors.items():
        assert all(torch.equal(value, other.tensors[part][n]) for n, value in tensors.items())
    assert not torch.equal(before[0], everything_that_learns(first)[0])


def test_no_scale_helps_where_a_gradient_is_not_finite(config, scaled, monkeypatch):
    run = scaled(config, scale=1.0)
    meter = Meter(run)
    monkeypatch.setattr(Objective, "forward", poisoned(Objective.forward, "gradient", row=2))
    train_step(run, 0, meter)
    with pytest.raises(FloatingPointError, match=r"^step 1: a loss or a gradient"):
        meter.check()


def test_the_meter_reads_the_means_of_the_tasks(config, built, monkeypatch):
    run = built(replace(config, per_device_batch_size=3))
    meter, seen, add = Meter(run), [], Meter.add

    def noting(self, record):
        seen.extend(zip(record.task.tolist(), record.loss.tolist(), strict=True))
        add(self, record)

    monkeypatch.setattr(Meter, "add", noting)
    for first in (0, 3):
        seen.clear()
        for step in range(first, first + 3):
            train_step(run, step, meter)
            meter.check()  # as before a checkpoint: it takes nothing from the means
        losses = [[loss for task, loss in seen if task == i] for i in range(len(meter.names))]
        expected = {n: sum(own) / len(own) for n, own in zip(meter.names, losses, strict=True)}
        assert meter.read() == pytest.approx(expected, rel=1e-5)


def pretend_nccl():
    """Hosts then talk over a group of their own, as they do beside NCCL."""
    torch.distributed.get_backend = lambda: "nccl"


def test_hosts_agree_over_a_group_of_their_own(tmp_path):
    fields = {"processes": 2, "max_train_steps": 2}
    whole = run_of_its_own(tmp_path / "whole", *SHORT, **fields)[1]
    code, run = run_of_its_own(tmp_path / "run", *SHORT, pretend_nccl, **fields)
    assert code == [0, 0], run.text
    assert run.state(2) == whole.state(2)
