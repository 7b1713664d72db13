"""Noticing a loss that is no number without making the GPU wait for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.errors import TrainingError


@dataclass(frozen=True)
class _Seen:
    """A batch whose loss is on its way to the CPU: the loss, then those of the items."""

    numbers: Tensor
    arrived: torch.cuda.Event | None
    step: int
    rank: int
    infos: Sequence[dict[str, Any]]


class LossWatch:
    """Stops a run whose loss is no number.

    On a CPU a bad loss is found before its gradient is taken. On a GPU, reading a number would hold up the
    queue of work, so a loss is copied behind the forward pass and read when the next batch comes, or before a
    checkpoint is written: weights that were touched by it are never saved.

    Attributes:
        bad_batch: what is known about a batch whose loss was not finite.
    """

    def __init__(self) -> None:
        self.bad_batch: dict[str, Any] | None = None
        self._seen: _Seen | None = None

    def look(
        self,
        loss: Tensor,
        infos: Sequence[dict[str, Any]],
        per_item: Tensor | None = None,
        *,
        step: int,
        rank: int = 0,
    ) -> None:
        """Take note of the loss of a batch, and judge the one before.

        Args:
            loss: a scalar.
            per_item: losses ``(B,)`` of the items, where they can be told apart.
            step: of the batch, from 1.

        Raises:
            TrainingError: a loss was not finite; ``bad_batch`` then holds what is known.
        """
        self.settle()
        parts = [loss.detach().reshape(1), *([] if per_item is None else [per_item.detach()])]
        numbers = torch.cat([part.float() for part in parts])
        arrived = None
        if numbers.is_cuda:
            home = torch.empty(numbers.shape, pin_memory=True)
            numbers = home.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._seen = _Seen(numbers, arrived, step, rank, infos)
        if arrived is None:
            self.settle()

    def settle(self) -> None:
        """Judge the last loss, if that has not been done.

        Raises:
            TrainingError: it was not finite.
        """
        error = self.judge()
        if error is not None:
            raise error

    def judge(self) -> TrainingError | None:
        """:meth:`settle`, but the error is handed back."""
        seen, self._seen = self._seen, None
        if seen is None:
            return None
        if seen.arrived is not None:
            seen.arrived.synchronize()
        loss, *per_item = seen.numbers.tolist()
        if torch.isfinite(seen.numbers[0]):
            return None
        tracks = [str(info.get("sample_id", info.get("path", "?"))) for info in seen.infos]
        losses: list[str | None] = [str(value) for value in per_item]
        losses = losses or [None] * len(tracks)
        self.bad_batch = {
            "step": seen.step,
            "rank": seen.rank,
            "loss": str(loss),
            "items": [
                {"track": track, "loss": value, "offset_seconds": info.get("offset_seconds")}
                for track, value, info in zip(tracks, losses, seen.infos, strict=True)
            ],
        }
        return TrainingError(
            f"step {seen.step}: the loss is {loss}, expected a finite number; tracks of this batch:"
            f" {', '.join(tracks)}; lower the learning rate, set --gradient-clip-val or exclude a file"
        )
