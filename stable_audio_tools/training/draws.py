"""What the draws of a batch are keyed by: the place of each item in the batch of all ranks together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.runtime import seeds
from stable_audio_tools.runtime.device import send


class Key(NamedTuple):
    """The batch of one rank as a part of its step.

    A step trains on one global batch: ``accum_batches`` times ``world_size`` batches of equal size. Every
    item has a slot in it, and what is drawn for an item comes from ``(seed, step, slot)``: ranks draw
    different numbers, and a global batch has the same draws however it is split over GPUs and micro-batches.

    Attributes:
        seed: of the run.
        step: optimizer steps done, or a name where nothing is trained.
        micro_batch: which of the batches of this step.
        rank: whose.
        world_size: ranks.
        accum_batches: batches of a rank per step.
    """

    seed: int
    step: int | str
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    accum_batches: int = 1

    def slots(self, items: int) -> range:
        """The slots of a batch of ``items`` on this rank."""
        first = (self.micro_batch * self.world_size + self.rank) * items
        return range(first, first + items)

    def each(self, name: str, items: int) -> list[torch.Generator]:
        """One generator per item, for the draw called ``name``."""
        return [seeds.generator(name, self.seed, self.step, slot) for slot in self.slots(items)]

    def whole(self, name: str) -> torch.Generator:
        """One generator for the whole global batch: the same on every rank and in every micro-batch."""
        return seeds.generator(name, self.seed, self.step)

    def global_items(self, items: int) -> int:
        """The size of the global batch, of which ``items`` are in this one."""
        return items * self.world_size * self.accum_batches

    def normal(
        self, name: str, shape: torch.Size, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normal noise ``(B, ...)``, drawn item by item on the CPU in float32, then moved."""
        noise = torch.empty(shape)
        for row, draws in zip(noise, self.each(name, len(noise)), strict=True):
            torch.randn(row.shape, generator=draws, out=row)
        return send(noise, device).to(dtype)
