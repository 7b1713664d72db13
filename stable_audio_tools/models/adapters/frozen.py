"""The frozen base under an adapter, held in half precision."""

from __future__ import annotations

import torch
from torch import nn


def hold_base(network: nn.Module, dtype: torch.dtype) -> int:
    """Store the frozen linear weights of ``network`` in ``dtype``, in place; returns the bytes saved.

    Autocast casts a frozen float32 weight anew in every forward pass (it keeps only the casts of weights that
    are trained), and once more where a block is recomputed. Held in ``dtype`` it is cast once. Linear layers
    see the same rounded numbers either way; norms, convolutions and adapters, which compute in float32 or are
    trained, stay as they are. The network then needs autocast around its forward pass.
    """
    saved = 0
    for module in network.modules():
        if not isinstance(module, nn.Linear):
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                saved += parameter.numel() * (4 - dtype.itemsize)
                parameter.data = parameter.data.to(dtype)
    return saved
