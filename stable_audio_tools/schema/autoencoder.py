"""Autoencoders, and the transforms in front of a model that they are one kind of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.bottlenecks import BottleneckConfig
from stable_audio_tools.schema.codecs import DACS, ENCODECS, CodecFacts
from stable_audio_tools.schema.encoders import DecoderConfig, EncoderConfig


class AutoencoderConfig(Config):
    """Encoder, bottleneck and decoder, behind a pretransform if there is one.

    ``downsampling_ratio`` is audio samples per latent, the pretransform's share included.
    """

    encoder: EncoderConfig
    decoder: DecoderConfig
    bottleneck: BottleneckConfig | None = None
    pretransform: PretransformConfig | None = None
    latent_dim: int = Field(ge=1)
    downsampling_ratio: int = Field(ge=1)
    io_channels: int = Field(ge=1)
    in_channels: int | None = Field(None, ge=1)
    out_channels: int | None = Field(None, ge=1)
    soft_clip: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> AutoencoderConfig:
        outside = self.pretransform
        if outside is not None:
            for key, channels in (("in_channels", self.audio_in), ("out_channels", self.audio_out)):
                check_equal("pretransform audio channels", outside.audio_channels, key, channels)
        for name, ratio in (("encoder", self.encoder.config.ratio), ("decoder", self.decoder.config.ratio)):
            _check_ratio(name, ratio, self.downsampling_ratio, outside)
        network_in = self.audio_in if outside is None else outside.channels
        network_out = self.audio_out if outside is None else outside.channels
        check_equal("encoder input channels", self.encoder.in_channels, "what it is given", network_in)
        check_equal("decoder output channels", self.decoder.out_channels, "what is wanted", network_out)
        check_widths(
            self.encoder.out_channels, self.decoder.config.latent_dim, self.bottleneck, self.latent_dim
        )
        return self

    @property
    def audio_in(self) -> int:
        """Channels of the audio that is encoded."""
        return self.in_channels or self.io_channels

    @property
    def audio_out(self) -> int:
        """Channels of the audio that is decoded."""
        return self.out_channels or self.io_channels


def check_equal(name: str, found: int | None, key: str, expected: int | None) -> None:
    """Refuse two numbers that must be one; None is not known.

    Raises:
        ValueError: they differ.
    """
    if found is not None and expected is not None and found != expected:
        raise ValueError(f"{name} must be {expected} ({key}), found {found}")


def check_widths(
    encoder: int | None, decoder: int | None, bottleneck: BottleneckConfig | None, latent_dim: int
) -> None:
    """Refuse an encoder, a bottleneck and a decoder whose channels do not meet; None is not there.

    Args:
        encoder: channels that the encoder makes.
        decoder: channels that the decoder takes.
        latent_dim: channels of the latents.

    Raises:
        ValueError: they do not.
    """
    factor, noise, kind = 1, 0, "no"
    if bottleneck is not None:
        shape, kind = bottleneck.shape, f"the {bottleneck.type}"
        factor, noise = shape.encoder_factor, shape.noise_channels
        check_equal("bottleneck channels", shape.latent_channels, "latent_dim", latent_dim)
    times = f"{factor} x latent_dim" if factor > 1 else "latent_dim"
    check_equal("encoder latent_dim", encoder, f"{times} with {kind} bottleneck", factor * latent_dim)
    more = f"latent_dim and {noise} of noise" if noise else "latent_dim"
    check_equal("decoder latent_dim", decoder, f"{more} with {kind} bottleneck", latent_dim + noise)


def _check_ratio(name: str, ratio: int, whole: int, outside: PretransformConfig | None) -> None:
    if outside is None:
        if ratio != whole:
            raise ValueError(f"{name} strides multiply to {ratio}, but downsampling_ratio is {whole}")
    elif outside.ratio is not None and ratio * outside.ratio != whole:
        raise ValueError(
            f"{name} strides multiply to {ratio} and the pretransform's ratio is {outside.ratio},"
            f" {ratio * outside.ratio} in all, but downsampling_ratio is {whole}"
        )
    elif whole % ratio:
        raise ValueError(
            f"{name} strides multiply to {ratio}, which does not divide the downsampling_ratio {whole}"
        )


class _Pretransform(Config):
    """What the config of a pretransform tells of it; None where only the published codec knows."""

    enable_grad: bool = False

    @property
    def channels(self) -> int | None:
        """Channels of what it makes."""
        return None

    @property
    def audio_channels(self) -> int | None:
        """Channels of the audio that it takes."""
        return None

    @property
    def sample_rate(self) -> int | None:
        """Of the audio that it takes, in Hz, where it is made for one."""
        return None

    @property
    def ratio(self) -> int | None:
        """Audio samples per frame of what it makes."""
        return None

    @property
    def num_quantizers(self) -> int | None:
        """Codes per frame, 0 where it has none."""
        return 0

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has, 0 where it has none."""
        return 0


class AutoencoderPretransformConfig(_Pretransform):
    """An autoencoder between audio and the latents that the diffusion model sees."""

    type: Literal["autoencoder"]
    config: AutoencoderConfig
    scale: float = Field(1.0, gt=0)
    model_half: bool = False
    iterate_batch: bool = False
    chunked: bool = False

    @property
    def channels(self) -> int | None:
        return self.config.latent_dim

    @property
    def audio_channels(self) -> int | None:
        return self.config.audio_in

    @property
    def sample_rate(self) -> int | None:
        return None if self.config.pretransform is None else self.config.pretransform.sample_rate

    @property
    def ratio(self) -> int | None:
        return self.config.downsampling_ratio

    @property
    def num_quantizers(self) -> int | None:
        bottleneck = self.config.bottleneck
        return 0 if bottleneck is None else bottleneck.shape.num_quantizers

    @property
    def codebook_size(self) -> int | None:
        bottleneck = self.config.bottleneck
        return 0 if bottleneck is None else bottleneck.shape.codebook_size


class WaveletConfig(Config):
    """A wavelet decomposition: each level halves the length and doubles the channels."""

    channels: int = Field(ge=1)
    levels: int = Field(ge=1)
    wavelet: Literal["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]


class WaveletPretransformConfig(_Pretransform):
    type: Literal["wavelet"]
    config: WaveletConfig

    @property
    def channels(self) -> int | None:
        return self.config.channels * 2**self.config.levels

    @property
    def audio_channels(self) -> int | None:
        return self.config.channels

    @property
    def ratio(self) -> int | None:
        return 2**self.config.levels


class PatchedConfig(Config):
    """Runs of ``patch_size`` samples folded into channels."""

    channels: int = Field(ge=1)
    patch_size: int = Field(ge=1)


class PatchedPretransformConfig(_Pretransform):
    type: Literal["patched"]
    config: PatchedConfig

    @property
    def channels(self) -> int | None:
        return self.config.channels * self.config.patch_size

    @property
    def audio_channels(self) -> int | None:
        return self.config.channels

    @property
    def ratio(self) -> int | None:
        return self.config.patch_size


class _PublishedCodec(_Pretransform):
    """A codec that somebody else has trained: its facts come from a table, or from its own files."""

    @property
    def facts(self) -> CodecFacts | None:
        """What is known of it before its files are read."""
        return None

    @property
    def channels(self) -> int | None:
        return None if self.facts is None else self.facts.encoded_channels

    @property
    def audio_channels(self) -> int | None:
        return None if self.facts is None else self.facts.io_channels

    @property
    def sample_rate(self) -> int | None:
        return None if self.facts is None else self.facts.sample_rate

    @property
    def ratio(self) -> int | None:
        return None if self.facts is None else self.facts.downsampling_ratio

    @property
    def num_quantizers(self) -> int | None:
        return None if self.facts is None else self.facts.num_quantizers

    @property
    def codebook_size(self) -> int | None:
        return None if self.facts is None else self.facts.codebook_size

    @model_validator(mode="after")
    def _is_frozen(self) -> _PublishedCodec:
        if self.enable_grad:
            raise ValueError(
                "enable_grad is true, but a published codec stays as it was published and out of checkpoints;"
                " set it to false, or train an 'autoencoder' of the same kind"
            )
        return self


class PretrainedDACConfig(Config):
    """A published Descript Audio Codec."""

    model_type: Literal["16khz", "24khz", "44khz"] = "44khz"
    model_bitrate: Literal["8kbps", "16kbps"] = "8kbps"
    model_name: str | None = None
    """A Hugging Face name or folder in place of the published codec of ``model_type``."""
    scale: float = Field(1.0, gt=0)
    quantize_on_decode: bool = True
    chunked: bool = True

    @property
    def name(self) -> str:
        """Where the codec is loaded from."""
        return self.model_name or f"descript/dac_{self.model_type}"

    @model_validator(mode="after")
    def _is_published(self) -> PretrainedDACConfig:
        if self.model_bitrate != "8kbps" and self.model_name is None:
            raise ValueError(
                f"model_bitrate is {self.model_bitrate!r}, but only the '8kbps' codecs are published in the"
                " Hugging Face format; choose '8kbps', or give model_name a folder in that format"
            )
        return self


class PretrainedDACPretransformConfig(_PublishedCodec):
    type: Literal["dac_pretrained"]
    config: PretrainedDACConfig = PretrainedDACConfig()

    @property
    def facts(self) -> CodecFacts | None:
        return DACS.get(self.config.name)


class AudiocraftConfig(Config):
    """A published EnCodec by Hugging Face name or folder (Defossez et al. 2022)."""

    model_type: str = "facebook/encodec_32khz"
    scale: float = Field(1.0, gt=0)
    quantize_on_decode: bool = True


class AudiocraftPretransformConfig(_PublishedCodec):
    type: Literal["audiocraft_pretrained"]
    config: AudiocraftConfig = AudiocraftConfig()

    @property
    def facts(self) -> CodecFacts | None:
        return ENCODECS.get(self.config.model_type)


PretransformConfig = Annotated[
    AutoencoderPretransformConfig
    | WaveletPretransformConfig
    | PatchedPretransformConfig
    | PretrainedDACPretransformConfig
    | AudiocraftPretransformConfig,
    Field(discriminator="type"),
]

AutoencoderConfig.model_rebuild()
