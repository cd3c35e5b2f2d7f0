"""The optimisers: AdamW, and Muon for the hidden weights with AdamW for the rest."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig

# AdamW updates the parameters that Muon is not made for: the first and the last layer, the token
# tables, and the embedding of the noise level; also biases, norms, and all outside of the UNet.
_NOT_HIDDEN = ("conv_in.", "conv_out.", "encoder_hid_proj.", "class_embedding.", "time_embedding.")
# Weights whose rows are two functions, one after the other: the scale and the shift of a residual
# block, the values and the gates of a feed-forward layer. Each half is orthogonalised by itself.
_TWO_FUNCTIONS = ("time_emb_proj.weight", "ff.net.0.proj.weight")

BETAS = (0.9, 0.99)  # AdamW's decays of the means of gradients and of their squares
MOMENTUM = 0.95
# Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def build_optimizer(config: TrainConfig, objective: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that `config.optimizer` names, over all that is trained of `objective`.

    Args:
        objective: has the UNet as `unet`.
    """
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    options = {
        "lr": config.learning_rate,
        "betas": BETAS,
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained.values(), fused=True, **options)
    hidden = {
        name: p
        for name, p in trained.items()
        if p.ndim >= 2
        and name.startswith("unet.")
        and not name.removeprefix("unet.").startswith(_NOT_HIDDEN)
    }
    rest = [p for name, p in trained.items() if name not in hidden]
    parts = [2 if name.endswith(_TWO_FUNCTIONS) else 1 for name in hidden]
    return Muon(hidden.values(), parts, rest, **options)


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that the optimiser updates, group after group."""
    return [p for group in optimizer.param_groups for p in group["params"]]


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for hidden weights; AdamW for the others.

    W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(out, rest)) U V^T, where U S V^T is the Nesterov
    momentum of the gradient, flattened to a matrix (out, rest). The factor gives an update the
    root mean square of one of AdamW's, so that one learning rate suits both (Liu et al. 2025,
    arXiv:2502.16982, section 2.2). Matrices of one shape are updated together.

    Like a fused AdamW, a step changes nothing if the tensor `found_inf` is 1, and waits for no
    device to know.

    Args:
        hidden: weights of two or four dimensions; may be none. All take part in every step.
        parts: for each of them, in how many blocks of rows it is orthogonalised.
        rest: parameters for AdamW, one or more.
        options: of AdamW; lr and weight_decay are those of Muon, too.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        parts: Iterable[int],
        rest: Iterable[nn.Parameter],
        **options: Any,
    ):
        hidden = list(hidden)
        super().__init__([{"params": hidden}, {"params": list(rest)}], options)
        self.found_inf: Tensor | None = None
        # It shares its group's options and its state with this optimiser.
        self._adamw = torch.optim.AdamW(self.param_groups[1:], fused=True, **options)
        self._adamw.state = self.state

        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, int]]] = defaultdict(list)
        for weight, count in zip(hidden, parts, strict=True):
            rows = weight.shape[0] // count
            by_shape[rows, weight[0].numel()].append((weight, count))
        # Of each shape: the weights, the matrices in each of them, and their momenta in one stack.
        self._stacks: list[tuple[list[nn.Parameter], list[int], Tensor]] = []
        for (rows, columns), members in by_shape.items():
            weights, counts = map(list, zip(*members, strict=True))
            momentum = weights[0].new_zeros(sum(counts), rows, columns)
            for weight, part in zip(weights, momentum.split(counts), strict=True):
                # A view: loading into it changes the stack.
                self.state[weight]["momentum"] = _as_weight(part, weight)
            self._stacks.append((weights, counts, momentum))

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters from their `.grad`, which all of them must have."""
        self._adamw.found_inf = self.found_inf
        self._adamw.step()
        group, found_inf = self.param_groups[0], self.found_inf
        for weights, counts, momentum in self._stacks:
            pairs = zip(weights, counts, strict=True)
            gradient = torch.cat([_as_matrices(weight.grad, count) for weight, count in pairs])
            takes_part = 1 if found_inf is None else 1 - found_inf
            if found_inf is not None:  # where it is 1 the momentum moves to itself, so it stays
                gradient = torch.where(found_inf > 0, momentum, gradient)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            nesterov = gradient.lerp_(momentum, MOMENTUM)
            size = group["lr"] * 0.2 * math.sqrt(max(momentum.shape[1:]))
            update = orthogonalised(nesterov) * (size * takes_part)
            if group["weight_decay"]:
                keep = 1 - group["lr"] * group["weight_decay"] * takes_part
                torch._foreach_mul_(weights, keep)
            pairs = zip(update.split(counts), weights, strict=True)
            torch._foreach_sub_(weights, [_as_weight(part, weight) for part, weight in pairs])


def orthogonalised(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(n, rows, columns) U S V^T -> about U V^T each: Newton-Schulz, singular values 0.7 to 1.2.

    Args:
        dtype: of the products. None: the fastest one; on CUDA bfloat16, or float16 without that,
            and on a CPU float32.
    """
    a, b, c = NEWTON_SCHULZ
    dtype = dtype or _fastest(matrices.device.type)
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    # Before the rounding: float16 has no numbers as small as a momentum's.
    X = (wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return (X if wide is matrices else X.mT).to(matrices.dtype)


@cache
def _fastest(device: str) -> torch.dtype:
    if device != "cuda":
        return torch.float32
    # Where bfloat16 is emulated, it is slower than float32.
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float16


# The columns of matrices are in the order (h, w, in), in which a weight in channels_last lies in
# memory: so both of these give views, where the matrices are contiguous.


def _as_matrices(weight: Tensor, parts: int) -> Tensor:
    """(out, in) or (out, in, h, w) -> (parts, rows, columns)."""
    return weight.movedim(1, -1).reshape(parts, weight.shape[0] // parts, -1)


def _as_weight(matrices: Tensor, weight: Tensor) -> Tensor:
    """(parts, rows, columns) -> the shape of the weight."""
    out, columns, *sides = weight.shape
    return matrices.reshape(out, *sides, columns).movedim(-1, 1)
