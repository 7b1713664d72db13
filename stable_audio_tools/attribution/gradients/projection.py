"""Random projections that keep inner products in expectation.

Johnson and Lindenstrauss 1984; with random signs, Achlioptas 2003. Every matrix is made from a seed and a
name on the CPU, so it is the same on any device and for any store.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stable_audio_tools.runtime.seeds import generator


def rademacher(rows: int, columns: int, *seed_parts: int | str) -> Tensor:
    """A (rows, columns) float32 matrix of random signs over sqrt(columns): E[P P^T] is the identity."""
    bits = torch.randint(0, 2, (rows, columns), generator=generator(*seed_parts), dtype=torch.int8)
    return (bits.to(torch.float32) * 2 - 1) / columns**0.5


def side_projection(size: int, rank: int, *seed_parts: int | str) -> Tensor:
    """The matrix for one side of a layer's gradient: (size, rank), or the identity where nothing is gained.

    ``rank`` 0 keeps the side whole, and so does a rank that is not below ``size``.
    """
    if rank == 0 or rank >= size:
        return torch.eye(size)
    return rademacher(size, rank, *seed_parts)


class BlockProjection:
    """A Rademacher projection of very long rows, made block by block and never held whole.

    Args:
        size: length P of a row.
        dim: length of the result; 0 keeps rows whole.
        seed_parts: what the matrix is derived from.
        block: rows of the matrix made at once; it changes the matrix, so it is not a tuning knob.
    """

    def __init__(self, size: int, dim: int, *seed_parts: int | str, block: int = 1024) -> None:
        self.size = size
        self.dim = dim or size
        self._whole = dim == 0
        self._seed_parts = seed_parts
        self._block = block

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for number, start in enumerate(range(0, self.size, self._block)):
            stop = min(start + self._block, self.size)
            yield slice(start, stop), rademacher(stop - start, self.dim, *self._seed_parts, number)

    def __call__(self, rows: Tensor) -> Tensor:
        """Project (B, P) to (B, dim), in float32."""
        if self._whole:
            return rows
        projected = rows.new_zeros(rows.shape[0], self.dim)
        for span, matrix in self._blocks():
            projected += rows[:, span] @ matrix.to(rows.device)
        return projected
