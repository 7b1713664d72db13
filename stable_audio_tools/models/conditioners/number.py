"""A number as one token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import DataError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, each, single_token
from stable_audio_tools.nn.embeddings import ExpoFourierFeatures, NumberEmbedder
from stable_audio_tools.runtime.device import send
from stable_audio_tools.schema.conditioning import NumberConfig

_EXPO_FEATURES = 256


def to_number(value: Any) -> float:
    """``value`` as a float, or a DataError where it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of several numbers
        raise DataError(f"expected a number, found {value!r}") from error
    if not math.isfinite(number):
        raise DataError(f"expected a finite number, found {value!r}")
    return number


class ExpoNumberEmbedder(nn.Module):
    """One vector per number: Fourier features of fixed frequencies and a linear layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(
            ExpoFourierFeatures(_EXPO_FEATURES), nn.Linear(_EXPO_FEATURES, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Numbers ``(...)`` to vectors ``(..., features)``."""
        return self.embedding(x.unsqueeze(-1))


class NumberConditioner(Conditioner):
    """A number, clamped to ``[min_val, max_val]`` and scaled to 0..1, through Fourier features.

    Their frequencies are learned (Stable Audio), or with ``expo`` fixed between 0.5 and 10,000 turns (Stable
    Audio 3).
    """

    def __init__(self, config: NumberConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim)
        self.config = config
        learned = config.fourier_features_type == "learned"
        self.embedder = NumberEmbedder(output_dim) if learned else ExpoNumberEmbedder(output_dim)

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """One token ``(B, 1, D)`` for each number, and a mask of ones."""
        low, high = self.config.min_val, self.config.max_val
        x = send(torch.tensor(each(values, to_number), dtype=torch.float32), device).clamp(low, high)
        weight = next(self.embedder.parameters())
        return single_token(self.embedder(((x - low) / (high - low)).to(weight.dtype)))
