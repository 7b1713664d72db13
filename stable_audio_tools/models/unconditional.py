"""A diffusion model that makes audio from noise alone, on audio or on latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.models.unet1d import DiffusionAttnUnet1D
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.model import DiffusionUncondModelConfig, UncondDAU1d, UncondDiT
from stable_audio_tools.schema.networks import DiTConfig
from stable_audio_tools.schema.unets import DAU1dConfig


class DiTUncondWrapper(nn.Module):
    """The transformer under the public key ``model``, without conditioning."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.model = DiffusionTransformer(config)

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Any:
        """The v target ``(B, C, L)`` for ``x (B, C, L)`` at times ``t (B,)``."""
        return self.model(x, t, **options)


NETWORKS: dict[type[Config], Callable[[Any], nn.Module]] = {
    UncondDAU1d: DiffusionAttnUnet1D,
    UncondDiT: DiTUncondWrapper,
}
"""By the class of the ``model`` block: what makes a network of its ``config``."""


class DiffusionModelWrapper(nn.Module):
    """An unconditional diffusion model: Dance Diffusion, or a transformer, with an optional pretransform.

    Attributes:
        config: the whole config it was built from.
        model: the diffusion network, called as ``model(x, t)``.
        pretransform: audio to latents and back, or None.
        io_channels: channels of ``x``.
        sample_rate: of the audio, in Hz.
        diffusion_objective: what the network predicts, always ``v``.
        dist_shift: None: the public package has no shift without conditioning.
        min_input_length: audio samples that a rendered length is a multiple of.
        min_length: the shortest rendered length, in audio samples.
    """

    def __init__(self, config: DiffusionUncondModelConfig) -> None:
        super().__init__()
        network, pretransform = config.model.config, config.model.pretransform
        self.config = config
        self.model = NETWORKS[type(config.model)](network)
        self.pretransform = (
            None if pretransform is None else create_pretransform(pretransform, config.sample_rate)
        )
        self.io_channels = network.io_channels
        self.sample_rate = config.sample_rate
        self.diffusion_objective = "v"
        self.dist_shift = None
        ratio = 1 if self.pretransform is None else self.pretransform.downsampling_ratio
        unit, least = _frames(network)
        self.min_input_length, self.min_length = ratio * unit, ratio * least

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Any:
        """What the network predicts for ``x (B, C, L)`` at times ``t (B,)``: ``(B, C, L)``."""
        return self.model(x, t, **options)


def _frames(network: DiTConfig | DAU1dConfig) -> tuple[int, int]:
    """What the length of ``x`` must be a multiple of, and the shortest it can be."""
    if isinstance(network, DAU1dConfig):
        return network.factor, network.min_frames
    return network.patch_size, network.patch_size
