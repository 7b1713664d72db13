"""The files a model is made of, and the model they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.attach import load_adapters
from stable_audio_tools.models.adapters.strength import AdapterChoice, AdapterPaths, choose_adapters
from stable_audio_tools.models.checkpoints import load_checkpoint, load_pretransform, model_sha256
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.factory import create_model_from_config_path
from stable_audio_tools.models.unconditional import DiffusionModelWrapper
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.schema.reader import read_json, read_model_config


@dataclass(frozen=True)
class ModelFiles:
    """Where a model comes from.

    Attributes:
        model_config: the model config (JSON).
        ckpt_path: its checkpoint; of a wrapped one the averaged weights are used.
        lora_ckpt_path: an adapter on top of it, or several; each is a path, with ``:strength`` behind it
            where that is not 1.
        pretransform_ckpt_path: where the autoencoder comes from, if not from ``ckpt_path``.
    """

    model_config: Path
    ckpt_path: Path
    lora_ckpt_path: AdapterPaths = None
    pretransform_ckpt_path: Path | None = None

    @property
    def name(self) -> str:
        """What a clip's sidecar calls the model: its checkpoint, and the adapters on top."""
        return " + ".join(map(str, [self.ckpt_path, *self.adapters]))

    @property
    def adapters(self) -> tuple[AdapterChoice, ...]:
        """The adapters on top, by strength.

        Raises:
            UsageError: a strength is not finite, or an adapter is named twice.
        """
        return choose_adapters(self.lora_ckpt_path)

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
        if adapters := self.adapters:
            lora = getattr(read_model_config(self.model_config), "lora", None)
            load_adapters(model, adapters, model_sha256(self.ckpt_path), lora)
        model = model.to(target).eval()
        if isinstance(model.pretransform, nn.Module):
            # The same audio to the bit, without 0.3 s per call on a CPU for the norms of 156 M weights.
            fuse_weight_norm_(model.pretransform)
        return model

    def _weights(self) -> dict[str, str | None]:
        pretransform = self.pretransform_ckpt_path
        return {
            "checkpoint": model_sha256(self.ckpt_path),
            "pretransform": None if pretransform is None else model_sha256(pretransform),
            "adapter": _adapters_hash(self.adapters),
        }


def _adapters_hash(choices: tuple[AdapterChoice, ...]) -> str | None:
    """None without an adapter, the hash of its files for one as trained, one for all of several."""
    if not choices:
        return None
    if len(choices) == 1 and choices[0].strength == 1:
        return _adapter_hash(choices[0].path)
    return hash_json([[_adapter_hash(choice.path), choice.strength] for choice in choices])


def _adapter_hash(path: Path) -> str:
    """Of the file, or of those in the folder."""
    if path.is_dir():
        return hash_json({file.name: sha256_file(file) for file in sorted(path.iterdir()) if file.is_file()})
    if not path.is_file():
        raise CheckpointError(f"{path}: no such adapter")
    return sha256_file(path)
