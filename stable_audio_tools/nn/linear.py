"""Several projections in one weight matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Parts = Callable[[Tensor, int], tuple[Tensor, ...]]


def linear_parts(linear: nn.Module, x: Tensor, count: int) -> tuple[Tensor, ...]:
    """The output of ``linear`` in ``count`` parts of one width, along the last axis.

    Compiled they are products of their own, so that their gradients need not be joined: for 16 clips and a
    block of Stable Audio Open 400 MB of its gate and 150 MB of its queries, keys and values, to write and to
    read. A module that is no plain ``nn.Linear`` is asked for its ``parts``, or for all of its
    output where it has no such method.
    """
    if torch.compiler.is_compiling():
        own: Parts | None = getattr(linear, "parts", None)
        if own is not None:
            return own(x, count)
        if type(linear) is nn.Linear:
            return products_of_parts(linear, x, count)
    return tuple(linear(x).chunk(count, dim=-1))


def products_of_parts(linear: nn.Linear, x: Tensor, count: int) -> tuple[Tensor, ...]:
    """The parts of what ``linear`` makes of ``x``, each a product with its rows of the weight."""
    weights = linear.weight.chunk(count)
    biases = [None] * count if linear.bias is None else linear.bias.chunk(count)
    return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
