"""Muon against torch's own, by an update's singular values, and as one optimiser with AdamW."""

import copy

import pytest
import torch
from drawing import randn as random
from tiny import MODEL
from torch import nn

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.training.losses import Objective, Uncertainty
from mtl_diffusion.training.model import build_scheduler, build_unet
from mtl_diffusion.training.optimizers import (
    Muon,
    build_optimizer,
    orthogonalised,
    trained_parameters,
)

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def steps(optimizer, parameters, number=4):
    for step in range(number):
        for i, parameter in enumerate(parameters):
            parameter.grad = random(*parameter.shape, seed=100 * step + i)
        optimizer.step()


@pytest.mark.parametrize("shapes", [[(10, 6)], [(6, 6), (4, 9), (6, 6)]])
def test_on_matrices_it_is_torchs_muon(shapes):
    ours = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    theirs = copy.deepcopy(ours)
    other = nn.Parameter(torch.zeros(1))  # for AdamW, which needs one
    steps(Muon(ours, [1] * len(ours), [other], **OPTIONS), [*ours, other])
    reference = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    steps(reference, theirs)
    for one, other in zip(ours, theirs, strict=True):
        # torch's is in bfloat16, whose rounding is that of an eighth of a bit.
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)]
)
@pytest.mark.parametrize("shape", [(5, 5), (5, 20), (20, 5)])
def test_an_update_has_the_singular_vectors_of_the_momentum_and_values_about_one(
    shape, dtype, most
):
    matrices = 1e-6 * random(3, *shape)  # float16 would round most of these to zero or nearly so
    found = orthogonalised(matrices, dtype)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    inside = U.mT @ found @ Vh.mT  # diagonal, if the singular vectors are those of the matrices
    diagonal = torch.diagonal(inside, dim1=1, dim2=2)
    assert (inside - torch.diag_embed(diagonal)).abs().max() < most
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3


def test_the_rest_is_adamws():
    hidden, rest = nn.Parameter(random(4, 6)), nn.Parameter(random(7))
    alone = copy.deepcopy(rest)
    both = Muon([hidden], [1], [rest], **OPTIONS)
    adamw = torch.optim.AdamW([alone], fused=True, **OPTIONS)
    for step in range(4):
        hidden.grad, rest.grad = random(4, 6, seed=step), random(7, seed=50 + step)
        alone.grad = rest.grad.clone()
        for optimizer in (both, adamw):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            optimizer.step()
    assert torch.equal(rest, alone)
    assert set(both.state[rest]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.fixture(scope="module")
def objective():
    config = TrainConfig(**MODEL)
    unet = build_unet(config, 12)
    unet.time_proj.requires_grad_(False)
    return Objective(unet, build_scheduler(config), Uncertainty(3))


def test_muon_has_the_hidden_weights_of_the_unet_and_adamw_all_others(objective):
    optimizer = build_optimizer(TrainConfig(**MODEL), objective)
    names = {id(p): name for name, p in objective.named_parameters()}
    muon, adamw = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert len(muon) + len(adamw) == len(trained_parameters(optimizer))
    assert muon | adamw == {n for n, p in objective.named_parameters() if p.requires_grad}
    assert all(p.ndim in (2, 4) for p in optimizer.param_groups[0]["params"])
    for part in ("conv_in", "conv_out", "encoder_hid_proj", "class_embedding", "time_embedding"):
        assert f"unet.{part}" not in {".".join(name.split(".")[:2]) for name in muon}
    assert "unet.mid_block.resnets.0.conv1.weight" in muon
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in muon
    assert {"weighting.head.weight", "unet.mid_block.resnets.0.norm1.weight"} <= adamw
    alone = build_optimizer(TrainConfig(**MODEL, optimizer="adamw"), objective)
    assert isinstance(alone, torch.optim.AdamW) and len(alone.param_groups) == 1


def test_scale_and_shift_and_values_and_gates_are_orthogonalised_apart(objective):
    optimizer = build_optimizer(TrainConfig(**MODEL), objective)
    for parameter in trained_parameters(optimizer):
        parameter.grad = random(*parameter.shape)
    before = copy.deepcopy(objective.unet.state_dict())
    optimizer.step()
    for name in (
        "mid_block.resnets.0.time_emb_proj.weight",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    ):
        update = objective.unet.get_parameter(name).detach() - before[name]
        for half in update.chunk(2):
            values = torch.linalg.svdvals(half)
            assert values.max() < 2 * values.min()
