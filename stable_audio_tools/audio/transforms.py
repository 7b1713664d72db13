"""Small changes to audio tensors: rate, channels, length, level."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError


def resampled_length(num_frames: int, from_rate: int, to_rate: int) -> int:
    """How many samples ``num_frames`` at ``from_rate`` become at ``to_rate``, rounded half up."""
    return (2 * num_frames * to_rate + from_rate) // (2 * from_rate)


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """``audio`` ``(..., T)`` at ``to_rate`` Hz, with soxr's HQ filter, on the CPU; device and dtype are kept.

    The result has :func:`resampled_length` samples. No gradient flows through it.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise UsageError(f"sample rates must be positive, found {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return audio
    import soxr

    length = resampled_length(audio.shape[-1], from_rate, to_rate)
    if audio.numel() == 0:
        return audio.new_zeros(*audio.shape[:-1], length)
    flat = audio.detach().to("cpu", torch.float32).reshape(-1, audio.shape[-1])
    # one channel after the other: interleaving them for soxr would cost half as much again
    rows = [
        torch.from_numpy(soxr.resample(row.contiguous().numpy(), from_rate, to_rate, quality="HQ"))
        for row in flat
    ]
    result, _ = pad_or_trim(torch.stack(rows), length)
    return result.reshape(*audio.shape[:-1], length).to(audio.device, audio.dtype)


def set_channels(audio: Tensor, channels: int) -> Tensor:
    """``audio`` ``(C, T)`` or ``(B, C, T)`` with ``channels`` channels.

    Mono is the mean of all and spreads to any number; stereo takes the front pair of more channels.

    Raises:
        UsageError: there is no sensible way, as from 2 to 6.
    """
    found = audio.shape[-2]
    if found == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=-2, keepdim=True)
    if found == 1:
        return audio.expand(*audio.shape[:-2], channels, audio.shape[-1]).clone()
    if channels == 2:
        return audio[..., :2, :]
    raise UsageError(f"cannot turn audio of {found} channels into {channels}; expected 1 or 2 channels")


def pad_or_trim(audio: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """``audio`` ``(..., T)`` cut or zero-padded to ``length``, and the mask ``(length,)``: 1 is audio."""
    kept = min(audio.shape[-1], length)
    mask = torch.zeros(length)
    mask[:kept] = 1.0
    if audio.shape[-1] >= length:
        return audio[..., :length], mask
    return torch.nn.functional.pad(audio, (0, length - kept)), mask


def shorten_silences(audio: Tensor, *, level: float, longest: int, kept: int) -> Tensor:
    """``audio`` ``(C, T)`` with ``kept`` samples left of each silence of more than ``longest``.

    A silence is a run of samples below ``level`` in every channel; its start is what stays.
    """
    quiet = (audio.abs() < level).all(dim=0).to(torch.int8)
    edges = torch.diff(quiet, prepend=quiet.new_zeros(1), append=quiet.new_zeros(1))
    stays = torch.ones(audio.shape[-1], dtype=torch.bool)
    for start, end in zip(edges.eq(1).nonzero(), edges.eq(-1).nonzero(), strict=True):
        if end - start > longest:
            stays[start + kept : end] = False
    return audio[:, stays]


def peak_normalize(audio: Tensor, peak: float = 1.0) -> Tensor:
    """``audio`` ``(T,)``, ``(C, T)`` or ``(B, C, T)`` scaled so that each clip peaks at ``peak``.

    Channels keep their balance. Silence stays silence.
    """
    dims = tuple(range(-min(2, audio.ndim), 0))
    largest = audio.abs().amax(dim=dims, keepdim=True)
    return torch.where(largest > 0, audio * (peak / largest.clamp_min(torch.finfo(audio.dtype).tiny)), audio)


def rms_normalize(audio: Tensor, level_db: float = -16.0) -> Tensor:
    """``audio`` ``(C, T)`` scaled to a root mean square of ``level_db`` dBFS, but never past a peak of 1.

    Zeros at the end, which may be padding, do not count. Silence stays silence.
    """
    sounding = audio.abs().amax(dim=-2).nonzero()
    if len(sounding) == 0:
        return audio
    heard = audio[..., : int(sounding[-1]) + 1]
    gain = 10 ** (level_db / 20) / heard.square().mean().sqrt()
    return audio * torch.minimum(gain, 1 / heard.abs().max())
