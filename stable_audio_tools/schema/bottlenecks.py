"""What sits between encoder and decoder of an autoencoder, by type."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class BottleneckShape(NamedTuple):
    """What a bottleneck does to channels, and what codes it has, as far as its config tells."""

    latent_channels: int | None = None
    """Channels of its latents; None where any number will do."""
    encoder_factor: int = 1
    """Encoder channels per latent channel."""
    noise_channels: int = 0
    """Channels of noise that the decoder gets behind the latents."""
    num_quantizers: int = 0
    """Codes per latent frame, or 0."""
    codebook_size: int = 0
    """How many values a code has, or 0."""


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
    """Disturb what the decoder gets: 5 % of the spread of the latents in training, 0.1 % after it."""
    auto_scale: bool = False
    """Divide the latents by a running estimate of their standard deviation."""
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
    orthogonal_reg_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _updates_fit(self) -> ResidualVQConfig:
        if self.learnable_codebook and self.ema_update:
            raise ValueError(
                "learnable_codebook is true, so gradients keep the codebook; set ema_update to false"
            )
        if self.learnable_codebook and self.use_cosine_sim:
            raise ValueError("learnable_codebook and use_cosine_sim exclude each other; set one to false")
        if self.quantize_dropout_cutoff_index >= self.num_quantizers:
            raise ValueError(
                f"quantize_dropout_cutoff_index must be below num_quantizers ({self.num_quantizers}),"
                f" found {self.quantize_dropout_cutoff_index}"
            )
        return self


class DACResidualVQConfig(Config):
    """Residual vector quantisation in a projected space, learned by gradient (Kumar et al. 2023)."""

    input_dim: int = Field(512, ge=1)
    n_codebooks: int = Field(9, ge=1)
    codebook_size: int = Field(1024, ge=2)
    codebook_dim: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] = 8
    """Width of the space that codes are looked up in; a list has one for each codebook."""
    quantizer_dropout: float = Field(0.0, ge=0, le=1)
    """The share of a training batch that gets a random number of codebooks."""
    quantize_on_decode: bool = False
    """Latents are those before quantisation, and the decoder gets them quantised."""
    noise_augment_dim: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _widths_fit(self) -> DACResidualVQConfig:
        if isinstance(self.codebook_dim, list) and len(self.codebook_dim) != self.n_codebooks:
            raise ValueError(
                f"codebook_dim must list one width for each of the {self.n_codebooks} codebooks,"
                f" found {len(self.codebook_dim)}"
            )
        return self

    @property
    def codebook_dims(self) -> list[int]:
        """One width for each codebook."""
        dims = self.codebook_dim
        return dims if isinstance(dims, list) else [dims] * self.n_codebooks


_MOST_CODES = 2**31 - 1


def _check_levels(levels: list[int]) -> None:
    if min(levels) < 2:
        raise ValueError(f"levels must be at least 2 each, found {levels}")
    if math.prod(levels) > _MOST_CODES:
        raise ValueError(
            f"levels multiply to {math.prod(levels)} codes, more than {_MOST_CODES} can be numbered;"
            " use fewer levels and more num_codebooks"
        )


class FSQConfig(Config):
    """Finite scalar quantisation (Mentzer et al. 2023): each channel is rounded to one of its levels."""

    retired: ClassVar[dict[str, str]] = {"scale": "the quantiser never reads it"}

    levels: list[int] = Field(min_length=1)
    dim: int | None = Field(None, ge=1)
    """Latent channels; by default one for each level and codebook, else they are projected to those."""
    num_codebooks: int = Field(1, ge=1)
    keep_num_codebooks_dim: bool | None = None
    noise_augment_dim: int = Field(0, ge=0)
    noise_dropout: float = Field(0.0, ge=0, le=1)
    preserve_symmetry: bool = False

    @model_validator(mode="after")
    def _options_fit(self) -> FSQConfig:
        _check_levels(self.levels)
        if 2 in self.levels and not self.preserve_symmetry:
            raise ValueError(f"levels of 2 need preserve_symmetry, found {self.levels} without it")
        if self.noise_dropout > 0 and not self.preserve_symmetry:
            raise ValueError(f"noise_dropout needs preserve_symmetry, found {self.noise_dropout} without it")
        if self.num_codebooks > 1 and self.keep_num_codebooks_dim is False:
            raise ValueError(
                f"keep_num_codebooks_dim cannot be false with {self.num_codebooks} codebooks; leave it out"
            )
        return self

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.dim or len(self.levels) * self.num_codebooks


class DitheredFSQConfig(Config):
    """Finite scalar quantisation with dither in place of a straight-through gradient (Parker et al. 2024)."""

    retired: ClassVar[dict[str, str]] = {
        "dither_inference": "dither is drawn in training only, in the public code too"
    }

    dim: int = Field(ge=1)
    """Channels of one codebook."""
    levels: int | list[int]
    """Levels of every channel, or of each."""
    num_codebooks: int = Field(1, ge=1)
    noise_dropout: float = Field(0.05, ge=0, le=1)
    """In training, the chance of an item to go without dither, and of those to go unquantised."""

    @model_validator(mode="after")
    def _levels_fit(self) -> DitheredFSQConfig:
        if isinstance(self.levels, list) and len(self.levels) != self.dim:
            raise ValueError(
                f"levels must be one number, or one for each of dim = {self.dim} channels,"
                f" found {len(self.levels)}"
            )
        _check_levels(self.level_list)
        return self

    @property
    def level_list(self) -> list[int]:
        """The levels of each channel of a codebook."""
        return self.levels if isinstance(self.levels, list) else [self.levels] * self.dim


class _Bottleneck(Config):
    requires_grad: bool = True

    @property
    def shape(self) -> BottleneckShape:
        """What it does to channels, and what codes it has."""
        return BottleneckShape()


class VAEBottleneck(_Bottleneck):
    """Gaussian latents: softplus scale, KL to the standard normal (Kingma and Welling 2013)."""

    type: Literal["vae"]
    config: VAEConfig = VAEConfig()

    @property
    def shape(self) -> BottleneckShape:
        return BottleneckShape(encoder_factor=2)


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

    @property
    def shape(self) -> BottleneckShape:
        return BottleneckShape(noise_channels=self.config.noise_augment_dim)


class SoftNormBottleneck(_Bottleneck):
    type: Literal["softnorm"]
    config: SoftNormConfig = SoftNormConfig()

    @property
    def shape(self) -> BottleneckShape:
        return BottleneckShape(self.config.dim, noise_channels=self.config.noise_augment_dim)


class RVQBottleneck(_Bottleneck):
    type: Literal["rvq"]
    config: ResidualVQConfig = ResidualVQConfig()

    @property
    def shape(self) -> BottleneckShape:
        config = self.config
        return BottleneckShape(
            config.dim, num_quantizers=config.num_quantizers, codebook_size=config.codebook_size
        )


class DACRVQBottleneck(_Bottleneck):
    type: Literal["dac_rvq"]
    config: DACResidualVQConfig = DACResidualVQConfig()

    @property
    def shape(self) -> BottleneckShape:
        config = self.config
        return BottleneckShape(
            config.input_dim,
            noise_channels=config.noise_augment_dim,
            num_quantizers=config.n_codebooks,
            codebook_size=config.codebook_size,
        )


class FSQBottleneck(_Bottleneck):
    type: Literal["fsq"]
    config: FSQConfig

    @property
    def shape(self) -> BottleneckShape:
        config = self.config
        return BottleneckShape(
            config.channels,
            noise_channels=config.noise_augment_dim,
            num_quantizers=config.num_codebooks,
            codebook_size=math.prod(config.levels),
        )


class DitheredFSQBottleneck(_Bottleneck):
    type: Literal["dithered_fsq"]
    config: DitheredFSQConfig

    @property
    def shape(self) -> BottleneckShape:
        config = self.config
        return BottleneckShape(
            config.dim * config.num_codebooks,
            num_quantizers=config.num_codebooks,
            codebook_size=math.prod(config.level_list),
        )


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
