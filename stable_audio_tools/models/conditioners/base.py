"""What every conditioner has in common."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Condition: TypeAlias = tuple[Tensor, Tensor]
"""Embeddings ``(B, S, D)`` and their boolean mask ``(B, S)``, true where there is something."""


class Conditioner(nn.Module):
    """Turns a batch of values into embeddings of ``output_dim`` channels.

    Args:
        dim: channels of the embedding before projection.
        output_dim: channels after it. A projection is made only where they differ or ``project_out`` asks for
            it.
    """

    def __init__(self, dim: int, output_dim: int, project_out: bool = False) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.proj_out = nn.Linear(dim, output_dim) if project_out or dim != output_dim else nn.Identity()

    def forward(self, values: list[Any], device: torch.device | str) -> Condition:
        """Embed one value per batch item.

        Raises:
            DataError: a value is not of the kind this conditioner takes.
        """
        raise TypeError(f"{type(self).__name__} must define forward")


def single_token(embeddings: Tensor) -> Condition:
    """Embeddings ``(B, D)`` as one token each, with a mask of ones."""
    return embeddings.unsqueeze(1), torch.ones(len(embeddings), 1, dtype=torch.bool, device=embeddings.device)
