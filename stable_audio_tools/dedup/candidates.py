"""Pairs of tracks whose histograms of codes point in nearly the same direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import resolve_device


class Candidates(NamedTuple):
    """Pairs of rows, ``first[k] < second[k]``, with their cosine, each ``(K,)``; ascending."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosine: NDArray[np.float32]


def similar_pairs(
    histograms: NDArray[np.float32],
    threshold: float,
    *,
    device: str | torch.device | None = "cpu",
    block: int = 4096,
) -> Candidates:
    """All pairs of rows whose cosine is at or above ``threshold``.

    Works through the upper triangle in blocks, so memory is ``block * (block + 2 D)`` floats beside the
    input.

    Args:
        histograms: ``(N, D)``, rows of length one; a row of zeros resembles nothing.
        threshold: a cosine in (0, 1].
        device: where the products are computed.
        block: rows a side of one block.

    Raises:
        UsageError: the threshold is not a cosine in (0, 1].
    """
    if not 0.0 < threshold <= 1.0:
        raise UsageError(
            f"similarity threshold {threshold} is not a cosine: expected a number above 0 and up to 1"
        )
    where = resolve_device(device)
    rows = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    # float32 puts the cosine of equal rows a few 1e-7 beside 1: a threshold of 1.0 must still find them.
    lowest = threshold - 1e-6
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    for top in range(0, len(rows), block):
        upper = rows[top : top + block].to(where)
        for left in range(top, len(rows), block):
            cosine = upper @ rows[left : left + block].to(where).T
            if left == top:
                cosine = cosine.triu(diagonal=1)
            i, j = torch.nonzero(cosine >= lowest, as_tuple=True)
            found.append(((i + top).cpu().numpy(), (j + left).cpu().numpy(), cosine[i, j].cpu().numpy()))
    if not found:
        return Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    first, second, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((second, first))
    return Candidates(first[order], second[order], np.minimum(cosines[order], np.float32(1.0)))
