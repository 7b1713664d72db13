"""From a training checkpoint to a file with just the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import compare, read_checkpoint, save_checkpoint, unwrap_state_dict
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.nn.convs import respell_weight_norm
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import parse_model_config, read_json


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
    config = read_json(model_config) if isinstance(model_config, str | Path) else model_config
    config = config if config is not None else checkpoint.model_config
    if config is None:
        raise CheckpointError(f"{ckpt_path}: no model config is embedded in it; give one with --model-config")
    source = str(model_config) if isinstance(model_config, str | Path) else f"model config of {ckpt_path}"
    with torch.device("meta"):
        model = create_model_from_config(parse_model_config(config, source))
    state = respell_weight_norm(state, model)
    problems = compare(model, state, checkpoint, weights).problems()
    if problems:
        raise CheckpointError(f"{ckpt_path}: does not fit {source}: {problems}")
    suffix = ".safetensors" if use_safetensors else ".ckpt"
    output = Path(output_path)
    output = output if output.suffix == suffix else output.with_name(output.name + suffix)
    save_checkpoint(output, state, config)
    reason = "" if weights == "EMA" else " (this run kept no EMA)"
    say(f"wrote the {weights} weights{reason} to {output}")
    return output
