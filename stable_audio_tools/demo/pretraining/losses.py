"""Reconstruction losses of the tiny codecs, and the numbers that say how good they are."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_RESOLUTIONS = (2048, 1024, 512, 256, 128, 64)


@lru_cache(maxsize=32)
def _window(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def magnitudes(audio: Tensor, size: int) -> Tensor:
    """STFT magnitudes ``(N, size / 2 + 1, frames)`` of ``(..., T)``, hop a quarter of ``size``."""
    flat = audio.reshape(-1, audio.shape[-1])
    spectrum = torch.stft(flat, size, size // 4, window=_window(size, audio.device), return_complex=True)
    return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)


def multi_resolution_stft(estimate: Tensor, reference: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude distance over six window sizes (Yamamoto et al. 2020)."""
    total = estimate.new_zeros(())
    for size in _RESOLUTIONS:
        found, wanted = magnitudes(estimate, size), magnitudes(reference, size)
        total = total + (found - wanted).norm() / (wanted.norm() + 1e-5)
        total = total + (torch.log(found + 1e-4) - torch.log(wanted + 1e-4)).abs().mean()
    return total / len(_RESOLUTIONS)


def mid_side(audio: Tensor) -> Tensor:
    """Left, right, their half sum and half difference, ``(B, 4, T)`` of stereo ``(B, 2, T)``."""
    left, right = audio.unbind(1)
    return torch.stack([left, right, (left + right) / 2, (left - right) / 2], dim=1)


def reconstruction_loss(estimate: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Spectral and time-domain distance of ``(B, C, T)`` audio, and both terms by name."""
    if reference.shape[1] == 2:
        estimate, reference = mid_side(estimate), mid_side(reference)
    spectral = multi_resolution_stft(estimate, reference)
    time = (estimate - reference).abs().mean()
    return spectral + 10.0 * time, {"stft": spectral.detach(), "l1": time.detach()}


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of ``(B, C, T)``, per item (Le Roux et al. 2019)."""
    estimate, reference = estimate.flatten(1), reference.flatten(1)
    scale = (estimate * reference).sum(1) / reference.square().sum(1).clamp(min=1e-9)
    target = scale[:, None] * reference
    return 10 * torch.log10(target.square().sum(1) / (estimate - target).square().sum(1).clamp(min=1e-9))


def log_spectral_distance(estimate: Tensor, reference: Tensor, floor_db: float = -60.0) -> Tensor:
    """Mean absolute difference in dB of the 1024-point spectra of ``(B, C, T)``, above a floor."""
    floor = 10 ** (floor_db / 20) * magnitudes(reference, 1024).max()
    found, wanted = (20 * torch.log10(magnitudes(x, 1024).clamp(min=floor)) for x in (estimate, reference))
    return (found - wanted).abs().mean()
