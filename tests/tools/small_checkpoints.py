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
    return (one.step, one.facts) == (other.step, other.facts) and all(
        torch.equal(tensor, other.tensors[group][name])
        for group, tensors in one.tensors.items()
        for name, tensor in tensors.items()
    )
