"""``sat unwrap``: what training wrote becomes a model file."""

from __future__ import annotations

from pathlib import Path

import typer


def unwrap(
    ckpt_path: Path = typer.Option(..., help="Training checkpoint (.ckpt); with an adapter, its base model."),
    lora_ckpt_path: list[str] = typer.Option(
        None, help="An adapter to merge into it, or PATH:STRENGTH; may be given more than once."
    ),
    model_config: Path = typer.Option(None, help="Model config (JSON); default: the one in the checkpoint."),
    name: str = typer.Option(
        "exported_model", help="The file is written as <name>.ckpt in the working folder."
    ),
    use_safetensors: bool = typer.Option(False, help="Write <name>.safetensors instead."),
) -> None:
    """Write the model inside a training checkpoint: EMA weights, or the online ones of a run without EMA.

    With adapters, write the base model with the adapters merged into its weights.
    """
    from stable_audio_tools.models.unwrap import merge_adapter, unwrap_checkpoint

    if not lora_ckpt_path:
        unwrap_checkpoint(ckpt_path, model_config, name, use_safetensors)
    else:
        merge_adapter(ckpt_path, lora_ckpt_path, model_config, name, use_safetensors)
