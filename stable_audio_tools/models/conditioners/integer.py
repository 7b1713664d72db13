"""A whole number as one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stable_audio_tools.models.conditioners.base import Condition, Conditioner, each, single_token
from stable_audio_tools.models.conditioners.number import to_number
from stable_audio_tools.runtime.device import send
from stable_audio_tools.schema.conditioning import IntConfig


class IntConditioner(Conditioner):
    """A whole number clamped to ``[min_val, max_val]``, one learned embedding each.

    The row of a value is the value modulo the size of the range. That gives each value its own row for any
    range, and is the row the public code uses wherever that one has a row at all (it takes the value itself).
    """

    def __init__(self, config: IntConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim)
        self.config = config
        self.int_embedder = nn.Embedding(config.max_val - config.min_val + 1, output_dim)

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """One token ``(B, 1, D)`` for each number, and a mask of ones."""
        x = send(torch.tensor([int(number) for number in each(values, to_number)]), device)
        rows = x.clamp(self.config.min_val, self.config.max_val) % self.int_embedder.num_embeddings
        return single_token(self.int_embedder(rows))
