"""``sat extract-vae``: the autoencoder of a whole model becomes a file of its own."""

from __future__ import annotations

from pathlib import Path

import typer

from stable_audio_tools.errors import UsageError


def extract_vae(
    ckpt_path: Path = typer.Option(None, help="Checkpoint of a whole model, from training or unwrapped."),
    model_config: Path = typer.Option(None, help="Its config (JSON); default: the one in the checkpoint."),
    pretrained_name: str = typer.Option(
        None, help="Instead of these two: a folder or a Hugging Face name, with model_config.json."
    ),
    output: Path = typer.Option(
        "dataset/pretrained_model/vae_model.ckpt", help="The file to write; .ckpt or .safetensors."
    ),
) -> None:
    """Write the autoencoder of a whole model to a file of its own, for --pretransform-ckpt-path."""
    from stable_audio_tools.models.extraction import extract_vae as extract
    from stable_audio_tools.models.pretrained import find_pretrained

    if (ckpt_path is None) == (pretrained_name is None) or (pretrained_name and model_config):
        raise UsageError(
            "give --ckpt-path, with --model-config where it embeds none, or --pretrained-name alone"
        )
    if pretrained_name is not None:
        files = find_pretrained(pretrained_name)
        extract(files.ckpt_path, files.model_config, output)
    else:
        extract(ckpt_path, model_config, output)
