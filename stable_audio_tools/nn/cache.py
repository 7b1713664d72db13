"""What a causal transformer keeps of the tokens it has seen, so that each is computed once.

Shapes: B batch, H heads, N tokens, E width of a head.
"""

from __future__ import annotations

from torch import Tensor

FIRST_CAPACITY = 64


class KeyValues:
    """Keys and values of one attention layer, in the order in which they came.

    The store doubles when it is full, so appending N tokens one by one copies O(N) of them and not O(N^2).
    """

    def __init__(self) -> None:
        self.length = 0
        self._stores: list[Tensor] = []

    def append(self, *tensors: Tensor) -> list[Tensor]:
        """Add new tokens; returns everything seen so far.

        Args:
            tensors: keys of each attention map and then the values, ``(B, H, N, E)`` each.
        """
        end = self.length + tensors[0].shape[2]
        if not self._stores or end > self._stores[0].shape[2]:
            self._grow(end, tensors)
        for store, new in zip(self._stores, tensors, strict=True):
            store[:, :, self.length : end] = new
        self.length = end
        return self.get()

    def get(self) -> list[Tensor]:
        """Everything seen so far, as views."""
        return [store[:, :, : self.length] for store in self._stores]

    def _grow(self, needed: int, tensors: tuple[Tensor, ...]) -> None:
        capacity = max(FIRST_CAPACITY, self.length)
        while capacity < needed:
            capacity *= 2
        kept = self.get()
        self._stores = [new.new_empty(*new.shape[:2], capacity, new.shape[3]) for new in tensors]
        for store, old in zip(self._stores, kept, strict=False):
            store[:, :, : self.length] = old


class BlockCache:
    """Of one block: what it has attended to in its own sequence, and the projected context."""

    def __init__(self) -> None:
        self.own = KeyValues()
        self.context = KeyValues()


class TransformerCache:
    """Of a whole transformer. Make a new one for every sequence; it holds no gradients.

    Attributes:
        length: tokens seen so far, memory and prepended tokens included.
    """

    def __init__(self, depth: int) -> None:
        self.length = 0
        self.blocks = [BlockCache() for _ in range(depth)]
