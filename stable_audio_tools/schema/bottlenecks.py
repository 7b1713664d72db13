"""What sits between encoder and decoder of an autoencoder, by type."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stable_audio_tools.schema.base import Config


class NoConfig(Config):
    """A block without options."""


class VAEConfig(Config):
    """It has no options."""


class TanhConfig(Config):
    """``scale * tanh(x / scale)``."""

    scale: float = Field(1.0, gt=0)


class WassersteinConfig(Config):
    """Latents drawn to a Gaussian by their maximum mean discrepancy (Tolstikhin et al. 2017)."""

    noise_augment_dim: int = Field(0, ge=0)
    """Channels of noise that the decoder gets beside the latents."""
    bypass_mmd: bool = False
    use_tanh: bool = False
    tanh_scale: float = Field(5.0, gt=0)


class SoftNormConfig(Config):
    """A learned scale and bias for each channel, and a loss that keeps the latents near unit variance."""

    dim: int = Field(32, ge=1)
    noise_augment_dim: int = Field(0, ge=0)
    noise_regularize: bool = False
    auto_scale: bool = False
    freeze: bool = False


class ResidualVQConfig(Config):
    """Residual vector quantisation with codebooks kept by moving averages (Zeghidour et al. 2021)."""

    dim: int = Field(128, ge=1)
    codebook_size: int = Field(1024, ge=2)
    num_quantizers: int = Field(8, ge=1)
    codebook_dim: int | None = Field(None, ge=1)
    decay: float = Field(0.99, ge=0, le=1)
    kmeans_init: bool = True
    kmeans_iters: int = Field(50, ge=1)
    threshold_ema_dead_code: float = Field(2, ge=0)
    commitment_weight: float = Field(1.0, ge=0)
    shared_codebook: bool = False
    quantize_dropout: bool = False
    quantize_dropout_cutoff_index: int = Field(0, ge=0)
    use_cosine_sim: bool = False
    sync_codebook: bool | None = None
    learnable_codebook: bool = False
    ema_update: bool = True
    rotation_trick: bool = False
    stochastic_sample_codes: bool = False
    sample_codebook_temp: float = 1.0
    orthogonal_reg_weight: float = 0.0


class DACResidualVQConfig(Config):
    """Residual vector quantisation in a projected space, learned by gradient (Kumar et al. 2023)."""

    input_dim: int = Field(512, ge=1)
    n_codebooks: int = Field(9, ge=1)
    codebook_size: int = Field(1024, ge=2)
    codebook_dim: int | list[int] = 8
    quantizer_dropout: float = Field(0.0, ge=0, le=1)
    quantize_on_decode: bool = False
    noise_augment_dim: int = Field(0, ge=0)


class FSQConfig(Config):
    """Finite scalar quantisation (Mentzer et al. 2023): each channel is rounded to one of its levels."""

    levels: list[int] = Field(min_length=1)
    dim: int | None = Field(None, ge=1)
    num_codebooks: int = Field(1, ge=1)
    keep_num_codebooks_dim: bool | None = None
    scale: float | None = None
    noise_augment_dim: int = Field(0, ge=0)
    noise_dropout: float = Field(0.0, ge=0, le=1)
    preserve_symmetry: bool = False


class DitheredFSQConfig(Config):
    """Finite scalar quantisation with dither in place of a straight-through gradient (Parker et al. 2024)."""

    dim: int = Field(ge=1)
    levels: int | list[int]
    num_codebooks: int = Field(1, ge=1)
    dither_inference: bool = True
    noise_dropout: float = Field(0.05, ge=0, le=1)


class _Bottleneck(Config):
    requires_grad: bool = True


class VAEBottleneck(_Bottleneck):
    """Gaussian latents: softplus scale, KL to the standard normal (Kingma and Welling 2013)."""

    type: Literal["vae"]
    config: VAEConfig = VAEConfig()


class TanhBottleneck(_Bottleneck):
    type: Literal["tanh"]
    config: TanhConfig = TanhConfig()


class L2NormBottleneck(_Bottleneck):
    """Latents on the unit sphere."""

    type: Literal["l2_norm"]
    config: NoConfig = NoConfig()


class WassersteinBottleneck(_Bottleneck):
    type: Literal["wasserstein"]
    config: WassersteinConfig = WassersteinConfig()


class SoftNormBottleneck(_Bottleneck):
    type: Literal["softnorm"]
    config: SoftNormConfig = SoftNormConfig()


class RVQBottleneck(_Bottleneck):
    type: Literal["rvq"]
    config: ResidualVQConfig = ResidualVQConfig()


class DACRVQBottleneck(_Bottleneck):
    type: Literal["dac_rvq"]
    config: DACResidualVQConfig = DACResidualVQConfig()


class FSQBottleneck(_Bottleneck):
    type: Literal["fsq"]
    config: FSQConfig


class DitheredFSQBottleneck(_Bottleneck):
    type: Literal["dithered_fsq"]
    config: DitheredFSQConfig


BottleneckConfig = Annotated[
    VAEBottleneck
    | TanhBottleneck
    | L2NormBottleneck
    | WassersteinBottleneck
    | SoftNormBottleneck
    | RVQBottleneck
    | DACRVQBottleneck
    | FSQBottleneck
    | DitheredFSQBottleneck,
    Field(discriminator="type"),
]
