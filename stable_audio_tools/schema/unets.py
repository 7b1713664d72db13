"""Diffusion U-Nets: the one of Dance Diffusion, and those of audio-diffusion-pytorch."""

from __future__ import annotations

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class DAU1dConfig(Config):
    """The U-Net of Dance Diffusion: convolutions, with attention in its inner levels."""

    io_channels: int = Field(2, ge=1)
    depth: int = Field(14, ge=1)
    n_attn_layers: int = Field(6, ge=0)
    channels: list[int] = [128, 128, 256, 256] + [512] * 10
    strides: list[int] = [2] * 13
    """From each level to the next inner one."""
    cond_dim: int = Field(0, ge=0)
    cond_noise_aug: bool = False
    kernel_size: int = Field(5, ge=1)
    learned_resample: bool = False
    conv_bias: bool = True
    use_snake: bool = False

    @model_validator(mode="after")
    def _lists_reach(self) -> DAU1dConfig:
        if len(self.channels) < self.depth or len(self.strides) < self.depth - 1:
            raise ValueError(
                f"depth {self.depth} takes {self.depth} channels and {self.depth - 1} strides,"
                f" found {len(self.channels)} and {len(self.strides)}"
            )
        if not self.learned_resample and any(stride > 2 for stride in self.strides[: self.depth - 1]):
            raise ValueError(f"strides above 2 take learned_resample, found {self.strides}")
        return self


class ADPConfig(Config):
    """The U-Net of audio-diffusion-pytorch (Schneider et al. 2023)."""

    in_channels: int = Field(ge=1)
    out_channels: int | None = Field(None, ge=1)
    channels: int = Field(ge=1)
    multipliers: list[int]
    factors: list[int]
    num_blocks: list[int]
    attentions: list[int]
    attention_heads: int | None = Field(None, ge=1)
    attention_features: int | None = Field(None, ge=1)
    attention_multiplier: int | None = Field(None, ge=1)
    attention_use_rel_pos: bool = False
    attention_rel_pos_num_buckets: int | None = Field(None, ge=1)
    attention_rel_pos_max_distance: int | None = Field(None, ge=1)
    patch_size: int = Field(1, ge=1)
    resnet_groups: int = Field(8, ge=1)
    kernel_multiplier_downsample: int = Field(2, ge=1)
    use_nearest_upsample: bool = False
    use_skip_scale: bool = True
    use_snake: bool = False
    use_stft: bool = False
    use_stft_context: bool = False
    use_context_time: bool = True
    context_features: int | None = Field(None, ge=1)
    context_features_multiplier: int = Field(4, ge=1)
    context_channels: list[int] | None = None
    context_embedding_features: int | None = Field(None, ge=1)

    @property
    def io_channels(self) -> int:
        """Channels in; as many come out where ``out_channels`` is absent."""
        return self.in_channels

    @model_validator(mode="after")
    def _lists_fit(self) -> ADPConfig:
        levels = len(self.multipliers) - 1
        short = [name for name in ("factors", "num_blocks") if len(getattr(self, name)) != levels]
        if short or len(self.attentions) < levels:
            raise ValueError(
                f"{levels + 1} multipliers take {levels} factors and num_blocks and as many attentions or"
                f" more, found {len(self.factors)}, {len(self.num_blocks)} and {len(self.attentions)}"
            )
        return self


class ADPGuidedConfig(ADPConfig):
    """:class:`ADPConfig` with a learned embedding in place of the prompt, for guidance."""

    context_embedding_features: int = Field(ge=1)
    context_embedding_max_length: int = Field(ge=1)
    use_xattn_time: bool = False
