"""Encoders and decoders of audio autoencoders, by type."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class OobleckConfig(Config):
    """The convolutional encoder or decoder of the Stable Audio VAE (Evans et al. 2024).

    Strides and channel multipliers are listed from the audio side, in the decoder too.
    """

    in_channels: int | None = None
    out_channels: int | None = None
    channels: int = Field(128, ge=1)
    c_mults: list[int] = [1, 2, 4, 8]
    strides: list[int] = [2, 4, 8, 8]
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
    d_model: int = Field(64, ge=1)
    strides: list[int] = [2, 4, 8, 8]

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.strides)


class DACDecoderConfig(Config):
    """The decoder of the Descript Audio Codec; ``rates`` are listed from the latent side."""

    out_channels: int = Field(1, ge=1)
    latent_dim: int = Field(ge=1)
    channels: int = Field(1536, ge=1)
    rates: list[int] = [8, 8, 4, 2]

    @property
    def ratio(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.rates)


class _SEANetConfig(Config):
    """What encoder and decoder of SEANet (Tagliasacchi et al. 2020; Defossez et al. 2022) share."""

    channels: int = Field(1, ge=1)
    dimension: int = Field(128, ge=1)
    n_filters: int = Field(32, ge=1)
    n_residual_layers: int = Field(1, ge=0)
    ratios: list[int]
    activation: str = "ELU"
    activation_params: dict[str, Any] = {"alpha": 1.0}
    norm: str = "weight_norm"
    norm_params: dict[str, Any] = {}
    kernel_size: int = Field(7, ge=1)
    last_kernel_size: int = Field(7, ge=1)
    residual_kernel_size: int = Field(3, ge=1)
    dilation_base: int = Field(2, ge=1)
    causal: bool = False
    pad_mode: str = "reflect"
    true_skip: bool = False
    compress: int = Field(2, ge=1)
    lstm: int = Field(2, ge=0)

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

    ratios: list[int] = [2, 2, 2, 2, 2]


class SEANetDecoderConfig(_SEANetConfig):
    """The decoder of SEANet; ``ratios`` are listed from the latent side."""

    ratios: list[int] = [8, 5, 4, 2]
    final_activation: str | None = None
    final_activation_params: dict[str, Any] | None = None
    trim_right_ratio: float = Field(1.0, ge=0, le=1)


class TAAEConfig(Config):
    """Convolutions with a stack of windowed transformer layers at each stride (Parker et al. 2024)."""

    in_channels: int = Field(2, ge=1)
    out_channels: int = Field(2, ge=1)
    channels: int = Field(128, ge=1)
    latent_dim: int = Field(32, ge=1)
    c_mults: list[int] = [1, 2, 4, 8]
    strides: list[int] = [2, 4, 8, 8]
    transformer_depths: list[int] = [3, 3, 3, 3]
    use_snake: bool = False
    sliding_window: tuple[int, int] | None = (63, 64)
    checkpointing: bool = False
    conformer: bool = False
    layer_scale: bool = True
    use_dilated_conv: bool = False

    @model_validator(mode="after")
    def _lists_fit(self) -> TAAEConfig:
        lengths = [len(self.c_mults), len(self.strides), len(self.transformer_depths)]
        if len(set(lengths)) != 1:
            raise ValueError(f"c_mults, strides and transformer_depths must be equally long, found {lengths}")
        return self

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


class DACEncoder(_Encoder):
    type: Literal["dac"]
    config: DACEncoderConfig


class SEANetEncoder(_Encoder):
    type: Literal["seanet"]
    config: SEANetEncoderConfig


class TAAEEncoder(_Encoder):
    type: Literal["taae"]
    config: TAAEConfig


class OobleckDecoder(_Decoder):
    type: Literal["oobleck"]
    config: OobleckConfig


class DACDecoder(_Decoder):
    type: Literal["dac"]
    config: DACDecoderConfig


class SEANetDecoder(_Decoder):
    type: Literal["seanet"]
    config: SEANetDecoderConfig


class TAAEDecoder(_Decoder):
    type: Literal["taae"]
    config: TAAEConfig


EncoderConfig = Annotated[
    OobleckEncoder | DACEncoder | SEANetEncoder | TAAEEncoder,
    Field(discriminator="type"),
]
DecoderConfig = Annotated[
    OobleckDecoder | DACDecoder | SEANetDecoder | TAAEDecoder,
    Field(discriminator="type"),
]
