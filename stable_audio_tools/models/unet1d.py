"""The attention U-Net of Dance Diffusion (Evans, Kattge and Crowson, Harmonai 2022), after ``v-diffusion``.

Shapes: B batch, C channels, T frames: audio samples, or latents behind a pretransform. Attribute names are
those of the public checkpoints, so a layer that does nothing keeps its place in a sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.nn.activations import Snake1d
from stable_audio_tools.nn.embeddings import FourierFeatures
from stable_audio_tools.nn.resampling import Downsample1d, Upsample1d, learned_downsample, learned_upsample
from stable_audio_tools.schema.unets import DAU1dConfig, heads

TIMESTEP_FEATURES = 16
RESAMPLING_KERNEL = "cubic"
INITIAL_GAIN = 0.5
"""Fresh weights are halved, as in the published training runs."""


class ResConvBlock(nn.Module):
    """Two convolutions with norms over the whole clip, and a way around: ``(B, C, T) -> (B, C', T)``.

    Args:
        is_last: leave out the second norm and activation.
    """

    def __init__(self, config: DAU1dConfig, c_in: int, c_mid: int, c_out: int, is_last: bool = False) -> None:
        super().__init__()
        size, bias = config.kernel_size, config.conv_bias
        self.main = nn.Sequential(
            nn.Conv1d(c_in, c_mid, size, padding=size // 2, bias=bias),
            nn.GroupNorm(1, c_mid),
            _activation(c_mid, config.use_snake),
            nn.Conv1d(c_mid, c_out, size, padding=size // 2, bias=bias),
            nn.Identity() if is_last else nn.GroupNorm(1, c_out),
            nn.Identity() if is_last else _activation(c_out, config.use_snake),
        )
        self.skip = nn.Identity() if c_in == c_out else nn.Conv1d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class SelfAttention1d(nn.Module):
    """``x`` plus attention over all of its frames (Vaswani et al. 2017), with no positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.n_head = heads(channels)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.norm(x)).unflatten(1, (3, self.n_head, -1)).transpose(-1, -2)
        attended = F.scaled_dot_product_attention(*qkv.unbind(1))
        return x + self.out_proj(attended.transpose(-1, -2).flatten(1, 2))


class SkipBlock(nn.Module):
    """What ``main`` makes of ``x``, with ``x`` itself behind it: ``(B, C, T) -> (B, 2 C, T)``."""

    def __init__(self, *main: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*main)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.main(x), x], dim=1)


class DiffusionAttnUnet1D(nn.Module):
    """Predicts the v target from a noisy signal and a time: ``(B, C, T) -> (B, C, T)``.

    Any length goes in. One that the levels do not divide is continued by its mirror image, so that the
    padding is as noisy as the signal, and the answer is cut.

    Args:
        config: the ``config`` of a ``DAU1d`` block.
    """

    def __init__(self, config: DAU1dConfig) -> None:
        super().__init__()
        self.config = config
        self.io_channels = config.io_channels
        self.timestep_embed = FourierFeatures(1, TIMESTEP_FEATURES)
        inner: nn.Module = nn.Identity()
        for level in range(config.depth, 1, -1):
            inner = _inner_level(config, level, inner)
        self.net = _outer_level(config, inner)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(INITIAL_GAIN)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        cond_aug_scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The v target ``(B, C, T)``, in the dtype of the weights.

        Args:
            x: noisy signal, ``(B, C, T)``.
            t: times in [0, 1], ``(B,)``.
            cond: ``(B, cond_dim, T')``, stretched to T by linear interpolation.
            cond_aug_scale: level of the noise put on ``cond``, with ``cond_noise_aug``. None is a level drawn
                for each clip in training, and 0 in evaluation.
            generator: of that noise and its level; None is torch's global one.

        Raises:
            UsageError: ``cond`` is missing, or has other channels than the config says.
        """
        x = x.to(self.timestep_embed.weight.dtype)
        inputs = [x, self._time_planes(t, x)]
        found = 0 if cond is None else cond.shape[1]
        if found != self.config.cond_dim:
            raise UsageError(
                f"conditioning beside the input of DAU1d: found {found} channels,"
                f" expected cond_dim, {self.config.cond_dim}"
            )
        if cond is not None:
            cond = cond.to(x.dtype)
            if cond.shape[-1] != x.shape[-1]:
                cond = F.interpolate(cond, x.shape[-1], mode="linear", align_corners=False)
            if self.config.cond_noise_aug:
                cond, level = self._augment(cond, cond_aug_scale, generator)
                inputs.append(self._time_planes(level, x))
            inputs.append(cond)
        return self.net(_mirrored(torch.cat(inputs, dim=1), self.config))[..., : x.shape[-1]]

    def _time_planes(self, t: Tensor, x: Tensor) -> Tensor:
        """Features of ``t (B,)``, the same at every frame of ``x``."""
        return self.timestep_embed(t.to(x.dtype)[:, None])[..., None].expand(-1, -1, x.shape[-1])

    def _augment(
        self, cond: Tensor, scale: float | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """``cond`` with noise on it, and its level ``(B,)``."""
        if scale is None and not self.training:
            scale = 0.0
        where = cond.device if generator is None else generator.device
        if scale is None:
            level = torch.rand(len(cond), generator=generator, device=where)
        else:
            level = torch.full((len(cond),), scale, device=where)
        noise = torch.randn(cond.shape, generator=generator, device=where)
        level, noise = level.to(cond), noise.to(cond)
        return cond + noise * level[:, None, None], level


class DAU1dWrapper(nn.Module):
    """The U-Net under the public key ``model``, taking its conditioning as the channels beside the input."""

    def __init__(self, config: DAU1dConfig, objective: str = "v") -> None:
        super().__init__()
        self.model = DiffusionAttnUnet1D(config)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        input_concat_cond: Tensor | None = None,
        cond_aug_scale: float | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
        **unused: Any,
    ) -> Any:
        """:meth:`DiffusionAttnUnet1D.forward`; guidance has no effect, as in the public code.

        With ``return_info``, the answer and an empty dict.
        """
        output = self.model(x, t, input_concat_cond, cond_aug_scale, generator)
        return (output, {}) if return_info else output


def _activation(channels: int, use_snake: bool) -> nn.Module:
    return Snake1d(channels) if use_snake else nn.GELU()


def _inner_level(config: DAU1dConfig, level: int, inner: nn.Module) -> SkipBlock:
    """Level 2 and further in: down, three blocks, what lies inside, three blocks, up."""
    outer_width, width = config.channels[level - 2 : level]
    stride = config.strides[level - 2]
    has_attention = config.has_attention(level)

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        attention = SelfAttention1d(c_out) if has_attention else nn.Identity()
        return [ResConvBlock(config, c_in, width, c_out), attention]

    down: nn.Module
    up: nn.Module
    # A filter halves; a level of stride 1 has convolutions at both ends. The public code doubles there on the
    # way up, which no signal survives, so no checkpoint has such a level.
    if config.learned_resample or stride == 1:
        down, up = learned_downsample(outer_width, stride), learned_upsample(outer_width, stride)
    else:
        down, up = Downsample1d(RESAMPLING_KERNEL), Upsample1d(RESAMPLING_KERNEL)
    return SkipBlock(
        down,
        *block(outer_width, width),
        *block(width, width),
        *block(width, width),
        inner,
        *block(width if level == config.depth else 2 * width, width),
        *block(width, width),
        *block(width, outer_width),
        up,
    )


def _outer_level(config: DAU1dConfig, inner: nn.Module) -> nn.Sequential:
    width = config.channels[0]
    time_width = TIMESTEP_FEATURES * (2 if config.cond_noise_aug else 1)
    return nn.Sequential(
        ResConvBlock(config, config.io_channels + config.cond_dim + time_width, width, width),
        ResConvBlock(config, width, width, width),
        ResConvBlock(config, width, width, width),
        inner,
        ResConvBlock(config, 2 * width, width, width),
        ResConvBlock(config, width, width, width),
        ResConvBlock(config, width, width, config.io_channels, is_last=True),
    )


def _mirrored(x: Tensor, config: DAU1dConfig) -> Tensor:
    """``x`` continued to and fro to the next length that the levels divide."""
    length = x.shape[-1]
    target = max(-(-length // config.factor) * config.factor, config.min_frames)
    if target == length:
        return x
    period = max(2 * length - 2, 1)
    position = torch.arange(target, device=x.device) % period
    return x[..., torch.minimum(position, period - position)]
