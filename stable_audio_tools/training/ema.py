"""The running average of the weights, which is what gets exported and sampled from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OFF_DEVICE_EVERY = 10
"""Steps between updates of an average that is kept on the CPU: at the Stable Audio Open size one takes 4.2 GB
over the bus and back."""


class EMA(nn.Module):
    """Exponential moving average of a module's parameters (after Polyak and Juditsky 1992).

    The decay at update ``s`` is ``1 - (1 + s)^-power``, capped at ``beta``, so that the average soon forgets
    where it started; update 0 copies. Buffers are copied. State keys: ``ema_model.*``, ``initted``, ``step``.

    An update queues its work and returns: which one it is, is counted beside the buffer ``step``, since
    reading that would wait for the device.

    Args:
        on_cpu: keep the average in main memory, whatever device the model moves to, and update it only every
            ``OFF_DEVICE_EVERY`` steps, then with the decay of all of them.
    """

    initted: Tensor
    step: Tensor

    def __init__(
        self, model: nn.Module, beta: float = 0.9999, power: float = 0.75, on_cpu: bool = False
    ) -> None:
        super().__init__()
        self.beta = beta
        self.power = power
        self.on_cpu = on_cpu
        self.ema_model = copy.deepcopy(model).requires_grad_(False).eval()
        if on_cpu:
            self.ema_model.to("cpu")
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))
        self._updates: int | None = None
        self._followed: tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]] | None = None
        self.register_load_state_dict_post_hook(_recount)

    def decay(self, step: int) -> float:
        """How much of the average is kept at update ``step`` (from 0); 0 at the first."""
        return min(1.0 - (1.0 + step) ** -self.power, self.beta)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model``, which was just stepped, into the average."""
        done = int(self.step) if self._updates is None else self._updates
        self._updates = done + 1
        self.step += 1
        first = self._first_of_update(done)
        if first is None:
            return
        kept = math.prod(self.decay(step) for step in range(first, done + 1))
        old, new = self._pairs(model)
        if self.on_cpu and new[0].is_cuda:
            _update_at_home(old, new, 1.0 - kept)
        else:
            averaged = [parameter.data for parameter in old]
            online = [
                parameter.data.to(device=mean.device, dtype=mean.dtype)
                for parameter, mean in zip(new, averaged, strict=True)
            ]
            torch._foreach_lerp_(averaged, online, 1.0 - kept)
        buffers = list(self.ema_model.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.initted.fill_(True)

    def _pairs(self, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the average and of ``model``: looked up once, since it takes 10 ms."""
        if self._followed is None or self._followed[0] is not model:
            self._followed = (model, list(self.ema_model.parameters()), list(model.parameters()))
        return self._followed[1:]

    def _first_of_update(self, step: int) -> int | None:
        """The first of the steps that an update at ``step`` stands for; None where there is none."""
        if not self.on_cpu or step == 0:
            return step
        return None if (step + 1) % OFF_DEVICE_EVERY else max(1, step + 1 - OFF_DEVICE_EVERY)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """The average on ``device`` for as long as the block lasts, where it is kept on the CPU.

        What is done to it there is lost.
        """
        tensors = [*self.ema_model.parameters(), *self.ema_model.buffers()] if self.on_cpu else []
        home = [tensor.data for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        try:
            yield
        finally:
            for tensor, data in zip(tensors, home, strict=True):
                tensor.data = data

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Stay on the CPU, where that was asked for, when the module around is moved."""
        return self if self.on_cpu else super()._apply(fn, recurse)


def _update_at_home(old: Sequence[nn.Parameter], new: Sequence[nn.Parameter], share: float) -> None:
    """Take ``share`` of ``new``, on a GPU, into ``old``, in main memory.

    Each tensor visits the GPU: with four threads a CPU takes seconds for what then takes the time of the bus.
    That needs pinned memory, into which the average moves at the first update.
    """
    for mean, parameter in zip(old, new, strict=True):
        if not mean.is_pinned():
            mean.data = mean.data.pin_memory()
        visitor = mean.data.to(parameter.device, non_blocking=True)
        visitor.lerp_(parameter.data.to(visitor.dtype), share)
        mean.data.copy_(visitor, non_blocking=True)
    torch.cuda.current_stream(new[0].device).synchronize()


def _recount(module: EMA, incompatible: Any) -> None:
    module._updates = None
