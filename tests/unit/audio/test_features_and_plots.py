"""Mel features put a tone where it belongs; pictures are PNGs of the size asked for."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from stable_audio_tools.audio.features import hz_to_mel, log_mel, mel_filterbank, mel_to_hz
from stable_audio_tools.audio.plots import lines_png, spectrogram_png
from stable_audio_tools.errors import UsageError


def _tone(frequency: float, seconds: float = 1.0, rate: int = 16000) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)) / rate)


def test_mel_scale_and_its_inverse() -> None:
    frequencies = torch.tensor([0.0, 100.0, 1000.0, 8000.0])
    torch.testing.assert_close(mel_to_hz(hz_to_mel(frequencies)), frequencies, atol=0.05, rtol=1e-4)
    assert float(hz_to_mel(torch.tensor(1000.0))) == pytest.approx(1000.0, abs=0.1)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(16000, 512, 40), (44100, 2048, 128), (8000, 64, 64)])
def test_no_mel_band_is_empty(rate: int, n_fft: int, n_mels: int) -> None:
    filters = mel_filterbank(rate, n_fft, n_mels)
    assert filters.shape == (n_mels, n_fft // 2 + 1)
    assert bool((filters >= 0).all())
    assert float(filters.amax(dim=1).min()) > 0


def test_a_tone_is_loudest_in_its_own_band_at_zero_db() -> None:
    levels = log_mel(torch.stack([_tone(1000), 0.1 * _tone(3000)]), 16000, n_mels=80)
    assert levels.shape == (2, 80, 1 + 16000 // 512)
    middle = levels[..., levels.shape[-1] // 2]
    centres = mel_to_hz(torch.linspace(0, float(hz_to_mel(torch.tensor(8000.0))), 82)[1:-1])
    for row, frequency, level in [(0, 1000, 0.0), (1, 3000, -20.0)]:
        assert float(centres[middle[row].argmax()]) == pytest.approx(frequency, rel=0.05)
        assert float(middle[row].max()) == pytest.approx(level, abs=4.0)


def test_log_mel_is_differentiable_and_silence_is_at_the_floor() -> None:
    audio = _tone(440).requires_grad_()
    log_mel(audio, 16000).mean().backward()
    assert audio.grad is not None
    assert float(audio.grad.abs().sum()) > 0
    assert set(log_mel(torch.zeros(4000), 16000, floor_db=-90).unique().tolist()) == {-90.0}


def test_band_limits_outside_the_rate_are_refused() -> None:
    with pytest.raises(UsageError, match="9000"):
        mel_filterbank(16000, 512, 40, max_hz=9000)


def _size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_pictures_have_the_size_asked_for_and_depend_on_the_data_only() -> None:
    audio = torch.stack([_tone(440), _tone(880)])
    first = spectrogram_png(audio, 16000, title="cost $5 & 10$", width_px=500, height_px=150)
    assert _size(first) == (500, 150)
    assert spectrogram_png(audio, 16000, title="cost $5 & 10$", width_px=500, height_px=150) == first
    assert spectrogram_png(audio * 0 + _tone(2000), 16000, width_px=500, height_px=150) != first
    assert _size(lines_png({"loss": [3, 2, 1], "ema": [3, 2.5, float("nan")]}, xlabel="step")) == (640, 320)


def test_silence_and_short_clips_can_be_drawn_and_nothing_cannot() -> None:
    assert _size(spectrogram_png(torch.zeros(2, 16000), 16000)) == (640, 200)
    assert _size(spectrogram_png(torch.randn(1, 10), 16000)) == (640, 200)
    with pytest.raises(UsageError, match="shape"):
        spectrogram_png(torch.zeros(2, 0), 16000)
    with pytest.raises(UsageError, match="'a' has 2 values for 3"):
        lines_png({"a": [1, 2]}, x=[0, 1, 2])
