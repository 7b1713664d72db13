"""Spectral losses against their definition in float64, computed here from plain discrete Fourier sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stable_audio_tools.schema.losses import (
    MelLossConfig,
    MelMetricConfig,
    SISDRConfig,
    STFTLossConfig,
    STFTMetricConfig,
)
from stable_audio_tools.training.reconstruction import SpectralMetric, si_sdr
from stable_audio_tools.training.spectral_losses import (
    A_WEIGHTING_TAPS,
    AWeighting,
    MelSpectrogramLoss,
    MultiResolutionSTFTLoss,
    a_weighting_taps,
    slaney_filterbank,
)

RATE = 16000
SIZES = {"fft_sizes": [64, 32], "hop_sizes": [16, 8], "win_lengths": [64, 24]}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(signal: np.ndarray, size: int, hop: int, window: int) -> np.ndarray:
    """``(bins, frames)``: frames centred on multiples of ``hop``, the ends mirrored, in a Hann window."""
    padded = np.pad(signal, size // 2, mode="reflect")
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    left = (size - window) // 2
    shape = np.pad(shape, (left, size - window - left))
    turns = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size)
    frames = [padded[start : start + size] * shape for start in range(0, len(padded) - size + 1, hop)]
    return turns @ np.stack(frames, axis=1)


def distance(made: np.ndarray, reference: np.ndarray, **weights: float) -> float:
    """The distance of signals ``(B, T)`` over the resolutions of ``SIZES``, each term by its weight."""
    total = 0.0
    for size, hop, window in zip(*SIZES.values(), strict=True):
        pairs = []
        for one, other in zip(made, reference, strict=True):
            powers = [np.abs(spectrum(each, size, hop, window)) ** 2 for each in (one, other)]
            pairs.append([np.sqrt(np.maximum(power, 1e-8)) for power in powers])
        x, y = (np.stack(side) for side in zip(*pairs, strict=True))
        gaps = [np.linalg.norm(b - a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)]
        total += weights.get("sc", 1.0) * float(np.mean(gaps))
        total += weights.get("log", 1.0) * float(np.mean(np.abs(np.log(x) - np.log(y))))
        total += weights.get("lin", 0.0) * float(np.mean(np.abs(x - y)))
    return total / len(SIZES["fft_sizes"])


def test_mono_is_its_definition() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, w_lin_mag=0.3), RATE)
    made, reference = draw(2, 1, 300), draw(2, 1, 300, seed=1)
    found = loss(made, reference)
    assert list(found) == ["mrstft"]
    expected = distance(made[:, 0].numpy(), reference[:, 0].numpy(), lin=0.3)
    assert float(found["mrstft"]) == pytest.approx(expected, rel=1e-6)


def test_stereo_is_sum_and_difference_and_left_and_right() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES), RATE)
    made, reference = draw(2, 2, 300), draw(2, 2, 300, seed=1)
    found = loss(made, reference)

    def of(mix: tuple[float, float]) -> float:
        sides = [(mix[0] * audio[:, 0] + mix[1] * audio[:, 1]).numpy() for audio in (made, reference)]
        return distance(*sides)

    assert float(found["mrstft"]) == pytest.approx((of((1, 1)) + of((1, -1))) / 2, rel=1e-6)
    assert float(found["left"]) == pytest.approx(of((1, 0)), rel=1e-6)
    assert float(found["right"]) == pytest.approx(of((0, 1)), rel=1e-6)


def test_convergence_is_relative_to_the_reference() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, w_log_mag=0.0), RATE)
    audio = draw(1, 1, 300)
    assert float(loss(3 * audio, audio)["mrstft"]) == pytest.approx(2.0, rel=1e-6)
    assert float(loss(audio, 3 * audio)["mrstft"]) == pytest.approx(2 / 3, rel=1e-6)


def test_a_gain_moves_the_log_magnitude_by_its_logarithm() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, w_sc=0.0), RATE)
    audio = draw(1, 1, 300)
    assert float(loss(2 * audio, audio)["mrstft"]) == pytest.approx(math.log(2), rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"w_phs": 1.0, "w_lin_mag": 1.0},
        {"mag_distance": "L2"},
        {"scale": "mel", "n_bins": 12},  # so many that one of them is empty
        {"perceptual_weighting": True},
        {"scale_invariance": True},
    ],
)
def test_equal_signals_are_at_distance_zero_and_others_are_not(options) -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, **options), RATE)
    audio = draw(2, 2, 400)
    assert all(float(value) == pytest.approx(0.0, abs=1e-7) for value in loss(audio, audio).values())
    assert all(float(value) > 0.1 for value in loss(audio, draw(2, 2, 400, seed=1)).values())


def test_scale_invariance_does_not_mind_a_gain_of_the_reference() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, scale_invariance=True), RATE)
    made, reference = draw(2, 1, 400), draw(2, 1, 400, seed=1)
    first, second = loss(made, reference), loss(made, 5 * reference)
    assert float(first["mrstft"]) == pytest.approx(float(second["mrstft"]), rel=1e-5)


def test_a_batch_is_the_mean_of_its_items() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES), RATE)
    made, reference = draw(3, 2, 300), draw(3, 2, 300, seed=1)
    alone = [float(loss(made[i : i + 1], reference[i : i + 1])["mrstft"]) for i in range(3)]
    assert float(loss(made, reference)["mrstft"]) == pytest.approx(sum(alone) / 3, rel=1e-9)


@pytest.mark.parametrize("options", [{"w_lin_mag": 1.0}, {"perceptual_weighting": True}])
def test_gradients_are_those_of_finite_differences(options) -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES, **options), RATE)
    made, reference = draw(1, 2, 80).requires_grad_(), draw(1, 2, 80, seed=1)
    torch.autograd.gradcheck(lambda audio: sum(loss(audio, reference).values()), (made,), atol=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    loss = MultiResolutionSTFTLoss(STFTLossConfig(**SIZES), RATE)
    made, reference = draw(1, 2, 300).bfloat16(), draw(1, 2, 300, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(made, reference)["mrstft"]
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(made.float(), reference.float())["mrstft"]))


@pytest.mark.parametrize("rate", [44100, 16000])
def test_the_filter_weighs_frequencies_as_the_ear_does(rate) -> None:
    taps = a_weighting_taps(rate).double()
    assert taps.shape == (A_WEIGHTING_TAPS,)
    torch.testing.assert_close(taps, taps.flip(0), atol=1e-7, rtol=0)  # linear phase
    response = torch.fft.rfft(taps, 1 << 16).abs()

    def decibels(hz: float) -> float:
        return 20 * math.log10(float(response[round(hz / rate * (1 << 16))]))

    assert decibels(1000) == pytest.approx(0.0, abs=0.5)  # the values of IEC 61672-1
    assert decibels(4000) == pytest.approx(1.0, abs=0.7)
    assert decibels(500) == pytest.approx(-3.2, abs=1.0)
    assert decibels(50) < -12


def test_the_filter_keeps_length_and_channels_apart() -> None:
    audio = draw(2, 2, 500)
    filtered = AWeighting(RATE)(audio)
    assert filtered.shape == audio.shape
    torch.testing.assert_close(filtered[1:, :1], AWeighting(RATE)(audio[1:, :1]))


@pytest.mark.parametrize(("rate", "size", "bands"), [(44100, 2048, 320), (16000, 32, 5), (44100, 512, 80)])
def test_the_mel_bands_are_slaney_s(rate, size, bands) -> None:
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(size // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney").T
    np.testing.assert_allclose(slaney_filterbank(rate, size, bands).numpy(), expected, atol=1e-6)


def test_the_mel_loss_is_its_definition() -> None:
    config = MelLossConfig(n_mels=[5, 10], window_lengths=[32, 64], mag_weight=0.5, pow=2.0)
    made, reference = draw(2, 2, 300), draw(2, 2, 300, seed=1)
    expected = 0.0
    for bands, size in zip(config.n_mels, config.window_lengths, strict=True):
        filters = slaney_filterbank(RATE, size, bands).double().numpy()
        signals = [audio.reshape(4, -1).numpy() for audio in (made, reference)]
        x, y = (
            np.stack([filters @ np.abs(spectrum(row, size, size // 4, size)) for row in rows])
            for rows in signals
        )
        logs = [np.log10(np.maximum(each, 1e-5) ** 2) for each in (x, y)]
        expected += float(np.mean(np.abs(logs[0] - logs[1]))) + 0.5 * float(np.mean(np.abs(x - y)))
    found = MelSpectrogramLoss(config, RATE)(made, reference)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(MelSpectrogramLoss(config, RATE)(made, made)) == 0.0


def test_si_sdr_is_what_was_added_and_does_not_mind_a_gain() -> None:
    reference = draw(1, 1, 4096)
    noise = draw(1, 1, 4096, seed=1)
    noise = noise - noise.mean() - (noise * reference).sum() / reference.square().sum() * reference
    noise = noise / noise.norm() * reference.norm() / 10  # 20 dB below
    for gain in (1.0, 0.3):
        found = si_sdr(gain * (reference + noise), reference, SISDRConfig())
        assert float(found) == pytest.approx(20.0, abs=0.05)


def test_a_metric_is_the_loss_of_one_resolution() -> None:
    made, reference = draw(2, 1, 300).float(), draw(2, 1, 300, seed=1).float()
    options = {"fft_size": 64, "hop_size": 16, "win_length": 64}
    loss = MultiResolutionSTFTLoss(STFTLossConfig(fft_sizes=[64], hop_sizes=[16], win_lengths=[64]), RATE)
    found = SpectralMetric(STFTMetricConfig(**options), RATE)(made, reference)
    assert float(found) == pytest.approx(float(loss(made, reference)["mrstft"]), rel=1e-6)
    assert MelMetricConfig(**options, n_mels=8).n_mels == 8
