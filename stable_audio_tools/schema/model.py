"""The JSON that describes a model: its networks, its conditioning and how it is trained."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.conditioning import ConditionerConfig
from stable_audio_tools.schema.networks import (
    BottleneckConfig,
    DecoderConfig,
    DiffusionNetworkConfig,
    EncoderConfig,
)
from stable_audio_tools.schema.training import DiffusionTrainingConfig, LoraConfig

Objective = Literal["v", "rectified_flow", "rf_denoiser"]


class AutoencoderConfig(Config):
    """Encoder, bottleneck and decoder. ``downsampling_ratio`` is audio samples per latent."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    bottleneck: BottleneckConfig | None = None
    latent_dim: int = Field(ge=1)
    downsampling_ratio: int = Field(ge=1)
    io_channels: int = Field(ge=1)
    in_channels: int | None = None
    out_channels: int | None = None
    soft_clip: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> AutoencoderConfig:
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            ratio = math.prod(part.config.strides)
            if ratio != self.downsampling_ratio:
                raise ValueError(
                    f"{name} strides multiply to {ratio}, but downsampling_ratio is {self.downsampling_ratio}"
                )
        if self.decoder.config.latent_dim != self.latent_dim:
            raise ValueError(
                f"decoder latent_dim is {self.decoder.config.latent_dim}, but latent_dim is {self.latent_dim}"
            )
        halves = 2 if self.bottleneck is not None and self.bottleneck.type == "vae" else 1
        if self.encoder.config.latent_dim != halves * self.latent_dim:
            raise ValueError(
                f"encoder latent_dim must be {halves * self.latent_dim}"
                f" ({halves} x latent_dim for this bottleneck),"
                f" found {self.encoder.config.latent_dim}"
            )
        return self


class AutoencoderPretransformConfig(Config):
    """An autoencoder between audio and the latents that the diffusion model sees."""

    type: Literal["autoencoder"]
    config: AutoencoderConfig
    scale: float = 1.0
    model_half: bool = False
    iterate_batch: bool = False
    chunked: bool = False
    enable_grad: bool = False


PretransformConfig = AutoencoderPretransformConfig


class ConditioningConfig(Config):
    """What a model can be told. A conditioning id without a conditioner must arrive as a tensor."""

    configs: list[ConditionerConfig] = []
    cond_dim: int = Field(ge=1)
    default_keys: dict[str, str] = {}
    pre_encoded_keys: list[str] = []


class DistributionShiftConfig(Config):
    """Timestep shift by sequence length (Esser et al. 2024, section 5.3.2)."""

    type: Literal["full", "linear"] = "full"
    base_shift: float = 0.5
    max_shift: float = 1.15
    min_length: int = 256
    max_length: int = 4096
    use_sine: bool = False


class ConditionedDiffusionConfig(Config):
    """The diffusion network and which conditioning goes where in it."""

    retired: ClassVar[dict[str, str]] = {"modular": "it never did anything"}

    type: Literal["dit"]
    config: DiffusionNetworkConfig
    diffusion_objective: Objective = "v"
    cross_attention_cond_ids: list[str] = []
    global_cond_ids: list[str] = []
    prepend_cond_ids: list[str] = []
    input_concat_ids: list[str] = []
    distribution_shift_options: DistributionShiftConfig | None = None


class DiffusionCondConfig(Config):
    """A conditional latent diffusion model."""

    pretransform: PretransformConfig | None = None
    conditioning: ConditioningConfig
    diffusion: ConditionedDiffusionConfig
    io_channels: int = Field(ge=1)
    min_input_length: int | None = None

    @model_validator(mode="after")
    def _channels_fit(self) -> DiffusionCondConfig:
        if self.pretransform is not None and self.pretransform.config.latent_dim != self.io_channels:
            raise ValueError(
                f"io_channels is {self.io_channels}, but the pretransform makes"
                f" {self.pretransform.config.latent_dim} channels"
            )
        if self.diffusion.config.io_channels != self.io_channels:
            raise ValueError(
                f"diffusion.config.io_channels is {self.diffusion.config.io_channels},"
                f" but io_channels is {self.io_channels}"
            )
        return self


class _Top(Config):
    sample_size: int = Field(ge=1)
    """Audio samples in one training window."""
    sample_rate: int = Field(ge=1)
    audio_channels: int = Field(2, ge=1)

    @property
    def duration_seconds(self) -> float:
        """Length of one training window."""
        return self.sample_size / self.sample_rate


class AutoencoderModelConfig(_Top):
    """A model that turns audio into latents and back."""

    model_type: Literal["autoencoder"]
    model: AutoencoderConfig
    training: dict[str, Any] | None = None


class DiffusionCondModelConfig(_Top):
    """A model that makes audio from conditioning."""

    model_type: Literal["diffusion_cond", "diffusion_cond_inpaint"]
    model: DiffusionCondConfig
    training: DiffusionTrainingConfig = DiffusionTrainingConfig()
    lora: LoraConfig | None = None


ModelConfig = Annotated[AutoencoderModelConfig | DiffusionCondModelConfig, Field(discriminator="model_type")]
