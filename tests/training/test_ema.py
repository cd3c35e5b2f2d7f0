"""The average against a plain loop, and what its half-life means."""

import pytest
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
    ema = EMA(net, half_life=40, ramp=0.05)
    expected = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for step in range(50):
        seen = (step + 1) * 8
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
            net.count += 1
        ema.update(seen, 8)
        keep = 2 ** (-8 / min(40, 0.05 * seen))
        for name, p in net.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach().double()
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert ema.module.count == 50


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_the_half_life_is_in_images_not_steps(batch_size):
    ema = EMA(nn.Linear(1, 1), half_life=640, ramp=1.0)
    assert ema.decay(10**6, batch_size) ** (640 / batch_size) == pytest.approx(0.5)


def test_the_ramp():
    ema = EMA(nn.Linear(1, 1), half_life=1000, ramp=0.1)
    decays = [ema.decay(images, 10) for images in (10, 100, 1000, 10_000, 20_000)]
    # A tenth of the images seen, until that is 1000.
    assert decays == pytest.approx([2**-10, 2**-1, 2**-0.1, 2**-0.01, 2**-0.01])
    assert decays == sorted(decays)
    assert ema.decay(0, 10) == 0


def test_the_first_update_forgets_the_random_start():
    net = nn.Linear(4, 4)
    ema = EMA(net, half_life=10_000, ramp=0.05)
    before = ema.module.weight.clone()
    nn.init.normal_(net.weight)
    ema.update(32, 32)
    torch.testing.assert_close(ema.module.weight, net.weight, rtol=0, atol=1e-4)
    assert not torch.allclose(ema.module.weight, before, atol=1e-2)


def test_the_twin_is_apart_and_does_not_learn():
    net = Net().train()
    ema = EMA(net, half_life=10, ramp=1.0)
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not ema.module.training and net.training
    before = ema.module.a.clone()
    with torch.no_grad():
        net.a += 1
    assert torch.equal(ema.module.a, before)


def test_weights_that_do_not_move_stay_bit_for_bit():
    torch.manual_seed(0)
    net = Net()
    ema = EMA(net, half_life=100, ramp=0.05)
    for step in range(20):
        ema.update((step + 1) * 7, 7)
    assert all(
        torch.equal(p, q) for p, q in zip(net.parameters(), ema.module.parameters(), strict=True)
    )
