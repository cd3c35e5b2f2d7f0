"""Checkpoints of a few numbers, which differ with their step."""

import torch

from mtl_diffusion.checkpoints.store import Checkpoint


def checkpoint(step, size=64):
    generator = torch.Generator().manual_seed(step)
    groups = ("unet", "weighting", "optimizer", "ema")
    tensors = {name: {"a": torch.randn(size, generator=generator)} for name in groups}
    return Checkpoint(step, tensors, {"seed": step})


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def same(one, other):
    torch.testing.assert_close(one.tensors, other.tensors, atol=0, rtol=0)
    return (one.step, one.facts) == (other.step, other.facts)
