"""Encoders and decoders of audio autoencoders, by type."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config

Positive = Annotated[int, Field(ge=1)]
Strides = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
"""Strides of convolutions of kernel 2 x stride with no padding to spare: 1 would make a frame too many."""
PositiveList = Annotated[list[Positive], Field(min_length=1)]

TAAE_HEAD_WIDTH = 128
"""Width of a head of the taae transformers, unless they are narrower themselves."""

ActivationName = Literal["ELU", "CELU", "SELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Tanh"]
ACTIVATION_PARAMS: dict[str, set[str]] = {
    "ELU": {"alpha"},
    "CELU": {"alpha"},
    "LeakyReLU": {"negative_slope"},
}
"""What can be set of an activation; the others have nothing."""


class OobleckConfig(Config):
    """The convolutional encoder or decoder of the Stable Audio VAE (Evans et al. 2024).

    Strides and channel multipliers are listed from the audio side, in the decoder too.
    """

    in_channels: int | None = Field(None, ge=1)
    out_channels: int | None = Field(None, ge=1)
    channels: int = Field(128, ge=1)
    c_mults: PositiveList = [1, 2, 4, 8]
    strides: PositiveList = [2, 4, 8, 8]
    latent_dim: int = Field(ge=1)
    use_snake: bool = False
    antialias_activation: Literal[False] = False
    """True is left out: no public checkpoint was trained with it."""
    use_nearest_upsample: bool = False
    final_tanh: bool = True

    @model_validator(mode="after")
    def _lists_fit(self) -> OobleckConfig:
        if len(self.c_mults) != len(self.strides):
            raise ValueError(
                f"c_mults and strides must be equally long, found {len(self.c_mults)} and {len(self.strides)}"
            )
        return self

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.strides)


class DACEncoderConfig(Config):
    """The encoder of the Descript Audio Codec (Kumar et al. 2023); channels double at every stride."""

    in_channels: int = Field(1, ge=1)
    latent_dim: int | None = Field(None, ge=1)
    """Width after one more projection; without it there is none, and the width is ``width``."""
    d_model: int = Field(64, ge=1)
    strides: Strides = [2, 4, 8, 8]

    @property
    def width(self) -> int:
        """Channels after the last stride."""
        return self.d_model * 2 ** len(self.strides)

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.strides)


class DACDecoderConfig(Config):
    """The decoder of the Descript Audio Codec; ``rates`` are listed from the latent side."""

    out_channels: int = Field(1, ge=1)
    latent_dim: int = Field(ge=1)
    channels: int = Field(1536, ge=1)
    """Width before the first rate; it is halved at each."""
    rates: Strides = [8, 8, 4, 2]

    @model_validator(mode="after")
    def _width_lasts(self) -> DACDecoderConfig:
        if self.channels < 2 ** len(self.rates):
            raise ValueError(
                f"channels must be at least {2 ** len(self.rates)} to be halved at each of"
                f" {len(self.rates)} rates, found {self.channels}"
            )
        return self

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.rates)


class GroupNormConfig(Config):
    """Options of ``time_group_norm``, one group over channels and time (Wu and He 2018)."""

    eps: float = Field(1e-5, gt=0)
    affine: bool = True


def _check_activation(key: str, name: str, params: dict[str, float] | None) -> None:
    known = ACTIVATION_PARAMS.get(name, set())
    unknown = sorted(set(params or {}) - known)
    if unknown:
        raise ValueError(
            f"{key}_params of {name} has {', '.join(unknown)}; it takes {', '.join(sorted(known)) or 'none'}"
        )


class _SEANetConfig(Config):
    """What encoder and decoder of SEANet (Tagliasacchi et al. 2020; Defossez et al. 2022) share."""

    channels: int = Field(1, ge=1)
    dimension: int = Field(128, ge=1)
    n_filters: int = Field(32, ge=1)
    n_residual_layers: int = Field(1, ge=0)
    ratios: PositiveList
    activation: ActivationName = "ELU"
    activation_params: dict[str, float] | None = None
    norm: Literal["weight_norm", "time_group_norm", "none"] = "weight_norm"
    norm_params: GroupNormConfig = GroupNormConfig()
    kernel_size: int = Field(7, ge=1)
    last_kernel_size: int = Field(7, ge=1)
    residual_kernel_size: int = Field(3, ge=1)
    dilation_base: int = Field(2, ge=1)
    causal: bool = False
    pad_mode: Literal["reflect", "constant", "replicate"] = "reflect"
    true_skip: bool = False
    compress: int = Field(2, ge=1)
    lstm: int = Field(2, ge=0)

    @model_validator(mode="after")
    def _options_fit(self) -> _SEANetConfig:
        if self.norm == "time_group_norm" and self.causal:
            raise ValueError("norm 'time_group_norm' cannot be causal: it looks ahead; choose 'weight_norm'")
        if self.n_residual_layers and self.n_filters < self.compress:
            raise ValueError(
                f"n_filters must be at least compress, found {self.n_filters} and {self.compress}"
            )
        _check_activation("activation", self.activation, self.activation_params)
        return self

    @property
    def latent_dim(self) -> int:
        """Channels on the latent side."""
        return self.dimension

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.ratios)


class SEANetEncoderConfig(_SEANetConfig):
    """The encoder of SEANet; ``ratios`` are listed from the audio side."""

    ratios: PositiveList = [2, 2, 2, 2, 2]


class SEANetDecoderConfig(_SEANetConfig):
    """The decoder of SEANet; ``ratios`` are listed from the latent side."""

    ratios: PositiveList = [8, 5, 4, 2]
    final_activation: ActivationName | None = None
    final_activation_params: dict[str, float] | None = None
    trim_right_ratio: float = Field(1.0, ge=0, le=1)
    """The share of a transposed convolution's surplus that is cut off at the end, where it is causal."""

    @model_validator(mode="after")
    def _decoder_options_fit(self) -> SEANetDecoderConfig:
        if self.trim_right_ratio != 1.0 and not self.causal:
            raise ValueError(
                f"trim_right_ratio must be 1 unless causal is true, found {self.trim_right_ratio}"
            )
        if self.final_activation is not None:
            _check_activation("final_activation", self.final_activation, self.final_activation_params)
        elif self.final_activation_params:
            raise ValueError("final_activation_params are given, but no final_activation")
        return self


class TAAEConfig(Config):
    """Convolutions with a stack of windowed transformer layers at each stride (Parker et al. 2024).

    Strides, channel multipliers and depths are listed from the audio side, in the decoder too.
    """

    in_channels: int = Field(2, ge=1)
    out_channels: int = Field(2, ge=1)
    channels: int = Field(128, ge=1)
    latent_dim: int = Field(32, ge=1)
    c_mults: PositiveList = [1, 2, 4, 8]
    strides: PositiveList = [2, 4, 8, 8]
    transformer_depths: list[Annotated[int, Field(ge=0)]] = [3, 3, 3, 3]
    use_snake: bool = False
    sliding_window: tuple[Annotated[int, Field(ge=-1)], Annotated[int, Field(ge=-1)]] | None = (63, 64)
    """How many tokens before and after itself a token sees; -1 is no limit."""
    checkpointing: bool = False
    conformer: bool = False
    layer_scale: bool = True
    use_dilated_conv: bool = False

    @model_validator(mode="after")
    def _lists_fit(self) -> TAAEConfig:
        lengths = [len(self.c_mults), len(self.strides), len(self.transformer_depths)]
        if len(set(lengths)) != 1:
            raise ValueError(f"c_mults, strides and transformer_depths must be equally long, found {lengths}")
        for index, (width, depth) in enumerate(zip(self.widths[1:], self.transformer_depths, strict=True)):
            if depth and width > TAAE_HEAD_WIDTH and width % TAAE_HEAD_WIDTH:
                raise ValueError(
                    f"channels x c_mults[{index}] is {width}; above {TAAE_HEAD_WIDTH} a transformer needs"
                    f" a multiple of {TAAE_HEAD_WIDTH}"
                )
            if self.strides[index] == 1 and width != self.widths[index]:
                raise ValueError(
                    f"strides[{index}] is 1, which has no convolution to change the width, but it goes from"
                    f" {self.widths[index]} to {width}"
                )
        return self

    @property
    def widths(self) -> list[int]:
        """Channels before the first stride, and after each, from the audio side."""
        widths = [self.channels * mult for mult in self.c_mults]
        return [widths[0], *widths]

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.strides)


class _Encoder(Config):
    requires_grad: bool = True


class _Decoder(Config):
    requires_grad: bool = True
    soft_clip: bool = False
    """Bring the decoded audio into (-1, 1) with a tanh; the autoencoder's own ``soft_clip`` does the same."""


class OobleckEncoder(_Encoder):
    type: Literal["oobleck"]
    config: OobleckConfig

    @property
    def in_channels(self) -> int | None:
        """Channels it takes, or None where it takes what there is."""
        return self.config.in_channels

    @property
    def out_channels(self) -> int:
        """Channels it makes."""
        return self.config.latent_dim


class DACEncoder(_Encoder):
    type: Literal["dac"]
    config: DACEncoderConfig = DACEncoderConfig()

    @property
    def in_channels(self) -> int | None:
        """Channels it takes."""
        return self.config.in_channels

    @property
    def out_channels(self) -> int:
        """Channels it makes."""
        return self.config.latent_dim or self.config.width


class SEANetEncoder(_Encoder):
    type: Literal["seanet"]
    config: SEANetEncoderConfig = SEANetEncoderConfig()

    @property
    def in_channels(self) -> int | None:
        """Channels it takes."""
        return self.config.channels

    @property
    def out_channels(self) -> int:
        """Channels it makes."""
        return self.config.dimension


class TAAEEncoder(_Encoder):
    type: Literal["taae"]
    config: TAAEConfig = TAAEConfig()

    @property
    def in_channels(self) -> int | None:
        """Channels it takes."""
        return self.config.in_channels

    @property
    def out_channels(self) -> int:
        """Channels it makes."""
        return self.config.latent_dim


class OobleckDecoder(_Decoder):
    type: Literal["oobleck"]
    config: OobleckConfig

    @property
    def out_channels(self) -> int | None:
        """Channels it makes, or None where it makes what is wanted."""
        return self.config.out_channels


class DACDecoder(_Decoder):
    type: Literal["dac"]
    config: DACDecoderConfig

    @property
    def out_channels(self) -> int | None:
        """Channels it makes."""
        return self.config.out_channels


class SEANetDecoder(_Decoder):
    type: Literal["seanet"]
    config: SEANetDecoderConfig = SEANetDecoderConfig()

    @property
    def out_channels(self) -> int | None:
        """Channels it makes."""
        return self.config.channels


class TAAEDecoder(_Decoder):
    type: Literal["taae"]
    config: TAAEConfig = TAAEConfig()

    @property
    def out_channels(self) -> int | None:
        """Channels it makes."""
        return self.config.out_channels


EncoderConfig = Annotated[
    OobleckEncoder | DACEncoder | SEANetEncoder | TAAEEncoder,
    Field(discriminator="type"),
]
DecoderConfig = Annotated[
    OobleckDecoder | DACDecoder | SEANetDecoder | TAAEDecoder,
    Field(discriminator="type"),
]
