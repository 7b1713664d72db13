"""Audio through a discrete wavelet transform, after the layers of Katherine Crowson.

The biorthogonal filters (Cohen, Daubechies and Feauveau 1992) are worked out from their definition; order,
signs and alignment are those of PyWavelets, which the public code takes them from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.schema.autoencoder import WaveletConfig, WaveletPretransformConfig

_HALF_ANGLE = np.array([1.0, 2.0, 1.0]) / 4  # cos^2(w / 2) as a filter
_AT_RECONSTRUCTION = {"bior4.4": 0.0, "bior6.8": 0.28319063}
"""The roots that the reconstruction takes, by the size of their imaginary part; else it takes none."""


class FilterBank(NamedTuple):
    """Four filters of one odd length, zero-padded as in PyWavelets without its leading zero."""

    analysis_low: NDArray[np.float64]
    analysis_high: NDArray[np.float64]
    synthesis_low: NDArray[np.float64]
    synthesis_high: NDArray[np.float64]


def filter_bank(wavelet: str) -> FilterBank:
    """The filters of ``biorN.M``: N vanishing moments at reconstruction, M at decomposition, both even.

    The product of the two low-pass filters is Daubechies' half-band polynomial ``cos^(N+M) Q(sin^2)``; a
    wavelet is one way of sharing the roots of ``Q`` between them. Each low-pass sums to the root of 2.
    """
    order, dual_order = (int(digit) for digit in wavelet.removeprefix("bior").split("."))
    half = (order + dual_order) // 2
    roots = np.roots([math.comb(half - 1 + power, power) for power in reversed(range(half))])
    wanted = _AT_RECONSTRUCTION.get(wavelet)
    here = [wanted is not None and math.isclose(abs(root.imag), wanted, abs_tol=1e-6) for root in roots]
    low = _low_pass(order, [root for root, mine in zip(roots, here, strict=True) if mine])
    dual = _low_pass(dual_order, [root for root, mine in zip(roots, here, strict=True) if not mine])
    # The longer filter, of decomposition, is centred; the other ends one sample earlier than centred.
    before = (len(dual) - len(low)) // 2 - 1
    padded = np.pad(low, (before, before + 2))
    return FilterBank(dual, _mirrored(padded, len(dual) // 2 - 1), padded, _mirrored(dual, len(dual) // 2))


def _low_pass(order: int, roots: list[complex]) -> NDArray[np.float64]:
    """``sqrt(2) cos^order(w / 2) prod(1 - sin^2(w / 2) / root)`` as a filter."""
    taps = np.array([math.sqrt(2) + 0j])
    for _ in range(order // 2):
        taps = np.convolve(taps, _HALF_ANGLE)
    for root in roots:
        sine = np.array([-1.0, 2.0, -1.0]) / 4  # sin^2(w / 2)
        taps = np.convolve(taps, np.array([0.0, 1.0, 0.0]) - sine / root)
    return taps.real


def _mirrored(taps: NDArray[np.float64], centre: int) -> NDArray[np.float64]:
    """A low-pass moved to the upper half of the spectrum, negative at its centre."""
    return np.where((np.arange(len(taps)) - centre) % 2 == 0, -taps, taps)


def _kernel(low: NDArray[np.float64], high: NDArray[np.float64], channels: int) -> Tensor:
    """``(2 C, C, K)``: each channel on its own, first all low bands, then all high ones."""
    kernel = np.zeros((2, channels, channels, len(low)))
    for channel in range(channels):
        kernel[:, channel, channel] = low, high
    return torch.tensor(kernel.reshape(2 * channels, channels, -1), dtype=torch.float32)


class WaveletEncode1d(nn.Module):
    """Down by ``2^levels``: each level splits the lowest band, and folds the others to its length."""

    kernel: Tensor

    def __init__(self, config: WaveletConfig) -> None:
        super().__init__()
        self.channels, self.levels = config.channels, config.levels
        bank = filter_bank(config.wavelet)
        kernel = _kernel(bank.analysis_low[::-1], bank.analysis_high[::-1], config.channels)
        self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T)`` to ``(B, C 2^levels, T / 2^levels)``, the lowest band first."""
        reach = self.kernel.shape[-1] // 2
        for _ in range(self.levels):
            low, rest = x[:, : self.channels], x[:, self.channels :]
            low = F.pad(low, (reach, reach), mode="reflect")
            bands = F.conv1d(low, self.kernel.to(x.dtype), stride=2)
            x = torch.cat([bands, self._folded(rest)], dim=1)
        return x

    def _folded(self, rest: Tensor) -> Tensor:
        """``(B, G C, 2 L)`` to ``(B, G 2 C, L)``: even and odd frames side by side."""
        split = rest.unflatten(2, (rest.shape[2] // 2, 2)).unflatten(
            1, (rest.shape[1] // self.channels, self.channels)
        )  # (B, G, C, L, 2)
        return split.permute(0, 1, 4, 2, 3).flatten(1, 3)


class WaveletDecode1d(nn.Module):
    """The inverse of :class:`WaveletEncode1d`."""

    kernel: Tensor

    def __init__(self, config: WaveletConfig) -> None:
        super().__init__()
        self.channels, self.levels = config.channels, config.levels
        bank = filter_bank(config.wavelet)
        self.register_buffer("kernel", _kernel(bank.synthesis_low, bank.synthesis_high, config.channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C 2^levels, L)`` to ``(B, C, L 2^levels)``."""
        half = self.kernel.shape[-1] // 2
        reach = half + 2
        for _ in range(self.levels):
            bands, rest = x[:, : 2 * self.channels], x[:, 2 * self.channels :]
            # Low and high bands are reflected as the one signal that they are samples of.
            woven = bands.unflatten(1, (2, self.channels)).permute(0, 2, 3, 1).flatten(2)  # (B, C, 2 L)
            woven = F.pad(woven, (reach, reach), mode="reflect")
            bands = woven.unflatten(2, (-1, 2)).permute(0, 3, 1, 2).flatten(1, 2)
            low = F.conv_transpose1d(bands, self.kernel.to(x.dtype), stride=2, padding=half)
            x = torch.cat([low[..., reach - 1 : -reach], self._unfolded(rest)], dim=1)
        return x

    def _unfolded(self, rest: Tensor) -> Tensor:
        """``(B, G 2 C, L)`` to ``(B, G C, 2 L)``."""
        split = rest.unflatten(1, (rest.shape[1] // (2 * self.channels), 2, self.channels))
        return split.permute(0, 1, 3, 4, 2).flatten(3).flatten(1, 2)


class WaveletPretransform(Pretransform):
    """A wavelet decomposition with perfect reconstruction; its filters are the buffers ``*.kernel``.

    Attributes:
        min_frames: the fewest frames that can be decoded; fewer have nothing to be reflected.
    """

    def __init__(self, config: WaveletPretransformConfig, sample_rate: int = 44100) -> None:
        ratio = 2**config.config.levels
        super().__init__(
            sample_rate=sample_rate,
            io_channels=config.config.channels,
            encoded_channels=config.config.channels * ratio,
            downsampling_ratio=ratio,
            enable_grad=config.enable_grad,
        )
        self.encoder = WaveletEncode1d(config.config)
        self.decoder = WaveletDecode1d(config.config)
        self.min_frames = (self.decoder.kernel.shape[-1] // 2 + 2) // 2 + 1
        self.freeze_unless_trained()

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """``(B, C 2^levels, ceil(T / 2^levels))`` of audio ``(B, C, T)``, padded to a whole frame.

        Raises:
            UsageError: the audio has another channel count, or fewer than ``min_frames`` frames.
        """
        self.check_audio(audio)
        self._check_length(-(-audio.shape[-1] // self.downsampling_ratio))
        return self.encoder(F.pad(audio, (0, -audio.shape[-1] % self.downsampling_ratio)))

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L 2^levels)`` of ``(B, C 2^levels, L)``; errors as for :meth:`encode`."""
        self.check_latents(latents)
        self._check_length(latents.shape[-1])
        return self.decoder(latents)

    def _check_length(self, frames: int) -> None:
        if frames < self.min_frames:
            raise UsageError(
                f"a wavelet of this length needs at least {self.min_frames} frames of"
                f" {self.downsampling_ratio} samples, found {frames}; give longer audio or use fewer levels"
            )
