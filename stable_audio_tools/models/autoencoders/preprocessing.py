"""Audio of any rate, width and length as one batch that an autoencoder takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.audio.transforms import pad_or_trim, resample, set_channels
from stable_audio_tools.errors import UsageError


def prepare_batch(
    audio: Sequence[Tensor], rates: Sequence[int], *, sample_rate: int, channels: int, multiple: int
) -> Tensor:
    """All of ``audio`` at one rate with ``channels``, padded with silence to one length: ``(B, C, T)``.

    Args:
        audio: clips ``(C, T)``, ``(1, C, T)`` or ``(T,)``; their channels and lengths may differ.
        rates: the rate of each, in Hz.
        multiple: T is the longest length rounded up to one of these.

    Raises:
        UsageError: there is no clip, a clip has another shape, or there is not one rate for each.
    """
    if not audio:
        raise UsageError("no audio was given; expected at least one clip")
    if len(rates) != len(audio):
        raise UsageError(f"{len(rates)} sample rates were given for {len(audio)} clips; give one for each")
    clips = [
        set_channels(resample(_as_clip(clip), rate, sample_rate), channels)
        for clip, rate in zip(audio, rates, strict=True)
    ]
    longest = max(1, *(clip.shape[-1] for clip in clips), 0)
    length = -(-longest // multiple) * multiple
    return torch.stack([pad_or_trim(clip, length)[0] for clip in clips])


def _as_clip(audio: Tensor) -> Tensor:
    if audio.ndim == 1:
        return audio.unsqueeze(0)
    if audio.ndim == 3 and len(audio) == 1:
        return audio[0]
    if audio.ndim != 2:
        raise UsageError(f"a clip must have the shape (channels, length), found {tuple(audio.shape)}")
    return audio
