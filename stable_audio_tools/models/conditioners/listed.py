"""One word of a list as one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stable_audio_tools.models.conditioners.base import Condition, Conditioner, single_token
from stable_audio_tools.runtime.device import send
from stable_audio_tools.schema.conditioning import ListConfig


class ListConditioner(Conditioner):
    """One of ``options``, a learned embedding each; row 0 is for anything else."""

    def __init__(self, config: ListConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim)
        self.rows: dict[str, int] = {}
        for row, option in enumerate(config.options, start=1):
            self.rows.setdefault(option, row)  # an option listed twice keeps its first row
        self.embedder = nn.Embedding(len(config.options) + 1, output_dim)

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """One token ``(B, 1, D)`` for each word, and a mask of ones."""
        rows = send(torch.tensor([self.rows.get(str(value), 0) for value in values]), device)
        return single_token(self.embedder(rows))
