"""Keeping parts of a clip and making the rest anew: masks, and sampling around what is kept.

A mask is 1 where the clip is kept and 0 where it is regenerated. In between, it is kept at first and let go
once so much of the noise is gone: 0.7 holds until the noise level has come down to 0.3 of where it began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.diffusion.objectives import Objective
from stable_audio_tools.errors import UsageError

NO_NOISE = 1e-6


def region_mask(
    regions: Sequence[tuple[float, float]], length: int, rate: float, fade_seconds: float = 0.0
) -> Tensor:
    """The mask ``(length,)`` that regenerates ``regions`` and keeps everything else.

    Args:
        regions: (start, end) of each, in seconds, in any order; they may overlap or reach past the end.
        length: samples or frames.
        rate: of those, in Hz.
        fade_seconds: how long the mask takes to fall from 1 to 0 within each region's edges (half a Hann
            window); at most half of the region. An edge at the start or the end of the clip has no fade.

    Raises:
        UsageError: a region is empty or starts before 0.
    """
    if fade_seconds < 0:
        raise UsageError(f"fade_seconds {fade_seconds}: expected 0 or more")
    seconds = (torch.arange(length, dtype=torch.float64) + 0.5) / rate
    mask = torch.ones(length, dtype=torch.float64)
    for start, end in regions:
        if not 0 <= start < end:
            raise UsageError(f"inpainting region ({start}, {end}): expected 0 <= start < end, in seconds")
        inside = (seconds >= start) & (seconds < end)
        fade = min(fade_seconds, (end - start) / 2)
        kept = torch.zeros_like(mask)
        if fade > 0:
            from_start = math.inf if start == 0 else seconds - start
            to_end = math.inf if end * rate >= length else end - seconds
            depth = torch.minimum(torch.as_tensor(from_start), torch.as_tensor(to_end)) / fade
            kept = (1 + torch.cos(math.pi * depth.clamp(0, 1))) / 2
        mask = torch.where(inside, torch.minimum(mask, kept), mask)
    return mask.float()


def latent_mask(mask: Tensor, batch_size: int, length: int) -> Tensor:
    """A mask over samples, ``(T,)`` or ``(1 or B, T)``, as ``(B, 1, length)`` over latent frames.

    Each frame takes the value of one sample, as in the public code.

    Raises:
        UsageError: another shape, or values outside 0 to 1.
    """
    rows = torch.atleast_2d(torch.as_tensor(mask)).float()
    if rows.ndim != 2 or len(rows) not in (1, batch_size) or not rows.numel():
        raise UsageError(
            f"inpaint_mask: found shape {tuple(rows.shape)}, expected (T,) or (1 or {batch_size}, T)"
        )
    if not ((rows >= 0) & (rows <= 1)).all():
        raise UsageError(
            f"inpaint_mask: found values from {rows.min():g} to {rows.max():g}, expected 0 (regenerate) to"
            " 1 (keep)"
        )
    return F.interpolate(rows.unsqueeze(1), length, mode="nearest").expand(batch_size, -1, -1)


class KeptRegions:
    """Makes any network inpaint: where the mask keeps, its answer is the one that leads to the known latents.

    The network sees the known parts with their noise on them (Song et al. 2021, section I.2), and a sampler
    is led to them exactly, whatever its order and its levels, since for it they are a perfect prediction.
    Soft values are let go on the way (Levin and Fried 2023).

    Args:
        known: clean latents, ``(B, C, L)``.
        mask: ``(B, 1, L)`` in [0, 1]; 1 keeps.
        objective: what the network answers.
        first: the network's time at which sampling begins.
    """

    def __init__(self, known: Tensor, mask: Tensor, objective: Objective, first: float) -> None:
        self.known, self.mask, self.objective, self.first = known, mask, objective, first
        self._noise: Tensor | None = None

    def start(self, x: Tensor, noised: Tensor) -> Tensor:
        """Where to begin: ``noised`` known latents where they are kept, else ``x``."""
        return torch.where(self.mask > 0, noised, x)

    def finish(self, x: Tensor) -> Tensor:
        """Sampled latents, with what was kept to the end as it was."""
        return torch.where(self.mask >= 1, self.known, x)

    def around(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """``model(x, t)`` whose answer leads to the known latents where they are kept."""

        def call(x: Tensor, t: Tensor, **options: Any) -> Any:
            answer = model(x, t, **options)
            kept = self._kept(t)
            towards = self._towards_known(x, t)
            if not isinstance(answer, tuple):
                return torch.where(kept, towards, answer)
            output, info = answer
            return torch.where(kept, towards, output), {
                key: torch.where(kept, towards, value) for key, value in info.items()
            }

        return call

    def _kept(self, t: Tensor) -> Tensor:
        progress = 1 - t.view(-1, 1, 1) / self.first
        return (self.mask >= 1) | (self.mask > progress)

    def _towards_known(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value.view(-1, 1, 1) for value in self.objective.alpha_sigma(t))
        noise = (x - alpha * self.known) / sigma.clamp_min(NO_NOISE)
        if self._noise is not None:  # without noise, x does not tell it: it is what it was
            noise = torch.where(sigma > NO_NOISE, noise, self._noise)
        self._noise = noise
        return self.objective.target(self.known, noise, t)
