"""Products of projected inputs and output gradients, taken for many layers at a time.

A layer's product is a matrix of r x r numbers a sample: far too little work to keep a GPU busy, and there are
hundreds of layers. So the two sides wait, a few hundred kilobytes a layer, and layers of one shape are
multiplied in one call.

Shapes: ``B`` samples, ``S`` positions, ``o`` and ``i`` the projected widths, ``n`` layers of one shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.gradients.layers import MatrixSketch, multiply

NUMBERS_AT_ONCE = 1 << 26
"""Numbers of one side that may wait: 256 MB in float32, all layers of Stable Audio Open at batch 16."""

Waiting = tuple[MatrixSketch, Tensor, Tensor]
"""A layer, its projected inputs (B, S, i) and its projected output gradients (B, S, o)."""


class PendingProducts:
    """Collects the sides of layers and adds their products to features.

    Args:
        spans: the columns of each layer by name.
        places: where :meth:`flush` keeps what it finds out about the order of layers, for the next time.

    Attributes:
        features: (B, D) float32, what is added to; whoever begins a backward pass sets it.
    """

    features: Tensor

    def __init__(self, spans: Mapping[str, slice], places: dict[tuple[str, ...], Tensor]) -> None:
        self._spans = spans
        self._places = places
        self._waiting: dict[int, list[Waiting]] = {}
        self._calls: Counter[str] = Counter()
        self._numbers = 0

    def add(self, layer: MatrixSketch, captured: Tensor, projected: Tensor) -> None:
        """Take the projected inputs (B, S, i) and output gradients (B, S, o) of one call of ``layer``."""
        self._calls[layer.name] += 1  # a layer called again waits elsewhere: there each layer is once
        self._waiting.setdefault(self._calls[layer.name], []).append((layer, captured, projected))
        self._numbers += max(projected.numel(), captured.numel())
        if self._numbers >= NUMBERS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Multiply what waits."""
        for waiting in self._waiting.values():
            groups: dict[tuple[int, ...], list[Waiting]] = {}
            for entry in waiting:
                groups.setdefault((*entry[1].shape[1:], entry[2].shape[2]), []).append(entry)
            products = torch.cat([_multiply_group(group) for group in groups.values()], dim=1)
            names = [layer.name for group in groups.values() for layer, _, _ in group]
            # A gather, and no scattered addition: that would be slow where it has to be repeatable.
            self.features += F.pad(products, (0, 1)).index_select(1, self._place(names))
        self._waiting.clear()
        self._calls.clear()
        self._numbers = 0

    def _place(self, names: Sequence[str]) -> Tensor:
        """For each column of the features its column in the products of ``names``, or the one behind them."""
        key = tuple(names)
        if key not in self._places:
            columns = torch.cat([torch.arange(self._spans[n].start, self._spans[n].stop) for n in names])
            place = torch.full((self.features.shape[1],), len(columns))
            place[columns] = torch.arange(len(columns))
            self._places[key] = place.to(self.features.device)
        return self._places[key]


def _multiply_group(group: Sequence[Waiting]) -> Tensor:
    """The products of layers of one shape beside each other, (B, n o i)."""
    layers, inputs, gradients = zip(*group, strict=True)
    size, width = inputs[0].shape[0], inputs[0].shape[2]
    bias = None
    if any(layer.has_bias for layer in layers):
        nothing = torch.zeros(width, device=inputs[0].device)
        rows = [nothing if layer.bias_row is None else layer.bias_row for layer in layers]
        bias = torch.stack(rows).repeat_interleave(size, dim=0)[:, None]
    products = multiply(torch.cat(gradients), torch.cat(inputs), bias)  # (n B, o i)
    return products.unflatten(0, (len(layers), size)).transpose(0, 1).flatten(1)
