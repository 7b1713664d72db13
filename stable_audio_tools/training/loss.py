"""The diffusion loss, with every draw handed in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.objectives import get_objective

BANDS = 4
"""Timesteps in [0, 1] are reported in this many equal bands."""


class DiffusionLoss(NamedTuple):
    """``mean`` is the scalar to minimise; ``per_item`` ``(B,)`` holds each item's own mean.

    ``output`` is what the network answered.
    """

    mean: Tensor
    per_item: Tensor
    output: Tensor


def diffusion_loss(
    network: nn.Module,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    conditioning: dict[str, Any],
    objective: str,
    mask: Tensor | None = None,
) -> DiffusionLoss:
    """Mean squared error between the network's output and the target of ``objective``.

    Args:
        network: called as ``network(x_t, t, **conditioning)``.
        latents: clean latents ``(B, C, L)``.
        noise: standard normal, of the same shape.
        timesteps: ``(B,)`` in [0, 1]; 0 is clean.
        objective: ``v``, ``rectified_flow`` or ``rf_denoiser``.
        mask: ``(B, L)``, 1 where there is audio; padded positions count in neither sum nor size of the mean.
    """
    rule = get_objective(objective)
    output = network(rule.add_noise(latents, noise, timesteps), timesteps, **conditioning)
    # the difference is taken in float32: under float16 autocast a square may overflow
    error = (output.float() - rule.target(latents, noise, timesteps).float()).square().mean(dim=1)
    if mask is None:
        return DiffusionLoss(error.mean(), error.mean(dim=1), output)
    kept = error * mask
    per_item = kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return DiffusionLoss(kept.sum() / mask.sum().clamp(min=1), per_item, output)


class BandedLoss:
    """Loss by timestep band since the last report, kept on the device until it is asked for."""

    def __init__(self, bands: int = BANDS) -> None:
        self.bands = bands
        self._sums: Tensor | None = None

    def add(self, per_item: Tensor, timesteps: Tensor) -> None:
        """Count items ``(B,)`` at ``timesteps`` ``(B,)``."""
        per_item = per_item.detach().float()
        if self._sums is None:
            self._sums = torch.zeros(2, self.bands, device=per_item.device)
        band = (timesteps.detach() * self.bands).long().clamp(0, self.bands - 1)
        self._sums[0].index_add_(0, band, per_item)
        self._sums[1].index_add_(0, band, torch.ones_like(per_item))

    def take(self) -> Tensor | None:
        """Sums and counts ``(2, bands)`` since the last call, or None; then starts again."""
        sums, self._sums = self._sums, None
        return sums

    def name(self, band: int) -> str:
        """The name of a band in the logs, by its bounds."""
        return f"train/loss_t{band / self.bands:.2f}-{(band + 1) / self.bands:.2f}"
