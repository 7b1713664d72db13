"""The JSON that describes a model: its networks, its conditioning and how it is trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.autoencoder import AutoencoderConfig, PretransformConfig
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.bottlenecks import BottleneckConfig
from stable_audio_tools.schema.conditioning import ConditioningConfig
from stable_audio_tools.schema.encoders import DecoderConfig, EncoderConfig
from stable_audio_tools.schema.language_model import LanguageModelConfig
from stable_audio_tools.schema.networks import DiTConfig
from stable_audio_tools.schema.training import (
    AutoencoderTrainingConfig,
    DiffusionAutoencoderTrainingConfig,
    DiffusionTrainingConfig,
    LanguageModelTrainingConfig,
    LoraConfig,
    UncondTrainingConfig,
)
from stable_audio_tools.schema.unets import DAU1dConfig

Objective = Literal["v", "rectified_flow", "rf_denoiser"]


class DistributionShiftConfig(Config):
    """Timestep shift by sequence length (Esser et al. 2024, section 5.3.2)."""

    type: Literal["full", "linear"] = "full"
    base_shift: float = 0.5
    max_shift: float = 1.15
    min_length: int = 256
    max_length: int = 4096
    use_sine: bool = False


class _ConditionedDiffusion(Config):
    """Which conditioning goes where in a diffusion network."""

    retired: ClassVar[dict[str, str]] = {"modular": "it never did anything"}

    diffusion_objective: Objective = "v"
    cross_attention_cond_ids: list[str] = []
    global_cond_ids: list[str] = []
    prepend_cond_ids: list[str] = []
    input_concat_ids: list[str] = []
    distribution_shift_options: DistributionShiftConfig | None = None


class ConditionedDiT(_ConditionedDiffusion):
    type: Literal["dit"]
    config: DiTConfig


class ConditionedDAU1d(_ConditionedDiffusion):
    type: Literal["DAU1d"]
    config: DAU1dConfig


ConditionedDiffusionConfig = Annotated[ConditionedDiT | ConditionedDAU1d, Field(discriminator="type")]


class DiffusionCondConfig(Config):
    """A conditional latent diffusion model."""

    pretransform: PretransformConfig | None = None
    conditioning: ConditioningConfig
    diffusion: ConditionedDiffusionConfig
    io_channels: int = Field(ge=1)
    min_input_length: int | None = None

    @model_validator(mode="after")
    def _channels_fit(self) -> DiffusionCondConfig:
        _check_latents(self.io_channels, "io_channels", self.pretransform)
        if self.diffusion.config.io_channels != self.io_channels:
            raise ValueError(
                f"diffusion.config.io_channels is {self.diffusion.config.io_channels},"
                f" but io_channels is {self.io_channels}"
            )
        return self


class _UncondDiffusion(Config):
    """A diffusion network without conditioning, on audio or on latents."""

    pretransform: PretransformConfig | None = None


class UncondDiT(_UncondDiffusion):
    type: Literal["dit"]
    config: DiTConfig

    @model_validator(mode="after")
    def _channels_fit(self) -> UncondDiT:
        _check_latents(self.config.io_channels, "config.io_channels", self.pretransform)
        return self


class UncondDAU1d(_UncondDiffusion):
    type: Literal["DAU1d"]
    config: DAU1dConfig = DAU1dConfig()

    @model_validator(mode="after")
    def _channels_fit(self) -> UncondDAU1d:
        _check_latents(self.config.io_channels, "config.io_channels", self.pretransform)
        return self


class DecodingDiT(Config):
    type: Literal["dit"]
    config: DiTConfig


class DecodingDAU1d(Config):
    type: Literal["DAU1d"]
    config: DAU1dConfig


class DiffusionAutoencoderConfig(Config):
    """An autoencoder whose decoder ends in a diffusion network (Preechakul et al. 2021)."""

    encoder: EncoderConfig | None = None
    decoder: DecoderConfig | None = None
    bottleneck: BottleneckConfig | None = None
    pretransform: PretransformConfig | None = None
    diffusion: Annotated[DecodingDiT | DecodingDAU1d, Field(discriminator="type")]
    latent_dim: int = Field(ge=1)
    downsampling_ratio: int = Field(ge=1)
    io_channels: int = Field(ge=1)
    in_channels: int | None = None
    out_channels: int | None = None
    soft_clip: bool = False


def _check_latents(channels: int, key: str, pretransform: PretransformConfig | None) -> None:
    made = None if pretransform is None else pretransform.channels
    if made is not None and made != channels:
        raise ValueError(f"{key} is {channels}, but the pretransform makes {made} channels")


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
    training: AutoencoderTrainingConfig | None = None


class DiffusionCondModelConfig(_Top):
    """A model that makes audio from conditioning."""

    model_type: Literal["diffusion_cond", "diffusion_cond_inpaint"]
    model: DiffusionCondConfig
    training: DiffusionTrainingConfig = DiffusionTrainingConfig()
    lora: LoraConfig | None = None


class DiffusionUncondModelConfig(_Top):
    """A model that makes audio from noise alone."""

    model_type: Literal["diffusion_uncond"]
    model: Annotated[UncondDiT | UncondDAU1d, Field(discriminator="type")]
    training: UncondTrainingConfig | None = None


class DiffusionAutoencoderModelConfig(_Top):
    """An autoencoder that decodes by diffusion."""

    model_type: Literal["diffusion_autoencoder"]
    model: DiffusionAutoencoderConfig
    training: DiffusionAutoencoderTrainingConfig | None = None


class LanguageModelModelConfig(_Top):
    """A model that continues the tokens of a codec."""

    model_type: Literal["lm"]
    model: LanguageModelConfig
    training: LanguageModelTrainingConfig | None = None


ModelConfig = Annotated[
    AutoencoderModelConfig
    | DiffusionCondModelConfig
    | DiffusionUncondModelConfig
    | DiffusionAutoencoderModelConfig
    | LanguageModelModelConfig,
    Field(discriminator="model_type"),
]
