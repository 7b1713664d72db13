"""A number as one token."""

from __future__ import annotations

import math
from typing import Any

import torch

from stable_audio_tools.errors import DataError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, single_token
from stable_audio_tools.nn.embeddings import NumberEmbedder
from stable_audio_tools.schema.built import only
from stable_audio_tools.schema.conditioning import NumberConfig


def to_number(value: Any) -> float:
    """``value`` as a float, or a DataError where it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected a number, found {value!r}") from error
    if not math.isfinite(number):
        raise DataError(f"expected a finite number, found {value!r}")
    return number


class NumberConditioner(Conditioner):
    """A number, clamped to ``[min_val, max_val]`` and scaled to 0..1, through learned Fourier features."""

    def __init__(self, config: NumberConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim)
        only(config, "fourier_features_type", "learned")
        self.config = config
        self.embedder = NumberEmbedder(output_dim)

    def forward(self, values: list[Any], device: torch.device | str) -> Condition:
        low, high = self.config.min_val, self.config.max_val
        x = torch.tensor([to_number(value) for value in values], device=device).clamp(low, high)
        weight = next(self.embedder.parameters())
        return single_token(self.embedder(((x - low) / (high - low)).to(weight.dtype)))
