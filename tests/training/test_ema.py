"""The average against a plain loop, and what its half-life means."""

import torch
from torch import nn

from mtl_diffusion.training.ema import EMA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 2))
        self.b = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(1))


def test_it_is_the_plain_loop():
    torch.manual_seed(0)
    net = Net()
    ema = EMA(net, ramp=0.2)
    expected = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for step in range(50):
        seen = (step + 1) * 8
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
            net.count += 1
        ema.update(seen, 8)
        keep = 2 ** (-8 / (0.2 * seen))
        for name, p in net.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach().double()
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert ema.module.count == 50


def test_the_twin_is_apart_and_does_not_learn():
    net = Net().train()
    ema = EMA(net, ramp=1.0)
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not ema.module.training and net.training
    before = ema.module.a.clone()
    with torch.no_grad():
        net.a += 1
    assert torch.equal(ema.module.a, before)
