"""The diffusion U-Net of Dance Diffusion."""

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
