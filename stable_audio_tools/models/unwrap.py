"""From what training wrote to a file with just the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.adapters.attach import load_adapters
from stable_audio_tools.models.adapters.lora import merge_adapters
from stable_audio_tools.models.adapters.strength import AdapterPaths, choose_adapters
from stable_audio_tools.models.checkpoints import (
    Checkpoint,
    compare,
    load_checkpoint,
    model_sha256,
    read_checkpoint,
    save_checkpoint,
    unwrap_state_dict,
)
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.nn.convs import respell_weight_norm
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import parse_model_config, read_model_json


def unwrap_checkpoint(
    ckpt_path: str | Path,
    model_config: dict[str, Any] | str | Path | None,
    output_path: str | Path,
    use_safetensors: bool = False,
) -> Path:
    """Write the model inside a training checkpoint: its EMA weights, or the online ones of a run without EMA.

    Args:
        ckpt_path: what the training run saved.
        model_config: JSON value or file; None for the config embedded in the checkpoint.
        output_path: where to write; ``.ckpt`` or ``.safetensors`` is added where it is not there.
        use_safetensors: which of the two.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, not wrapped, or does not fit the config.
        ConfigError: the config has a mistake.
    """
    checkpoint = read_checkpoint(ckpt_path)
    try:
        state, weights = unwrap_state_dict(checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{ckpt_path}: {error}") from error
    config, source = config_of(checkpoint, model_config)
    with torch.device("meta"):
        model = create_model_from_config(parse_model_config(config, source))
    state = respell_weight_norm(state, model)
    problems = compare(model, state, checkpoint, weights).problems()
    if problems:
        raise CheckpointError(f"{ckpt_path}: does not fit {source}: {problems}")
    output = save_checkpoint(_with_suffix(output_path, use_safetensors), state, config)
    reason = "" if weights == "EMA" else " (this run kept no EMA)"
    say(f"wrote the {weights} weights{reason} to {output}")
    return output


def merge_adapter(
    ckpt_path: str | Path,
    lora_ckpt_path: AdapterPaths,
    model_config: dict[str, Any] | str | Path | None,
    output_path: str | Path,
    use_safetensors: bool = False,
) -> Path:
    """Write a model with adapters added into its weights: a plain checkpoint that needs none.

    Args:
        ckpt_path: the model that the adapter was trained on, wrapped or not.
        lora_ckpt_path: the adapter, or several; each a path, with ``:strength`` behind it where it is not 1.
        model_config, output_path, use_safetensors: as for :func:`unwrap_checkpoint`.

    Raises:
        CheckpointError: checkpoint or adapter is missing, damaged, or does not fit.
        ConfigError: the config has a mistake.
    """
    value, source = config_of(read_checkpoint(ckpt_path), model_config)
    config, choices = parse_model_config(value, source), choose_adapters(lora_ckpt_path)
    model = create_model_from_config(config)
    load_checkpoint(model, ckpt_path)
    load_adapters(model, choices, model_sha256(ckpt_path), getattr(config, "lora", None))
    state = merge_adapters(model).state_dict()
    output = save_checkpoint(_with_suffix(output_path, use_safetensors), state, value)
    names = " and ".join(choice.path.name for choice in choices)
    say(f"wrote {Path(ckpt_path).name} with {names} merged into it to {output}")
    return output


def config_of(
    checkpoint: Checkpoint, model_config: dict[str, Any] | str | Path | None
) -> tuple[dict[str, Any], str]:
    """The JSON value of the config to use for ``checkpoint``, and what error messages call it.

    Args:
        model_config: JSON value or file; None for the config embedded in the checkpoint.

    Raises:
        CheckpointError: none is given, and none is embedded.
        ConfigError: the file is missing or no JSON.
    """
    if isinstance(model_config, str | Path):
        return read_model_json(model_config), str(model_config)
    config = checkpoint.model_config if model_config is None else model_config
    if config is None:
        raise CheckpointError(
            f"{checkpoint.path}: no model config is embedded in it; give one with --model-config"
        )
    return config, f"model config of {checkpoint.path}"


def _with_suffix(path: str | Path, use_safetensors: bool) -> Path:
    """``path`` with the suffix added where it is not there: a name such as ``v1.2`` keeps its dot."""
    path, suffix = Path(path), ".safetensors" if use_safetensors else ".ckpt"
    return path if path.suffix == suffix else path.with_name(path.name + suffix)
