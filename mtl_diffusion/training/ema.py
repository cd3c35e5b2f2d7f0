"""An exponential moving average whose half-life is a share of the images seen so far."""

import copy

import torch
from torch import nn


class EMA:
    """A frozen copy of a module whose weights are a moving average of the module's.

    The half-life is a share `ramp` of the images seen so far, so that the random start is forgotten
    (EDM's ema_rampup_ratio).
    """

    def __init__(self, module: nn.Module, ramp: float):
        """ramp: share in (0, 1] of the images seen so far."""
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        # Listed once: walking a large module takes longer than the update of its weights.
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))
        self._averages = list(self.module.parameters())
        self._parameters = list(module.parameters())
        self.ramp = ramp

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """average <- decay average + (1 - decay) parameters; buffers are copied."""
        decay = 0.5 ** (batch_size / (self.ramp * images_seen))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)
        for average, buffer in self._buffers:
            average.copy_(buffer)
