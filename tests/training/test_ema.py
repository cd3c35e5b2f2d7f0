"""The average against a plain loop, and what its half-life means."""

import torch
from torch import nn

from mtl_diffusion.training.ema import EMA


def test_it_is_the_plain_loop_apart_from_its_module():
    net = nn.BatchNorm1d(3)  # two parameters, and buffers
    ema = EMA(net, ramp=0.2)
    expected = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for step in range(50):
        seen = (step + 1) * 8
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
            net.num_batches_tracked += 1
        ema.update(seen, 8)
        keep = 2 ** (-8 / (0.2 * seen))
        for name, p in net.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach().double()
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not p.requires_grad
    assert ema.module.num_batches_tracked == 50
    assert all(p.requires_grad for p in net.parameters())
    assert net.training and not ema.module.training
