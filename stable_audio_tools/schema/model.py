"""The JSON that describes a model: its networks, its conditioning and how it is trained."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.autoencoder import (
    AutoencoderConfig,
    PretransformConfig,
    check_equal,
    check_widths,
)
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.bottlenecks import BottleneckConfig
from stable_audio_tools.schema.conditioned import check_inputs, check_widths_of_ids
from stable_audio_tools.schema.conditioning import ConditioningConfig, check_audio_conditioners
from stable_audio_tools.schema.encoders import DecoderConfig, EncoderConfig
from stable_audio_tools.schema.language_model import LanguageModelConfig
from stable_audio_tools.schema.networks import DiTConfig
from stable_audio_tools.schema.shifts import ShiftConfig
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


class _ConditionedDiffusion(Config):
    """Which conditioning goes where in a diffusion network."""

    retired: ClassVar[dict[str, str]] = {"modular": "it never did anything"}

    diffusion_objective: Objective = "v"
    cross_attention_cond_ids: list[str] = []
    global_cond_ids: list[str] = []
    prepend_cond_ids: list[str] = []
    input_concat_ids: list[str] = []
    local_add_cond_ids: list[str] = []
    distribution_shift_options: ShiftConfig | None = None
    """Of the timesteps in training, and of those in sampling where nothing else is said."""
    sampling_distribution_shift_options: ShiftConfig | None = None
    """Of evenly spaced times, in place of the sampler's own levels."""


class ConditionedDiT(_ConditionedDiffusion):
    type: Literal["dit"]
    config: DiTConfig

    @model_validator(mode="after")
    def _ids_fit(self) -> ConditionedDiT:
        check_inputs(self, self.config)
        return self


class ConditionedDAU1d(_ConditionedDiffusion):
    type: Literal["DAU1d"]
    config: DAU1dConfig

    @model_validator(mode="after")
    def _ids_fit(self) -> ConditionedDAU1d:
        for key in ("cross_attention_cond_ids", "global_cond_ids", "prepend_cond_ids", "local_add_cond_ids"):
            if getattr(self, key):
                raise ValueError(f"{key} is set, but DAU1d takes conditioning by input_concat_ids alone")
        if bool(self.input_concat_ids) != bool(self.config.cond_dim):
            raise ValueError(
                f"input_concat_ids are {self.input_concat_ids}, but config.cond_dim, the sum of their"
                f" channels, is {self.config.cond_dim}"
            )
        return self


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
        diffusion = self.diffusion
        tokens = (
            *diffusion.cross_attention_cond_ids,
            *diffusion.global_cond_ids,
            *diffusion.prepend_cond_ids,
        )
        check_audio_conditioners(self.conditioning, tokens, self.pretransform is not None)
        if isinstance(self.diffusion, ConditionedDiT):
            check_widths_of_ids(self.diffusion, self.diffusion.config, self.conditioning, self.io_channels)
        return self


class _UncondDiffusion(Config):
    """A diffusion network without conditioning, on audio or on latents."""

    pretransform: PretransformConfig | None = None


class UncondDiT(_UncondDiffusion):
    type: Literal["dit"]
    config: DiTConfig

    @model_validator(mode="before")
    @classmethod
    def _public_name(cls, data: Any) -> Any:
        """The public package calls ``io_channels`` ``in_channels`` here, and only here."""
        config = data.get("config") if isinstance(data, dict) else None
        if isinstance(config, dict) and "in_channels" in config and "io_channels" not in config:
            config = {
                ("io_channels" if key == "in_channels" else key): value for key, value in config.items()
            }
            return {**data, "config": config}
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> UncondDiT:
        _check_latents(self.config.io_channels, "config.io_channels", self.pretransform)
        return self


class UncondDAU1d(_UncondDiffusion):
    type: Literal["DAU1d"]
    config: DAU1dConfig = DAU1dConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> UncondDAU1d:
        _check_latents(self.config.io_channels, "config.io_channels", self.pretransform)
        return self


class DecodingDiT(Config):
    type: Literal["dit"]
    config: DiTConfig


class DecodingDAU1d(Config):
    type: Literal["DAU1d"]
    config: DAU1dConfig


class DiffusionAutoencoderConfig(Config):
    """An autoencoder whose decoder ends in a diffusion network (Preechakul et al. 2021).

    ``io_channels`` are those that the diffusion network makes: of the audio, or of the pretransform.
    ``downsampling_ratio`` is audio samples per latent; behind a pretransform it may also be told in frames of
    the pretransform, as the public package takes it.
    """

    retired: ClassVar[dict[str, str]] = dict.fromkeys(
        ("in_channels", "out_channels", "soft_clip"),
        "a diffusion autoencoder goes by io_channels and does not clip",
    )

    encoder: EncoderConfig | None = None
    decoder: DecoderConfig | None = None
    bottleneck: BottleneckConfig | None = None
    pretransform: PretransformConfig | None = None
    diffusion: Annotated[DecodingDiT | DecodingDAU1d, Field(discriminator="type")]
    latent_dim: int = Field(ge=1)
    downsampling_ratio: int = Field(ge=1)
    io_channels: int = Field(ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> DiffusionAutoencoderConfig:
        _check_latents(self.io_channels, "io_channels", self.pretransform)
        check_equal(
            "diffusion.config.io_channels", self.diffusion.config.io_channels, "io_channels", self.io_channels
        )
        made = self.io_channels
        if self.encoder is not None:
            check_equal("encoder input channels", self.encoder.in_channels, "io_channels", self.io_channels)
            made = self.encoder.out_channels
        taken = None if self.decoder is None else self.decoder.config.latent_dim
        check_widths(made, taken, self.bottleneck, self.latent_dim)
        key, concat = _beside(self.diffusion.config)
        check_equal(
            f"diffusion.config.{key}", concat, "channels of the decoded latents", self.conditioning_channels
        )
        frame = 1 if self.pretransform is None else self.pretransform.ratio
        fits = self.downsampling_ratio % self.frames_per_latent == 0
        if frame is not None:
            fits = self.downsampling_ratio in (self.frames_per_latent, self.frames_per_latent * frame)
        if not fits:
            raise ValueError(
                f"encoder strides multiply to {self.frames_per_latent}, but downsampling_ratio is"
                f" {self.downsampling_ratio}"
            )
        return self

    @property
    def frames_per_latent(self) -> int:
        """Frames that the diffusion network makes for one latent."""
        return 1 if self.encoder is None else self.encoder.config.ratio

    @property
    def conditioning_channels(self) -> int:
        """Channels of what the latents become before they go in beside the noise."""
        if self.decoder is None:
            return self.latent_dim + (0 if self.bottleneck is None else self.bottleneck.shape.noise_channels)
        made = self.decoder.out_channels
        return _beside(self.diffusion.config)[1] if made is None else made


def _beside(network: DiTConfig | DAU1dConfig) -> tuple[str, int]:
    """The key that tells how many channels come in beside the noise, and its value."""
    if isinstance(network, DAU1dConfig):
        return "cond_dim", network.cond_dim
    return "input_concat_dim", network.input_concat_dim


def _check_latents(channels: int, key: str, pretransform: PretransformConfig | None) -> None:
    made = None if pretransform is None else pretransform.channels
    if made is not None and made != channels:
        raise ValueError(f"{key} is {channels}, but the pretransform makes {made} channels")


class _Top(Config):
    sample_size: int = Field(ge=1)
    """Audio samples in one training window."""
    sample_rate: int = Field(ge=1)
    audio_channels: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _audio_fits(self) -> _Top:
        outside: PretransformConfig | None = getattr(getattr(self, "model", None), "pretransform", None)
        if outside is None:
            return self
        if outside.sample_rate not in (None, self.sample_rate):
            raise ValueError(
                f"sample_rate is {self.sample_rate}, but the pretransform is made for"
                f" {outside.sample_rate} Hz"
            )
        taken = outside.audio_channels
        if taken in (None, self.audio_channels) or isinstance(self, AutoencoderModelConfig):
            return self  # an autoencoder's training can mix down what it reads
        if "audio_channels" in self.model_fields_set:
            raise ValueError(f"audio_channels is {self.audio_channels}, but the pretransform takes {taken}")
        object.__setattr__(self, "audio_channels", taken)  # where the config does not say, it is what fits
        return self

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

    @model_validator(mode="after")
    def _trains_on_noise_alone(self) -> DiffusionUncondModelConfig:
        # Without training it may be called by hand, with the channels beside its input.
        key, channels = _beside(self.model.config)
        if channels and self.training is not None:
            raise ValueError(
                f"model.config.{key} is {channels}, but training has nothing to put beside the input;"
                " leave it out, or choose model_type diffusion_cond"
            )
        return self


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
