"""Mel spectrograms: what plots show and what demo losses compare."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError


def hz_to_mel(frequency_hz: Tensor) -> Tensor:
    """The mel scale of O'Shaughnessy (1987): 2595 log10(1 + f / 700)."""
    return 2595.0 * torch.log10(1.0 + frequency_hz / 700.0)


def mel_to_hz(mel: Tensor) -> Tensor:
    """The inverse of :func:`hz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def mel_filterbank(
    sample_rate: int, n_fft: int, n_mels: int, *, min_hz: float = 0.0, max_hz: float | None = None
) -> Tensor:
    """Triangular filters ``(n_mels, n_fft // 2 + 1)``, each of peak 1, evenly spaced in mel.

    A band that is narrower than a bin still takes the bin nearest to its centre, so that no band is empty.

    Raises:
        UsageError: the band limits do not fit the sample rate.
    """
    max_hz = sample_rate / 2 if max_hz is None else max_hz
    if not 0 <= min_hz < max_hz <= sample_rate / 2:
        raise UsageError(f"mel band from {min_hz} to {max_hz} Hz does not fit a rate of {sample_rate} Hz")
    limits = hz_to_mel(torch.tensor([min_hz, max_hz], dtype=torch.float64))
    edges = mel_to_hz(torch.linspace(float(limits[0]), float(limits[1]), n_mels + 2, dtype=torch.float64))
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    empty = (filters.amax(dim=1) == 0).nonzero()[:, 0]
    filters[empty, (bins - centre[empty]).abs().argmin(dim=1)] = 1.0
    return filters.float()


def log_mel(
    audio: Tensor,
    sample_rate: int,
    *,
    n_fft: int = 2048,
    hop_length: int = 512,
    n_mels: int = 128,
    min_hz: float = 0.0,
    max_hz: float | None = None,
    floor_db: float = -100.0,
) -> Tensor:
    """Mel power spectrogram of ``audio`` ``(..., T)`` in dB: ``(..., n_mels, 1 + T // hop_length)``.

    0 dB is the power of a full-scale sine in its own bin; nothing is below ``floor_db``. Differentiable.
    """
    window = torch.hann_window(n_fft, device=audio.device, dtype=audio.dtype)
    flat = audio.reshape(-1, audio.shape[-1])
    reach = n_fft // 2
    flat = torch.nn.functional.pad(flat, (reach, reach))
    spectrum = torch.stft(flat, n_fft, hop_length, window=window, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = mel_filterbank(sample_rate, n_fft, n_mels, min_hz=min_hz, max_hz=max_hz).to(power)
    full_scale = (window.sum() / 2).square()
    mel = (filters @ power) / full_scale
    decibels = 10.0 * torch.log10(mel.clamp_min(10.0 ** (floor_db / 10.0)))
    return decibels.reshape(*audio.shape[:-1], *decibels.shape[-2:])
