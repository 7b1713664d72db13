"""The autoencoder in front of a model, as a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints import (
    autoencoder_state,
    compare,
    read_checkpoint,
    save_checkpoint,
)
from stable_audio_tools.models.checkpoints.loading import unwrapped
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import config_of
from stable_audio_tools.nn.convs import respell_weight_norm
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.autoencoder import AutoencoderPretransformConfig
from stable_audio_tools.schema.reader import parse_model_config


def extract_vae(
    ckpt_path: str | Path, model_config: dict[str, Any] | str | Path | None, output_path: str | Path
) -> Path:
    """Write the autoencoder that a model has as its pretransform to a checkpoint, with its config in it.

    The file can be given wherever a VAE is asked for (``--pretransform-ckpt-path``), and is a model of type
    ``autoencoder`` itself. Its tensors are those of the model, bit for bit, under the published names.

    Args:
        ckpt_path: a whole model, wrapped or not.
        model_config: its config, as JSON value or file; None for the one embedded in the checkpoint.
        output_path: where to write; ``.safetensors`` by its suffix, else ``.ckpt``.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, holds no autoencoder or does not fit the config.
        ConfigError: the config has a mistake, or its model has no autoencoder in front of it.
    """
    checkpoint = read_checkpoint(ckpt_path)
    config, source = config_of(checkpoint, model_config)
    own_config = autoencoder_config(config, source)
    kind, state, weights = unwrapped(checkpoint)
    state = autoencoder_state(kind, state)
    if not state:
        raise CheckpointError(
            f"{ckpt_path}: found {checkpoint.kind.value} without an autoencoder; expected the checkpoint of a"
            " whole model, with tensors under pretransform.model"
        )
    with torch.device("meta"):
        model = create_model_from_config(parse_model_config(own_config, f"{source}: model.pretransform"))
    state = respell_weight_norm(state, model)
    if problems := compare(model, state, checkpoint, weights).problems():
        raise CheckpointError(f"{ckpt_path}: its autoencoder does not fit {source}: {problems}")
    output = save_checkpoint(output_path, state, own_config)
    say(f"wrote the autoencoder of {Path(ckpt_path).name}, {len(state)} tensors, to {output}")
    return output


def autoencoder_config(config: dict[str, Any], source: str = "model config") -> dict[str, Any]:
    """The config of the autoencoder in front of a model, as a whole model config of its own.

    Raises:
        ConfigError: ``config`` has a mistake, or its model has no autoencoder in front of it.
    """
    parsed = parse_model_config(config, source)
    pretransform = getattr(parsed.model, "pretransform", None)
    if not isinstance(pretransform, AutoencoderPretransformConfig):
        found = "none" if pretransform is None else repr(pretransform.type)
        raise ConfigError(f"{source}: model.pretransform: expected one of type 'autoencoder', found {found}")
    shared = ("sample_size", "sample_rate", "audio_channels")
    return {
        "model_type": "autoencoder",
        **{key: config[key] for key in shared if key in config},
        "model": config["model"]["pretransform"]["config"],
    }
