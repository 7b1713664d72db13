"""Latents kept within bounds by a fixed function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import Bottleneck, Generators, Info
from stable_audio_tools.schema.bottlenecks import NoConfig, TanhConfig


class TanhBottleneck(Bottleneck):
    """Latents in ``(-scale, scale)``: ``scale tanh(x / scale)``."""

    def __init__(self, config: TanhConfig) -> None:
        super().__init__()
        self.scale = config.scale

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to the same shape; there is nothing to report."""
        return torch.tanh(x / self.scale) * self.scale, {}


class L2NormBottleneck(Bottleneck):
    """Latents whose channels have length one at each frame, on the way in and again on the way out."""

    def __init__(self, config: NoConfig) -> None:
        super().__init__()

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to the same shape; there is nothing to report."""
        return F.normalize(x, dim=1), {}

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """Latents back on the sphere: what a diffusion model answers lies only near it."""
        return F.normalize(latents, dim=1)
