"""The diffusion U-Net of Dance Diffusion."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config

HEAD_WIDTH = 32


def heads(channels: int) -> int:
    """Attention heads of a level: one for every 32 channels, and at least one."""
    return max(channels // HEAD_WIDTH, 1)


class DAU1dConfig(Config):
    """The U-Net of Dance Diffusion: convolutions, with attention in its inner levels.

    Levels are counted from the outside; level 1 is as long as the input.
    """

    io_channels: int = Field(2, ge=1)
    depth: int = Field(14, ge=2)
    """Levels."""
    n_attn_layers: int = Field(6, ge=0)
    """Levels from ``depth - n_attn_layers`` inwards have attention, one more than it says; 0 is none."""
    channels: list[Annotated[int, Field(ge=1)]] = [128, 128, 256, 256] + [512] * 10
    strides: list[Annotated[int, Field(ge=1)]] = [2] * 13
    """From each level to the next inner one."""
    cond_dim: int = Field(0, ge=0)
    """Channels of conditioning beside the input."""
    cond_noise_aug: bool = False
    """Put noise of a random level on the conditioning in training, and tell the network the level."""
    kernel_size: int = Field(5, ge=1)
    learned_resample: bool = False
    conv_bias: bool = True
    use_snake: bool = False

    @property
    def factor(self) -> int:
        """Frames of the input per frame of the innermost level: lengths are a multiple of it."""
        return math.prod(self.strides[: self.depth - 1])

    @property
    def min_frames(self) -> int:
        """The shortest length: the innermost fixed filter needs 6 frames to mirror its ends, and leaves 3."""
        filtered = not self.learned_resample and self.factor > 1
        return self.factor * (3 if filtered else 1)

    def has_attention(self, level: int) -> bool:
        """Whether ``level``, from 2 for the second to ``depth``, has attention."""
        return self.n_attn_layers > 0 and level >= self.depth - self.n_attn_layers

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

    @model_validator(mode="after")
    def _layers_fit(self) -> DAU1dConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the length, found {self.kernel_size}")
        for level in filter(self.has_attention, range(2, self.depth + 1)):
            for width in self.channels[level - 2 : level]:
                if width % heads(width):
                    raise ValueError(
                        f"{width} channels do not divide into {heads(width)} attention heads;"
                        f" expected a multiple of {HEAD_WIDTH} in levels with attention"
                    )
        return self
