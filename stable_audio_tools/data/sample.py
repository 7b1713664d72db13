"""What names one training sample, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import default_collate

Info = dict[str, Any]


class SampleKey(NamedTuple):
    """A track in an epoch: all that a crop depends on, besides the seed."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody asks a key for
    epoch: int


class EpochOrder(Protocol):
    """Which samples an epoch holds, in their order."""

    num_samples: int

    def __call__(self, epoch: int) -> Iterable[SampleKey]:
        """The ``num_samples`` samples of an epoch, for all ranks together."""


def collate(batch: Sequence[tuple[Tensor, Info]]) -> tuple[Tensor, tuple[Info, ...]]:
    """Audio ``(C, T)`` stacked to ``(B, C, T)``; what is known of each sample stays a dict of its own."""
    audio, infos = zip(*batch, strict=True)
    # stacks right in the memory that a worker shares with the main process, which saves copying a batch
    return default_collate(list(audio)), infos
