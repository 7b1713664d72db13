"""Pairs of tracks whose histograms of codes point in nearly the same direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.progress import track


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
    max_per_track: int | None = None,
    block: int = 4096,
) -> Candidates:
    """Pairs of rows whose cosine is at or above ``threshold``.

    Works in blocks, so memory is ``block * (block + 2 D)`` floats beside the input.

    Args:
        histograms: ``(N, D)``, rows of length one; a row of zeros resembles nothing.
        threshold: a cosine in (0, 1].
        device: where the products are computed.
        max_per_track: a pair must be among this many best of one of its two rows. Long tracks of one kind of
            music are nearly all at 0.9: all pairs of 5,000 of them are 12 million to look at.
        block: rows a side of one block.
    """
    where = resolve_device(device)
    rows = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    # float32 puts the cosine of equal rows a few 1e-7 beside 1: a threshold of 1.0 must still find them.
    lowest = threshold - 1e-6
    if max_per_track is not None:
        return _nearest(rows, lowest, max_per_track, where, block)
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
    return _ascending(first, second, cosines)


def _nearest(rows: torch.Tensor, lowest: float, most: int, where: torch.device, block: int) -> Candidates:
    """The ``most`` likeliest partners of every row, each pair once."""
    first, second, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for top in track(range(0, len(rows), block), "histograms"):
        upper = rows[top : top + block].to(where)
        best = torch.zeros(len(upper), 0, device=where)
        partners = torch.zeros(len(upper), 0, dtype=torch.int64, device=where)
        for left in range(0, len(rows), block):
            cosine = upper @ rows[left : left + block].to(where).T
            if left == top:
                cosine.fill_diagonal_(-1.0)
            value, column = cosine.topk(min(most, cosine.shape[1]), dim=1)
            best, partners = torch.cat([best, value], 1), torch.cat([partners, column + left], 1)
            best, order = best.topk(min(most, best.shape[1]), dim=1)
            partners = partners.gather(1, order)
        i, place = torch.nonzero(best >= lowest, as_tuple=True)
        ours, theirs = (i + top).cpu().numpy(), partners[i, place].cpu().numpy()
        first.append(np.minimum(ours, theirs))
        second.append(np.maximum(ours, theirs))
        cosines.append(best[i, place].cpu().numpy())
    return _ascending(np.concatenate(first), np.concatenate(second), np.concatenate(cosines))


def _ascending(
    first: NDArray[np.int64], second: NDArray[np.int64], cosines: NDArray[np.float32]
) -> Candidates:
    """In order of rows, each pair once."""
    order = np.lexsort((second, first))
    first, second, cosines = first[order], second[order], cosines[order]
    if len(first):
        new = np.append(True, (np.diff(first) != 0) | (np.diff(second) != 0))
        first, second, cosines = first[new], second[new], cosines[new]
    return Candidates(first, second, np.minimum(cosines, np.float32(1.0)))
