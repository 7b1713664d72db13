"""How far what an autoencoder decodes is from what it was given."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.losses import (
    AutoencoderLosses,
    EvaluationMetrics,
    MelMetricConfig,
    SISDRConfig,
    STFTMetricConfig,
)
from stable_audio_tools.training.spectral_losses import (
    AWeighting,
    MelSpectrogramLoss,
    MultiResolutionSTFTLoss,
    SpectralDistance,
)

SISDR_FLOOR = 1e-8
_SPECTRAL_SHARES = {
    "mrstft": ("mrstft_loss", 1.0),
    "left": ("stft_loss_left", 0.5),
    "right": ("stft_loss_right", 0.5),
}
"""Of each spectral distance the name in the logs and its share of the weight, as in the public code."""


class ReconstructionLoss(nn.Module):
    """The spectral, mel and time losses of a config, weighted.

    Raises:
        ConfigError: the training window is too short for a spectrogram of the config.
    """

    def __init__(self, config: AutoencoderLosses, sample_rate: int, sample_size: int) -> None:
        super().__init__()
        self.config = config
        self.spectral = None
        if config.spectral is not None:
            self.spectral = MultiResolutionSTFTLoss(config.spectral.config, sample_rate)
            key = "training.loss_configs.spectral.config.fft_sizes"
            require_length(sample_size, self.spectral.min_length, key)
        self.mel = None
        if config.mrmel is not None:
            self.mel = MelSpectrogramLoss(config.mrmel.config, sample_rate)
            key = "training.loss_configs.mrmel.config.window_lengths"
            require_length(sample_size, self.mel.min_length, key)

    def forward(self, made: Tensor, reference: Tensor, steps: int = 0) -> dict[str, Tensor]:
        """Weighted scalars for audio ``(B, C, T)``, by the names that they are logged under.

        Args:
            steps: how often the weights with a ``decay`` have been multiplied by it.
        """
        losses: dict[str, Tensor] = {}
        config = self.config
        if self.spectral is not None and config.spectral is not None and config.spectral.weights.mrstft:
            weight = config.spectral.weights.mrstft * config.spectral.decay**steps
            for name, value in self.spectral(made, reference).items():
                label, share = _SPECTRAL_SHARES[name]
                losses[label] = weight * share * value
        if self.mel is not None and config.mrmel is not None and config.mrmel.weights.mrmel:
            losses["mrmel_loss"] = config.mrmel.weights.mrmel * self.mel(made, reference)
        if config.time is not None:
            weights, decay = config.time.weights, config.time.decay**steps
            if weights.l1:
                losses["l1_time_loss"] = weights.l1 * decay * F.l1_loss(made.float(), reference.float())
            if weights.l2:
                losses["l2_time_loss"] = weights.l2 * decay * F.mse_loss(made.float(), reference.float())
        return losses


class Metrics(nn.Module):
    """What validation reports besides the loss, by the names of ``eval_loss_configs``."""

    def __init__(self, config: EvaluationMetrics, sample_rate: int, sample_size: int) -> None:
        super().__init__()
        self.sisdr = None if config.sisdr is None else config.sisdr
        self.distances = nn.ModuleDict()
        if config.stft is not None:
            self.distances["stft"] = SpectralMetric(config.stft, sample_rate)
            least = config.stft.fft_size // 2 + 1
            require_length(sample_size, least, "training.eval_loss_configs.stft.fft_size")
        if config.mel is not None:
            self.distances["mel"] = SpectralMetric(_as_mel(config.mel), sample_rate)
            least = config.mel.fft_size // 2 + 1
            require_length(sample_size, least, "training.eval_loss_configs.mel.fft_size")

    def forward(self, made: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Scalars for audio ``(B, C, T)``, by name."""
        found = {name: distance(made, reference) for name, distance in self.distances.items()}
        if self.sisdr is not None:
            found["sisdr"] = si_sdr(made, reference, self.sisdr)
        return found


class SpectralMetric(nn.Module):
    """One spectral distance as a scalar, the mean over channels."""

    def __init__(self, config: STFTMetricConfig, sample_rate: int) -> None:
        super().__init__()
        self.distance = SpectralDistance(config, sample_rate)
        self.weighting: Callable[[Tensor], Tensor] = (
            AWeighting(sample_rate) if config.perceptual_weighting else nn.Identity()
        )

    def forward(self, made: Tensor, reference: Tensor) -> Tensor:
        with torch.autocast(made.device.type, enabled=False):
            spectra = [
                self.distance.spectrogram(self.weighting(audio.float())) for audio in (made, reference)
            ]
            distances: Tensor = self.distance(*spectra)
        return distances.mean()


def si_sdr(made: Tensor, reference: Tensor, config: SISDRConfig) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), the mean over ``(B, C)``."""
    made, reference = made.float(), reference.float()
    if config.zero_mean:
        made, reference = (audio - audio.mean(dim=-1, keepdim=True) for audio in (made, reference))
    gain = (made * reference).sum(-1, keepdim=True) / (reference.square().sum(-1, keepdim=True) + SISDR_FLOOR)
    wanted = gain * reference
    energies = [audio.square().sum(-1) for audio in (wanted, made - wanted)]
    return 10 * torch.log10(energies[0] / (energies[1] + SISDR_FLOOR) + SISDR_FLOOR).mean()


def loss_name(reported: str) -> str:
    """The public name in the logs of a loss that a bottleneck reports: ``kl_loss`` for ``kl``."""
    name = reported.removeprefix("vq/")
    return name if name.endswith("_loss") else f"{name}_loss"


def require_length(sample_size: int, least: int, key: str) -> None:
    """Refuse a spectrogram that does not fit into the training window.

    Raises:
        ConfigError: ``sample_size`` is less than ``least``.
    """
    if sample_size < least:
        raise ConfigError(
            f"{key}: needs {least} audio samples, but sample_size is {sample_size};"
            " make it smaller, or train on longer windows"
        )


def _as_mel(config: MelMetricConfig) -> STFTMetricConfig:
    fields = config.model_dump(exclude={"n_mels"})
    return STFTMetricConfig(**{**fields, "scale": "mel", "n_bins": config.n_mels})
