"""Audio as the latents of a pretransform."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.audio.transforms import set_channels
from stable_audio_tools.errors import ConfigError, DataError, UsageError
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    Surroundings,
    each,
    on_device,
    to_audio,
)
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.conditioning import PretransformConditionerConfig


class PretransformConditioner(Conditioner):
    """Audio through the encoder of a pretransform, the model's or one of its own.

    The embeddings keep the layout of latents, ``(B, D, L)`` with a mask ``(B, L)``, as in the public code:
    they are meant for ``input_concat_ids``. A bottleneck that samples is given the same noise for every
    item and every call, so that a condition is a function of the audio alone.

    The pretransform stays out of the state dict unless ``save_pretransform`` is set.
    """

    def __init__(
        self, config: PretransformConditionerConfig, output_dim: int, surroundings: Surroundings
    ) -> None:
        pretransform = _pretransform(config, surroundings)
        super().__init__(pretransform.encoded_channels, output_dim, config.project_out)
        self.config = config
        self.pretransform: Pretransform
        if config.save_pretransform:
            self.pretransform = pretransform
        else:  # past the registration of modules, so that it stays out of the state dict
            vars(self)["pretransform"] = pretransform
        if config.pretransform_ckpt_path is not None and torch.get_default_device().type != "meta":
            _load(self, config.pretransform_ckpt_path)

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Latents ``(B, D, L)`` of audio ``(C, T)`` each, and their mask ``(B, L)``.

        Shorter items are encoded on their own; their latents end in zeros, which the mask tells of.

        Raises:
            DataError: a value is not audio, or has channels that the pretransform cannot take.
        """
        device = torch.device(device)
        clips = [clip.to(device) for clip in each(values, self._clip)]
        if not on_device(self.pretransform, device):
            self.pretransform.to(device)
        alike = len({clip.shape[-1] for clip in clips}) == 1
        batches = [torch.stack(clips)] if alike else [clip.unsqueeze(0) for clip in clips]
        latents = [item for batch in batches for item in self.project_latents(self._encode(batch))]
        length = max(item.shape[-1] for item in latents)
        lengths = torch.tensor([item.shape[-1] for item in latents], device=device)
        mask = torch.arange(length, device=device) < lengths[:, None]
        return torch.stack([F.pad(item, (0, length - item.shape[-1])) for item in latents]), mask

    def project_latents(self, latents: Tensor) -> Tensor:
        """``(B, C, L)`` to ``(B, output_dim, L)``.

        The public code puts its projection over time, where it fits one length by chance; ours is over
        channels, which is the same wherever there is none.
        """
        return self.project(latents.transpose(1, 2)).transpose(1, 2)

    def _clip(self, value: Any) -> Tensor:
        try:
            return set_channels(to_audio(value), self.pretransform.io_channels)
        except UsageError as error:
            raise DataError(str(error)) from error

    def _encode(self, audio: Tensor) -> Tensor:
        """Latents ``(B, C, L)`` of audio ``(B, C', T)``, each with the same noise where there is any."""
        noise = [generator("pretransform conditioner") for _ in audio]
        with torch.set_grad_enabled(self.pretransform.enable_grad and torch.is_grad_enabled()):
            return self.pretransform.encode(audio, generator=noise)


def _pretransform(config: PretransformConditionerConfig, surroundings: Surroundings) -> Pretransform:
    if config.pretransform_config is not None:
        return create_pretransform(config.pretransform_config, config.sample_rate)
    if surroundings.pretransform is None:
        raise ConfigError(
            "use_model_pretransform is set, but the model has no pretransform; describe one of its own"
        )
    return surroundings.pretransform


def _load(conditioner: PretransformConditioner, path: str) -> None:
    from stable_audio_tools.models.checkpoints import load_pretransform

    if not hasattr(conditioner.pretransform, "model"):
        raise ConfigError(
            f"pretransform_ckpt_path: {type(conditioner.pretransform).__name__} has no weights to load; leave"
            " it out"
        )
    load_pretransform(conditioner, path)
