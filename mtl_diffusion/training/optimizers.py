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
        "betas": (config.adam_beta1, config.adam_beta2),
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
        self._weights: list[nn.Parameter] = []  # in the order of the stacks
        self._momenta: list[Tensor] = []  # a stack of matrices for each shape
        self._updates: list[Tensor] = []  # likewise; first the gradients are written there
        self._by_weight: list[Tensor] = []  # views of the latter, each of the shape of its weight
        for (rows, columns), members in by_shape.items():
            counts = [count for _, count in members]
            momentum, update = members[0][0].new_zeros(2, sum(counts), rows, columns)
            self._momenta.append(momentum)
            self._updates.append(update)
            views = zip(members, momentum.split(counts), update.split(counts), strict=True)
            for (weight, _), own_momentum, own_update in views:
                self._weights.append(weight)
                # A view, too: loading into it changes the stack.
                self.state[weight]["momentum"] = _as_weight(own_momentum, weight)
                self._by_weight.append(_as_weight(own_update, weight))

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters from their `.grad`, which all of them must have."""
        self._adamw.found_inf = self.found_inf
        self._adamw.step()
        if not self._weights:
            return
        group, momenta = self.param_groups[0], self._momenta
        torch._foreach_copy_(self._by_weight, [weight.grad for weight in self._weights])
        found_inf = momenta[0].new_zeros(()) if self.found_inf is None else self.found_inf
        bad, takes_part = found_inf > 0, 1 - found_inf
        # Where it is bad the momentum moves to itself, so it stays where it is.
        pairs = zip(momenta, self._updates, strict=True)
        gradients = [torch.where(bad, momentum, gradient) for momentum, gradient in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        nesterov = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        for matrices, update in zip(nesterov, self._updates, strict=True):
            size = group["lr"] * 0.2 * math.sqrt(max(update.shape[1:]))
            torch.mul(orthogonalised(matrices), size * takes_part, out=update)
        if group["weight_decay"]:
            keep = 1 - group["lr"] * group["weight_decay"] * takes_part
            torch._foreach_mul_(self._weights, keep)
        torch._foreach_sub_(self._weights, self._by_weight)


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


def _as_weight(matrices: Tensor, weight: Tensor) -> Tensor:
    """(parts, rows, columns) as a view of the weight's shape, (out, in) or (out, in, h, w).

    The columns are in the order (h, w, in), in which a weight in channels_last lies in memory.
    """
    if weight.ndim == 2:
        return matrices.view(weight.shape)
    out, channels, height, width = weight.shape
    return matrices.view(out, height, width, channels).permute(0, 3, 1, 2)
