"""The losses that an autoencoder is trained with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class STFTLossConfig(Config):
    """Spectral distances at several resolutions (Yamamoto et al. 2020; Steinmetz and Reiss 2020)."""

    fft_sizes: list[int] = [2048, 1024, 512, 256, 128, 64, 32]
    hop_sizes: list[int] = [512, 256, 128, 64, 32, 16, 8]
    win_lengths: list[int] = [2048, 1024, 512, 256, 128, 64, 32]
    window: str = "hann_window"
    w_sc: float = 1.0
    w_log_mag: float = 1.0
    w_lin_mag: float = 0.0
    w_phs: float = 0.0
    scale: str | None = None
    n_bins: int | None = None
    perceptual_weighting: bool = False
    scale_invariance: bool = False

    @model_validator(mode="after")
    def _lists_fit(self) -> STFTLossConfig:
        lengths = [len(self.fft_sizes), len(self.hop_sizes), len(self.win_lengths)]
        if len(set(lengths)) != 1:
            raise ValueError(f"fft_sizes, hop_sizes and win_lengths must be equally long, found {lengths}")
        return self


class STFTLossWeights(Config):
    mrstft: float = 1.0


class SpectralLoss(Config):
    type: Literal["mrstft"] = "mrstft"
    config: STFTLossConfig = STFTLossConfig()
    weights: STFTLossWeights = STFTLossWeights()
    decay: float = 1.0


class MelLossConfig(Config):
    """Distances of mel spectrograms, one for each window length (Kumar et al. 2023)."""

    n_mels: list[int] = [5, 10, 20, 40, 80, 160, 320]
    window_lengths: list[int] = [32, 64, 128, 256, 512, 1024, 2048]
    pow: float = 1.0
    log_weight: float = 1.0
    mag_weight: float = 0.0


class MelLossWeights(Config):
    mrmel: float = 1.0


class MelLoss(Config):
    type: Literal["mrmel"] = "mrmel"
    config: MelLossConfig = MelLossConfig()
    weights: MelLossWeights = MelLossWeights()


class TimeLossWeights(Config):
    l1: float = 0.0
    l2: float = 0.0


class TimeLoss(Config):
    """Distances of waveforms."""

    type: Literal["l1", "l2"] = "l1"
    config: dict[str, Any] = {}
    weights: TimeLossWeights = TimeLossWeights()
    decay: float = 1.0


class DiscriminatorWeights(Config):
    adversarial: float = 0.1
    feature_matching: float = 5.0


class STFTDiscriminatorConfig(Config):
    """Discriminators over complex spectrograms at several resolutions (Defossez et al. 2022)."""

    filters: int = Field(32, ge=1)
    n_ffts: list[int] = [1024, 2048, 512]
    hop_lengths: list[int] = [256, 512, 128]
    win_lengths: list[int] = [1024, 2048, 512]
    normalized: bool = True

    @model_validator(mode="after")
    def _lists_fit(self) -> STFTDiscriminatorConfig:
        lengths = [len(self.n_ffts), len(self.hop_lengths), len(self.win_lengths)]
        if len(set(lengths)) != 1:
            raise ValueError(f"n_ffts, hop_lengths and win_lengths must be equally long, found {lengths}")
        return self


class STFTDiscriminator(Config):
    type: Literal["encodec"]
    config: STFTDiscriminatorConfig = STFTDiscriminatorConfig()
    weights: DiscriminatorWeights = DiscriminatorWeights()


class OtherDiscriminator(Config):
    """Discriminators of other families; ``config`` are their arguments."""

    type: Literal["oobleck", "dac"]
    config: dict[str, Any] = {}
    weights: DiscriminatorWeights = DiscriminatorWeights()


class BottleneckLoss(Config):
    """The loss that the bottleneck reports, by name and weight."""

    type: Literal["kl", "mmd"] | None = None
    weights: dict[str, float] = {}


class AutoencoderLosses(Config):
    """Every part may be absent; then it has no share."""

    discriminator: Annotated[STFTDiscriminator | OtherDiscriminator, Field(discriminator="type")] | None = (
        None
    )
    spectral: SpectralLoss | None = None
    mrmel: MelLoss | None = None
    time: TimeLoss | None = None
    bottleneck: BottleneckLoss | None = None
