"""``sat unwrap``: a training checkpoint becomes a model file."""

from __future__ import annotations

from pathlib import Path

import typer


def unwrap(
    ckpt_path: Path = typer.Option(..., help="Training checkpoint (.ckpt)."),
    model_config: Path = typer.Option(None, help="Model config (JSON); default: the one in the checkpoint."),
    name: str = typer.Option(
        "exported_model", help="The file is written as <name>.ckpt in the working folder."
    ),
    use_safetensors: bool = typer.Option(False, help="Write <name>.safetensors instead."),
) -> None:
    """Write the model inside a training checkpoint: EMA weights, or the online ones of a run without EMA."""
    from stable_audio_tools.models.unwrap import unwrap_checkpoint

    unwrap_checkpoint(ckpt_path, model_config, name, use_safetensors)
