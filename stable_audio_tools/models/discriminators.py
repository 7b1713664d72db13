"""Adversaries of an autoencoder: networks that tell what was decoded from what was recorded.

Shapes: B batch, C audio channels, T samples. The public key names are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.nn.convs import WNConv1d, WNConv2d
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.losses import (
    STFTDiscriminator,
    STFTDiscriminatorConfig,
    WaveDiscriminator,
    WaveDiscriminatorConfig,
)

LEAK = 0.2
"""Slope of the activations of the STFT discriminators below zero."""
SCALES = 3
"""How many halved versions of the waveform the wave discriminator sees."""
PERIODS = (2, 3, 5, 7, 11)
"""At which periods it folds the waveform."""
WIDTHS, KERNEL, STRIDE = (32, 64, 128, 256), 15, 4
"""Channels, kernel and stride of its convolutions, the same in both directions."""
FLOOR = 1e-3
"""Keeps a relative distance of features finite."""


class AdversarialLosses(NamedTuple):
    """Scalars: what the adversary minimises, and what the autoencoder does."""

    discriminator: Tensor
    adversarial: Tensor
    feature_matching: Tensor


Judgement = tuple[list[Tensor], list[list[Tensor]]]
"""Scores of each network, and the features of each of its layers."""


class Discriminator(nn.Module):
    """What both adversaries have in common.

    Attributes:
        min_length: the shortest audio that it can judge, in samples.
    """

    min_length: int = 1
    loss_type: str = "hinge"
    normalize_losses: bool = False

    def judge(self, audio: Tensor) -> Judgement:
        """Scores and features of ``audio (B, C, T)``; a score above 0 takes it for real."""
        raise TypeError(f"{type(self).__name__} must define judge")

    def loss(self, reals: Tensor, fakes: Tensor) -> AdversarialLosses:
        """The losses of both sides for recorded and decoded audio ``(B, C, T)``, means over the scores.

        Feature matching (Kumar et al. 2019) is the distance of the features, each layer weighing the same.
        """
        (real_scores, real_features), (fake_scores, fake_features) = self.judge(reals), self.judge(fakes)
        pairs = [self._adversarial(real, fake) for real, fake in zip(real_scores, fake_scores, strict=True)]
        distances = [
            torch.stack([self._distance(*layers) for layers in zip(real, fake, strict=True)])
            for real, fake in zip(real_features, fake_features, strict=True)
        ]
        discriminator, adversarial = (torch.stack(side).mean() for side in zip(*pairs, strict=True))
        return AdversarialLosses(discriminator, adversarial, self._feature_matching(distances))

    def forward(self, reals: Tensor, fakes: Tensor) -> AdversarialLosses:
        """:meth:`loss`."""
        return self.loss(reals, fakes)

    def _adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss_type == "rpgan":
            lead = real - fake
            return F.softplus(-lead).mean(), F.softplus(lead).mean()
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()

    def _distance(self, real: Tensor, fake: Tensor) -> Tensor:
        distance = (real - fake).abs().mean()
        return distance / (real.abs().mean() + FLOOR) if self.normalize_losses else distance

    def _feature_matching(self, distances: Sequence[Tensor]) -> Tensor:
        """One number for the distances ``(layers,)`` of each network: the mean."""
        return torch.stack([layers.mean() for layers in distances]).mean()


class EncodecDiscriminator(Discriminator):
    """Networks over complex spectrograms at several resolutions (Defossez et al. 2022)."""

    def __init__(self, config: STFTDiscriminatorConfig, channels: int) -> None:
        super().__init__()
        self.discriminators = _MultiScale(config, channels)
        self.loss_type = config.loss_type
        self.normalize_losses = config.normalize_losses
        self.min_length = max(config.n_ffts)

    def judge(self, audio: Tensor) -> Judgement:
        """Score maps ``(B, 1, frames, bins)`` and features of each resolution."""
        judged = [network(audio) for network in self.discriminators.discriminators]
        return [score for score, _ in judged], [features for _, features in judged]


class _MultiScale(nn.Module):
    """Holds the networks under their public name."""

    def __init__(self, config: STFTDiscriminatorConfig, channels: int) -> None:
        super().__init__()
        sizes = zip(config.n_ffts, config.hop_lengths, config.win_lengths, strict=True)
        self.discriminators = nn.ModuleList(_STFTNetwork(config, channels, *size) for size in sizes)


class _STFTNetwork(nn.Module):
    """Convolutions over the real and imaginary parts of one spectrogram, wider in time layer by layer."""

    def __init__(
        self, config: STFTDiscriminatorConfig, channels: int, n_fft: int, hop_length: int, win_length: int
    ) -> None:
        super().__init__()
        self.spec_transform = _Spectrogram(n_fft, hop_length, win_length, config.normalized)
        self.power = config.spec_scale_pow
        kernel, square = config.kernel_size, (config.kernel_size[0], config.kernel_size[0])
        width = config.filters
        inner = [
            _NormConv2d(width, width, kernel, config.stride, (dilation, 1)) for dilation in config.dilations
        ]
        outer = [_NormConv2d(2 * channels, width, kernel), _NormConv2d(width, width, square)]
        self.convs = nn.ModuleList([outer[0], *inner, outer[1]])
        self.conv_post = _NormConv2d(width, 1, square)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = self.spec_transform(audio)
        if self.power:
            spectrum = spectrum * (spectrum.abs() + 1e-6).pow(self.power)
        x = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)
        features = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), LEAK)
            features.append(x)
        return self.conv_post(x), features


class _Spectrogram(nn.Module):
    """Complex ``(B, C, bins, frames)`` of ``(B, C, T)``; frames lie within the audio, without padding."""

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, win_length: int, normalized: bool) -> None:
        super().__init__()
        self.sizes = (n_fft, hop_length, win_length)
        self.normalized = normalized
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            window = self.window.float()
            spectrum = torch.stft(
                audio.float().flatten(0, 1), *self.sizes, window, center=False, return_complex=True
            )
            if self.normalized:
                spectrum = spectrum / window.square().sum().sqrt()
        return spectrum.unflatten(0, audio.shape[:2])


class _NormConv2d(nn.Module):
    """A weight-normalised convolution under its public name, padded to keep the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        padding = ((kernel_size[0] - 1) * dilation[0] // 2, (kernel_size[1] - 1) * dilation[1] // 2)
        self.conv = WNConv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class OobleckDiscriminator(Discriminator):
    """Networks over the waveform at several scales and folded at several periods (Kong et al. 2020).

    Raises:
        ConfigError: the config names other channels than the autoencoder has.
    """

    def __init__(self, config: WaveDiscriminatorConfig, channels: int) -> None:
        super().__init__()
        if config.in_channels not in (None, channels):
            raise ConfigError(
                "training.loss_configs.discriminator.config.in_channels: found"
                f" {config.in_channels}, but the autoencoder makes {channels} channels; leave it out"
            )
        self.multi_discriminator = _ScalesAndPeriods(channels)
        self.min_length = 2**SCALES

    def judge(self, audio: Tensor) -> Judgement:
        """The summed score ``(B,)`` of all networks, and the features of each."""
        judged = [answer for group in self.multi_discriminator.discriminators for answer in group(audio)]
        return [torch.stack([score for score, _ in judged]).sum(dim=0)], [features for _, features in judged]

    def _feature_matching(self, distances: Sequence[Tensor]) -> Tensor:
        """The sum over all layers of all networks, as in the public code, for which weights were chosen."""
        return torch.stack([layers.sum() for layers in distances]).sum()


class _ScalesAndPeriods(nn.Module):
    """Holds both groups of networks under their public name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([_Scales(channels), _Periods(channels)])


class _Scales(nn.Module):
    """One network for the waveform, one for its half and one for its quarter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_WaveNetwork(channels, 1) for _ in range(SCALES))

    def forward(self, audio: Tensor) -> list[Any]:
        answers = []
        for network in self.layers:
            answers.append(network(audio))
            audio = F.avg_pool1d(audio, 2)
        return answers


class _Periods(nn.Module):
    """One network for each way of folding the waveform."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_WaveNetwork(channels, 2) for _ in PERIODS)

    def forward(self, audio: Tensor) -> list[Any]:
        return [network(fold(audio, period)) for network, period in zip(self.layers, PERIODS, strict=True)]


class _WaveNetwork(nn.Module):
    """Strided convolutions over a waveform, or over one folded to rows; the mean of the last is the score."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        net: list[nn.Module] = []
        for width in WIDTHS:
            if dimensions == 1:
                net.append(WNConv1d(channels, width, KERNEL, STRIDE, KERNEL // 2))
            else:
                square = [(size, size) for size in (KERNEL, STRIDE, KERNEL // 2)]
                net.append(WNConv2d(channels, width, *square))
            net.append(nn.SiLU())
            channels = width
        net.append(nn.Conv1d(channels, 1, 1) if dimensions == 1 else nn.Conv2d(channels, 1, 1))
        self.net = nn.ModuleList(net)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The score ``(B,)``, and what each convolution answers."""
        features = []
        for layer in self.net:
            x = layer(x)
            if not isinstance(layer, nn.SiLU):
                features.append(x)
        return x.flatten(1).mean(dim=1), features


def fold(audio: Tensor, period: int) -> Tensor:
    """``(B, C, T)`` as ``(B, C, ceil(T / period), period)``, the last row padded with silence."""
    return F.pad(audio, (0, -audio.shape[-1] % period)).unflatten(-1, (-1, period))


DISCRIMINATORS: dict[type[Config], Callable[[Any, int], Discriminator]] = {
    STFTDiscriminator: EncodecDiscriminator,
    WaveDiscriminator: OobleckDiscriminator,
}


def create_discriminator(config: STFTDiscriminator | WaveDiscriminator, channels: int) -> Discriminator:
    """The adversary that ``config`` describes, for audio of ``channels``, with fresh weights."""
    return DISCRIMINATORS[type(config)](config.config, channels)
