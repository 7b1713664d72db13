"""Autoencoders, and the transforms in front of a model that they are one kind of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.bottlenecks import BottleneckConfig
from stable_audio_tools.schema.encoders import DecoderConfig, EncoderConfig


class AutoencoderConfig(Config):
    """Encoder, bottleneck and decoder. ``downsampling_ratio`` is audio samples per latent."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    bottleneck: BottleneckConfig | None = None
    pretransform: PretransformConfig | None = None
    latent_dim: int = Field(ge=1)
    downsampling_ratio: int = Field(ge=1)
    io_channels: int = Field(ge=1)
    in_channels: int | None = None
    out_channels: int | None = None
    soft_clip: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> AutoencoderConfig:
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            ratio = part.config.ratio
            # A pretransform has a share in the ratio that its config need not tell.
            if self.pretransform is None and ratio != self.downsampling_ratio:
                raise ValueError(
                    f"{name} strides multiply to {ratio}, but downsampling_ratio is {self.downsampling_ratio}"
                )
        if self.bottleneck is None or self.bottleneck.type == "vae":  # others can change the width
            self._widths_fit()
        return self

    def _widths_fit(self) -> None:
        found: int | None = self.decoder.config.latent_dim
        if found != self.latent_dim:
            raise ValueError(f"decoder latent_dim is {found}, but latent_dim is {self.latent_dim}")
        halves = 2 if self.bottleneck is not None else 1
        found = self.encoder.config.latent_dim
        if found is not None and found != halves * self.latent_dim:
            raise ValueError(
                f"encoder latent_dim must be {halves * self.latent_dim}"
                f" ({halves} x latent_dim for this bottleneck),"
                f" found {found}"
            )


class AutoencoderPretransformConfig(Config):
    """An autoencoder between audio and the latents that the diffusion model sees."""

    type: Literal["autoencoder"]
    config: AutoencoderConfig
    scale: float = 1.0
    model_half: bool = False
    iterate_batch: bool = False
    chunked: bool = False
    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Channels of what it makes, where the config tells."""
        return self.config.latent_dim


class WaveletConfig(Config):
    """A wavelet decomposition: each level halves the length and doubles the channels."""

    channels: int = Field(ge=1)
    levels: int = Field(ge=1)
    wavelet: Literal["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]


class WaveletPretransformConfig(Config):
    type: Literal["wavelet"]
    config: WaveletConfig
    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Channels of what it makes."""
        return self.config.channels * 2**self.config.levels


class PatchedConfig(Config):
    """Runs of ``patch_size`` samples folded into channels."""

    channels: int = Field(ge=1)
    patch_size: int = Field(ge=1)


class PatchedPretransformConfig(Config):
    type: Literal["patched"]
    config: PatchedConfig
    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Channels of what it makes."""
        return self.config.channels * self.config.patch_size


class PretrainedDACConfig(Config):
    """A published Descript Audio Codec."""

    model_type: Literal["16khz", "24khz", "44khz"] = "44khz"
    model_bitrate: Literal["8kbps", "16kbps"] = "8kbps"
    scale: float = 1.0
    quantize_on_decode: bool = True
    chunked: bool = True


class PretrainedDACPretransformConfig(Config):
    type: Literal["dac_pretrained"]
    config: PretrainedDACConfig = PretrainedDACConfig()
    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Not told: it is the published model's."""
        return None


class AudiocraftConfig(Config):
    """A published EnCodec by name (Defossez et al. 2022)."""

    model_type: str = "facebook/encodec_32khz"
    scale: float = 1.0
    quantize_on_decode: bool = True


class AudiocraftPretransformConfig(Config):
    type: Literal["audiocraft_pretrained"]
    config: AudiocraftConfig = AudiocraftConfig()
    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Not told: it is the published model's."""
        return None


PretransformConfig = Annotated[
    AutoencoderPretransformConfig
    | WaveletPretransformConfig
    | PatchedPretransformConfig
    | PretrainedDACPretransformConfig
    | AudiocraftPretransformConfig,
    Field(discriminator="type"),
]

AutoencoderConfig.model_rebuild()
