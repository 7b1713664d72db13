"""The running average of the weights, which is what gets exported and sampled from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """Exponential moving average of a module's parameters (after Polyak and Juditsky 1992).

    The decay at update ``s`` is ``1 - (1 + s)^-power``, capped at ``beta``, so that the average soon forgets
    where it started; update 0 copies. Buffers are copied. State keys: ``ema_model.*``, ``initted``, ``step``.
    """

    initted: Tensor
    step: Tensor

    def __init__(self, model: nn.Module, beta: float = 0.9999, power: float = 0.75) -> None:
        super().__init__()
        self.beta = beta
        self.power = power
        self.ema_model = copy.deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))

    def decay(self, step: int) -> float:
        """How much of the average is kept at update ``step`` (from 0); 0 at the first."""
        return min(1.0 - (1.0 + step) ** -self.power, self.beta)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model``, which was just stepped, into the average."""
        step = int(self.step)
        averaged = [parameter.data for parameter in self.ema_model.parameters()]
        online = [
            parameter.data.to(old.dtype) for parameter, old in zip(model.parameters(), averaged, strict=True)
        ]
        torch._foreach_lerp_(averaged, online, 1.0 - self.decay(step))
        for old, new in zip(self.ema_model.buffers(), model.buffers(), strict=True):
            old.copy_(new)
        self.initted.fill_(True)
        self.step += 1
