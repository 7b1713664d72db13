"""How fast a run is, what it holds in memory, how large its gradients are, and what it waits for."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.training.module import ours, total_norm

NORM_EVERY = 10
"""Steps between gradient norms; of 1.06 B parameters one takes about as long as a hundredth of a step."""
WINDOW = 50
"""Batches over which the share of waiting is judged."""
TOO_MUCH_WAITING = 0.25
"""Share of the time from which on the loader is the limit."""
GIB = 2**30


@dataclass
class _Gap:
    """The time between two batches: of the clock, or on a GPU how long it had nothing to do."""

    seconds: float
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def waited(self) -> float:
        """Seconds. Of events that are still ahead of the GPU, which then is not waiting: 0."""
        if self.events is None:
            return self.seconds
        before, after = self.events
        return before.elapsed_time(after) / 1000 if after.query() else 0.0


class Gauges(pl.Callback):
    """Measures the batches of a run; :meth:`take` gives the numbers since the last call.

    It stands first among the callbacks and :attr:`last` stands last, so that the time of demos, checkpoints
    and validation is counted neither as work nor as waiting. On a GPU waiting is measured by the GPU's own
    clock, which no one waits for: the CPU may wait for a batch while the GPU is still busy.

    Args:
        every: steps between logged values.
        max_steps: the last step is logged too; -1 goes on.
        advice: what would make the loader faster.
        norms: whether gradients are whole on each device, so that their norm can be taken.
    """

    def __init__(self, every: int, max_steps: int, advice: str, norms: bool = True) -> None:
        self.every = every
        self.max_steps = max_steps
        self.advice = advice
        self.norms = norms
        self.last = _LastCallback(self)
        self.world_size = 1
        self._batches = 0
        self._free: float | None = None
        self._free_event: torch.cuda.Event | None = None
        self._started = 0.0
        self._clips = 0
        self._steps = 0
        self._measured: list[tuple[_Gap, float]] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn how many devices share the work."""
        self.world_size = trainer.world_size

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self._started = time.perf_counter()
        self._batches += 1
        if self._batches == 2:  # the first starts workers and compiles
            self._clear()
        gap = _Gap(0.0 if self._free is None else self._started - self._free)
        if self._free_event is not None:
            arrived = torch.cuda.Event(enable_timing=True)
            arrived.record()
            gap.events = (self._free_event, arrived)
        self._measured.append((gap, 0.0))
        self._clips += len(batch[1])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """A batch is done."""
        gap, _worked = self._measured.pop()
        self._measured.append((gap, time.perf_counter() - self._started))
        self._steps += ours(pl_module).micro_batch == 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the norm of the gradient, before it is clipped, in the steps that are due."""
        module = ours(pl_module)
        # a trainer that steps by itself does so before it counts the batch
        step = module.steps_done + (0 if module.automatic_optimization else 1)
        due = step % NORM_EVERY == 0 or step % self.every == 0 or step == self.max_steps
        if not (self.norms and due):
            return
        norm = gradient_norm(optimizer)
        if norm is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler._scale  # a fused optimizer gets gradients that are still scaled
        first = optimizer is trainer.optimizers[0]
        module.note("train/grad_norm" if first else "train/disc_grad_norm", norm)

    def free(self, device: torch.device) -> None:
        """Nothing is left to do but wait for the next batch."""
        self._free = time.perf_counter()
        if device.type == "cuda":
            self._free_event = torch.cuda.Event(enable_timing=True)
            self._free_event.record()

    def take(self, step: int, device: torch.device) -> dict[str, float]:
        """Steps and clips per second, the share of waiting, and peak memory, since the last call.

        The loader is named as the limit, once, if it is.
        """
        pairs = [(gap.waited(), gap.seconds + worked) for gap, worked in self._measured]
        if self._batches > 1:
            self._recent += pairs
            self._warn(step)
        seconds = sum(total for _, total in pairs)
        found: dict[str, float] = {}
        if seconds > 0:
            found["speed/steps_per_second"] = self._steps / seconds
            found["speed/clips_per_second"] = self._clips * self.world_size / seconds
            found["speed/waiting_for_data"] = min(1.0, sum(waited for waited, _ in pairs) / seconds)
        memory = peak_memory(device)
        if memory is not None:
            found["memory/peak_gib"] = memory / GIB
        self._clear()
        return found

    def _clear(self) -> None:
        self._measured.clear()
        self._clips = self._steps = 0

    def _warn(self, step: int) -> None:
        if self._warned or len(self._recent) < WINDOW:
            return
        share = sum(waited for waited, _ in self._recent) / sum(total for _, total in self._recent)
        if share < TOO_MUCH_WAITING:
            return
        self._warned = True
        warn(
            f"step {step}: {share:.0%} of the last {WINDOW} batches was spent waiting for data, so the loader"
            f" is the limit; {self.advice}"
        )


class _LastCallback(pl.Callback):
    """Tells the gauges when all other callbacks are done with a batch, and when validation is."""

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The step is over."""
        self.gauges.free(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is over."""
        self.gauges.free(pl_module.device)


def gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """The norm of all gradients that ``optimizer`` has, as a scalar on their device; None if it has none."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return total_norm(gradients) if gradients else None


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak so far: of the GPU's tensors, or of this process; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def loader_advice(num_workers: int, stored: bool) -> str:
    """What to do about a loader that is too slow."""
    cores = os.cpu_count() or 1
    advice = [f"raise --num-workers, now {num_workers} (this machine has {cores} cores)"]
    if not stored:
        advice.append("store the latents beforehand with 'sat pre-encode'")
    advice.append("keep the data on a faster disk")
    return ", ".join(advice[:-1]) + f" or {advice[-1]}"
