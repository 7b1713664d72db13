"""Distances of spectrograms that autoencoders are trained with.

Shapes: B batch, S signals (channels, or what is made of them), T samples, F bins, N frames. Everything is
computed in float32 at least, whatever the precision of the run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.schema.losses import MelLossConfig, STFTLossConfig, STFTMetricConfig

POWER_FLOOR = 1e-8
"""The least power of a bin, so that its logarithm and the slope of its root exist."""
MEL_FLOOR = 1e-5
"""The least value of a mel band in :class:`MelSpectrogramLoss`, as published."""
EMPTY_BAND = 1e-12
"""What a mel band without a bin holds, so that its logarithm exists."""
A_WEIGHTING_TAPS = 101


class SpectralDistance(nn.Module):
    """Distance of two complex spectrograms at one resolution, for each signal on its own.

    The sum, by their weights, of spectral convergence (Arik et al. 2018), log magnitude, magnitude and phase,
    by the formulas of auraloss (Steinmetz and Reiss 2020). Convergence is relative to the reference.
    """

    window: Tensor
    bands: Tensor | None

    def __init__(self, config: STFTMetricConfig, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", getattr(torch, config.window)(config.win_length), persistent=False)
        bands = None
        if config.scale is not None:
            assert config.n_bins is not None  # the schema sees to it
            bands = slaney_filterbank(sample_rate, config.fft_size, config.n_bins)
        self.register_buffer("bands", bands, persistent=False)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Complex ``(B, S, F, N)`` of ``audio (B, S, T)``; T must be above half the FFT size."""
        options, window = self.config, self.window.to(audio.dtype)
        spectrum = torch.stft(
            audio.flatten(0, 1),
            options.fft_size,
            options.hop_size,
            options.win_length,
            window,
            return_complex=True,
        )
        return spectrum.unflatten(0, audio.shape[:2])

    def forward(self, made: Tensor, reference: Tensor) -> Tensor:
        """Distances ``(S,)``, each a mean over the batch, of spectrograms ``(B, S, F, N)``."""
        options = self.config
        x, y = self._magnitude(made), self._magnitude(reference)
        if options.scale_invariance:
            y = y * ((x * y).sum((-2, -1)) / y.square().sum((-2, -1)))[..., None, None]
        total = x.new_zeros(x.shape[1])
        if options.w_sc:
            norms = [torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (y - x, y)]
            total = total + options.w_sc * (norms[0] / norms[1]).mean(dim=0)
        if options.w_log_mag:
            total = total + options.w_log_mag * self._distance(x.log(), y.log())
        if options.w_lin_mag:
            total = total + options.w_lin_mag * self._distance(x, y)
        if options.w_phs:
            turned = made.angle() - reference.angle()
            total = total + options.w_phs * turned.square().mean(dim=(0, 2, 3))
        return total

    def _magnitude(self, spectrum: Tensor) -> Tensor:
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = power.clamp_min(POWER_FLOOR).sqrt()
        if self.bands is None:
            return magnitude
        return (self.bands.to(magnitude.dtype) @ magnitude).clamp_min(EMPTY_BAND)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        difference = x - y
        difference = difference.abs() if self.config.mag_distance == "L1" else difference.square()
        return difference.mean(dim=(0, 2, 3))


class MultiResolutionSTFTLoss(nn.Module):
    """The mean of :class:`SpectralDistance` over several resolutions (Yamamoto et al. 2020).

    A stereo signal is compared by sum and difference and by left and right (Steinmetz et al. 2021), all four
    from one transform of each channel, since they are linear in it.
    """

    def __init__(self, config: STFTLossConfig, sample_rate: int) -> None:
        super().__init__()
        self.weighting = AWeighting(sample_rate) if config.perceptual_weighting else nn.Identity()
        shared = config.model_dump(exclude={"fft_sizes", "hop_sizes", "win_lengths"})
        sizes = zip(config.fft_sizes, config.hop_sizes, config.win_lengths, strict=True)
        self.resolutions = nn.ModuleList(
            SpectralDistance(
                STFTMetricConfig(fft_size=size, hop_size=hop, win_length=window, **shared), sample_rate
            )
            for size, hop, window in sizes
        )
        self.min_length = max(config.fft_sizes) // 2 + 1

    def forward(self, made: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Scalars for audio ``(B, C, T)``, by name.

        ``mrstft`` is the mean over channels, or of a stereo signal the mean of sum and difference; beside it
        a stereo signal has ``left`` and ``right``.
        """
        with torch.autocast(made.device.type, enabled=False):
            made = _at_least_float32(made)
            made, reference = self.weighting(made), self.weighting(reference.to(made.dtype))
            distances = torch.stack(
                [
                    resolution(*(_views(resolution.spectrogram(audio)) for audio in (made, reference)))
                    for resolution in self._resolutions()
                ]
            ).mean(dim=0)
        if made.shape[1] != 2:
            return {"mrstft": distances.mean()}
        return {"mrstft": distances[:2].mean(), "left": distances[2], "right": distances[3]}

    def _resolutions(self) -> Iterator[SpectralDistance]:
        for resolution in self.resolutions:
            assert isinstance(resolution, SpectralDistance)
            yield resolution


class MelSpectrogramLoss(nn.Module):
    """Distances of mel magnitudes and of their logarithms, summed over windows (Kumar et al. 2023)."""

    def __init__(self, config: MelLossConfig, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        for index, (length, count) in enumerate(zip(config.window_lengths, config.n_mels, strict=True)):
            self.register_buffer(f"window{index}", torch.hann_window(length), persistent=False)
            bands = slaney_filterbank(sample_rate, length, count)
            self.register_buffer(f"bands{index}", bands, persistent=False)
        self.min_length = max(config.window_lengths) // 2 + 1

    def forward(self, made: Tensor, reference: Tensor) -> Tensor:
        """A scalar for audio ``(B, C, T)``."""
        with torch.autocast(made.device.type, enabled=False):
            made = _at_least_float32(made)
            audio = torch.cat([made, reference.to(made.dtype)]).flatten(0, 1)
            terms = []
            for index, length in enumerate(self.config.window_lengths):
                x, y = self._mel(audio, index, length).chunk(2)
                if self.config.log_weight:
                    power = self.config.pow
                    logs = F.l1_loss(_log10_power(x, power), _log10_power(y, power))
                    terms.append(self.config.log_weight * logs)
                if self.config.mag_weight:
                    terms.append(self.config.mag_weight * F.l1_loss(x, y))
        return torch.stack(terms).sum() if terms else made.new_zeros(())

    def _mel(self, audio: Tensor, index: int, length: int) -> Tensor:
        window = self.get_buffer(f"window{index}").to(audio.dtype)
        spectrum = torch.stft(audio, length, length // 4, window=window, return_complex=True)
        return self.get_buffer(f"bands{index}").to(audio.dtype) @ spectrum.abs()


class AWeighting(nn.Module):
    """The A-weighting of IEC 61672 as a linear-phase filter, fitted by least squares (Wright and Valimaki
    2019).

    How the ear hears quiet sound: bass and the highest treble count less.
    """

    taps: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.register_buffer("taps", a_weighting_taps(sample_rate), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """``audio (B, C, T)``, filtered, of the same length."""
        taps = self.taps.to(audio.dtype)[None, None]
        filtered = F.conv1d(audio.flatten(0, 1)[:, None], taps, padding=A_WEIGHTING_TAPS // 2)
        return filtered[:, 0].unflatten(0, audio.shape[:2])


def a_weighting_taps(sample_rate: int) -> Tensor:
    """The filter of :class:`AWeighting`: ``(101,)`` taps, symmetric."""
    import numpy as np
    from scipy import signal

    # corner frequencies in Hz of IEC 61672-1, and the gain in dB that makes 1 kHz come out at 0 dB
    f1, f2, f3, f4, gain_db = 20.598997, 107.65265, 737.86223, 12194.217, 1.9997
    turns = 2 * np.pi
    numerator = [(turns * f4) ** 2 * 10 ** (gain_db / 20), 0.0, 0.0, 0.0, 0.0]
    poles = [-turns * f for f in (f4, f4, f1, f1, f3, f2)]
    b, a = signal.bilinear(numerator, np.poly(poles), fs=sample_rate)
    frequencies, response = signal.freqz(b, a, worN=512, fs=sample_rate)
    taps = signal.firls(A_WEIGHTING_TAPS, frequencies, np.abs(response), fs=sample_rate)
    return torch.from_numpy(taps).float()


def slaney_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular filters ``(n_mels, n_fft // 2 + 1)`` of unit area on the mel scale of Slaney (1998).

    The scale is linear to 1 kHz and logarithmic above. A band narrower than a bin may be empty.
    """
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    top = _slaney_mel(torch.tensor(sample_rate / 2, dtype=torch.float64))
    edges = _slaney_hz(torch.linspace(0, float(top), n_mels + 2, dtype=torch.float64))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (upper - lower)).float()


_HZ_PER_MEL, _BEND_HZ, _OCTAVE_STEP = 200 / 3, 1000.0, 27 / torch.log(torch.tensor(6.4)).item()


def _slaney_mel(hz: Tensor) -> Tensor:
    above = _BEND_HZ / _HZ_PER_MEL + (hz.clamp_min(_BEND_HZ) / _BEND_HZ).log() * _OCTAVE_STEP
    return torch.where(hz < _BEND_HZ, hz / _HZ_PER_MEL, above)


def _slaney_hz(mel: Tensor) -> Tensor:
    bend = _BEND_HZ / _HZ_PER_MEL
    above = _BEND_HZ * ((mel.clamp_min(bend) - bend) / _OCTAVE_STEP).exp()
    return torch.where(mel < bend, mel * _HZ_PER_MEL, above)


def _views(spectrum: Tensor) -> Tensor:
    """Of stereo spectrograms ``(B, 2, F, N)`` sum, difference, left and right; others as they are."""
    if spectrum.shape[1] != 2:
        return spectrum
    left, right = spectrum[:, :1], spectrum[:, 1:]
    return torch.cat([left + right, left - right, spectrum], dim=1)


def _log10_power(mel: Tensor, power: float) -> Tensor:
    return mel.clamp_min(MEL_FLOOR).pow(power).log10()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
