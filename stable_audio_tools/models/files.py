"""The files a model is made of, and the model they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.lora import load_adapter
from stable_audio_tools.models.checkpoints import load_checkpoint, load_pretransform, model_sha256
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.factory import create_model_from_config_path
from stable_audio_tools.models.unconditional import DiffusionModelWrapper
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.schema.reader import read_json


@dataclass(frozen=True)
class ModelFiles:
    """Where a model comes from.

    Attributes:
        model_config: the model config (JSON).
        ckpt_path: its checkpoint; of a wrapped one the averaged weights are used.
        lora_ckpt_path: folder of an adapter on top of it.
        pretransform_ckpt_path: where the autoencoder comes from, if not from ``ckpt_path``.
    """

    model_config: Path
    ckpt_path: Path
    lora_ckpt_path: Path | None = None
    pretransform_ckpt_path: Path | None = None

    @property
    def name(self) -> str:
        """What a clip's sidecar calls the model: its checkpoint, and the adapter on top."""
        adapter = "" if self.lora_ckpt_path is None else f" + {self.lora_ckpt_path}"
        return f"{self.ckpt_path}{adapter}"

    def sha256(self) -> str:
        """One hash for all weights: that of the checkpoint, where everything comes from it."""
        weights = self._weights()
        given = [value for value in weights.values() if value is not None]
        return given[0] if len(given) == 1 else hash_json(weights)

    def stamp(self) -> dict[str, Any]:
        """Hashes of the files, by what they are; how the model was trained does not count."""
        config = {key: value for key, value in read_json(self.model_config).items() if key != "training"}
        return {"model_config": hash_json(config), **self._weights()}

    def load(
        self, device: str | torch.device | None = None
    ) -> ConditionedDiffusionModelWrapper | DiffusionModelWrapper:
        """The diffusion model, with or without prompts, in evaluation mode on ``device``; None is the best.

        Raises:
            ConfigError: the config has a mistake.
            UsageError: the config is not that of a diffusion model.
            CheckpointError: a checkpoint or an adapter is missing or does not fit.
        """
        kinds = (ConditionedDiffusionModelWrapper, DiffusionModelWrapper)
        return self._load(device, kinds, "generates audio, of type diffusion_cond or diffusion_uncond")

    def load_conditional(self, device: str | torch.device | None = None) -> ConditionedDiffusionModelWrapper:
        """:meth:`load` for what takes a model with prompts.

        Raises:
            UsageError: the config is not that of a conditional diffusion model.
        """
        kinds = (ConditionedDiffusionModelWrapper,)
        return self._load(device, kinds, "turns prompts into audio, of type diffusion_cond")

    def _load(
        self, device: str | torch.device | None, kinds: tuple[type[nn.Module], ...], expected: str
    ) -> Any:
        target = resolve_device(device)
        model = create_model_from_config_path(self.model_config)
        if not isinstance(model, kinds):
            raise UsageError(
                f"{self.model_config}: describes a {type(model).__name__}; expected a model that {expected}"
            )
        own_pretransform = self.pretransform_ckpt_path is None
        load_checkpoint(model, self.ckpt_path, allow_missing=() if own_pretransform else ("pretransform.",))
        if self.pretransform_ckpt_path is not None:
            load_pretransform(model, self.pretransform_ckpt_path)
        if self.lora_ckpt_path is not None:
            load_adapter(model, self.lora_ckpt_path, model_sha256(self.ckpt_path))
        model = model.to(target).eval()
        if isinstance(model.pretransform, nn.Module):
            # The same audio to the bit, without 0.3 s per call on a CPU for the norms of 156 M weights.
            fuse_weight_norm_(model.pretransform)
        return model

    def _weights(self) -> dict[str, str | None]:
        adapter, pretransform = self.lora_ckpt_path, self.pretransform_ckpt_path
        return {
            "checkpoint": model_sha256(self.ckpt_path),
            "pretransform": None if pretransform is None else model_sha256(pretransform),
            "adapter": None if adapter is None else _folder_hash(adapter),
        }


def _folder_hash(folder: Path) -> str:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such adapter folder")
    return hash_json({path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()})
