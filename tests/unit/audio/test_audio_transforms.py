"""Changes to audio tensors keep what they must."""

from __future__ import annotations

import math

import pytest
import torch

from stable_audio_tools.audio.transforms import (
    pad_or_trim,
    peak_normalize,
    resample,
    resampled_length,
    rms_normalize,
    set_channels,
)
from stable_audio_tools.errors import UsageError


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 48000), (48000, 44100), (44100, 16000)])
def test_a_resampled_tone_is_the_tone_at_the_other_rate(from_rate: int, to_rate: int) -> None:
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(2 * math.pi * 1000 * torch.arange(rate, dtype=torch.float64) / rate).float()

    result = resample(tone(from_rate).expand(2, 1, -1), from_rate, to_rate)
    assert result.shape == (2, 1, to_rate)
    inner = slice(to_rate // 10, -to_rate // 10)
    torch.testing.assert_close(result[1, 0, inner], tone(to_rate)[inner], atol=1e-3, rtol=0)


def test_resampling_keeps_length_law_and_dtype() -> None:
    for frames in (0, 1, 7, 1000, 12345):
        result = resample(torch.ones(3, frames, dtype=torch.float64), 44100, 48000)
        assert result.shape == (3, resampled_length(frames, 44100, 48000))
        assert result.dtype == torch.float64
    same = torch.randn(2, 10)
    assert resample(same, 8000, 8000) is same
    with pytest.raises(UsageError, match="positive"):
        resample(same, 0, 8000)


def test_channels() -> None:
    stereo = torch.randn(4, 2, 10)
    torch.testing.assert_close(set_channels(stereo, 1), stereo.mean(1, keepdim=True))
    torch.testing.assert_close(set_channels(set_channels(stereo, 1), 2)[:, 1], stereo.mean(1))
    assert set_channels(stereo, 2) is stereo
    torch.testing.assert_close(set_channels(torch.arange(6.0)[:, None], 2), torch.tensor([[0.0], [1.0]]))
    with pytest.raises(UsageError, match="2 channels into 6"):
        set_channels(stereo, 6)


def test_pad_or_trim_masks_what_was_there() -> None:
    audio = torch.ones(2, 5)
    padded, mask = pad_or_trim(audio, 8)
    assert padded.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert mask.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    trimmed, mask = pad_or_trim(audio, 3)
    assert trimmed.shape == (2, 3)
    assert mask.tolist() == [1, 1, 1]


def test_peak_normalize_per_clip_and_silence_stays() -> None:
    audio = torch.stack([torch.tensor([[0.1, -0.2], [0.05, 0.0]]), torch.zeros(2, 2)])
    result = peak_normalize(audio, 0.5)
    torch.testing.assert_close(result[0], torch.tensor([[0.25, -0.5], [0.125, 0.0]]))
    assert result[1].tolist() == [[0, 0], [0, 0]]
    assert peak_normalize(torch.zeros(3)).tolist() == [0, 0, 0]


def test_rms_normalize_ignores_padding_and_never_clips() -> None:
    audio = 0.01 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    level = rms_normalize(audio, -16.0).square().mean().sqrt()
    assert 20 * math.log10(level) == pytest.approx(-16, abs=1e-3)
    padded, _ = pad_or_trim(audio, 4000)
    torch.testing.assert_close(rms_normalize(padded, -16.0)[:, :1000], rms_normalize(audio, -16.0))
    click = torch.zeros(1, 10000)
    click[0, -1] = 0.1
    assert rms_normalize(click).abs().max() == pytest.approx(1.0)
    assert rms_normalize(torch.zeros(1, 5)).tolist() == [[0] * 5]
