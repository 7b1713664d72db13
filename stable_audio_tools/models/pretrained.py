"""Published models: a folder, or a repository on the Hugging Face hub, with a config and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import load_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.schema.reader import parse_model_config, read_model_json

CONFIG_NAME = "model_config.json"
CHECKPOINT_NAMES = ("model.safetensors", "model.ckpt")


def get_pretrained_model(name_or_folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The model called ``name_or_folder`` in evaluation mode, and its config as JSON value.

    A text encoder that the config names relative to its own folder (``../t5``) is found there.

    Args:
        name_or_folder: a folder with ``model_config.json`` and ``model.safetensors`` or ``model.ckpt``, or
            the name of such a repository, for example ``stabilityai/stable-audio-open-1.0``.

    Raises:
        CheckpointError: it cannot be found, fetched or read.
        ConfigError: its config has a mistake.
    """
    files = find_pretrained(name_or_folder)
    config = read_model_json(files.model_config)
    model = create_model_from_config(parse_model_config(config, str(files.model_config)))
    load_checkpoint(model, files.ckpt_path)
    return model.eval(), config


def find_pretrained(name_or_folder: str | Path) -> ModelFiles:
    """The files of the model called ``name_or_folder``, fetched from the hub where it is no folder.

    Raises:
        CheckpointError: they cannot be found or fetched.
    """
    folder = Path(name_or_folder)
    return ModelFiles(*(_in_folder(folder) if folder.is_dir() else _on_hub(str(name_or_folder))))


def _in_folder(folder: Path) -> tuple[Path, Path]:
    for name in CHECKPOINT_NAMES:
        if (folder / name).is_file():
            return folder / CONFIG_NAME, folder / name
    raise CheckpointError(f"{folder}: expected {' or '.join(CHECKPOINT_NAMES)} in this folder, found neither")


def _on_hub(name: str) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    advice = "give a folder with the same files instead"
    try:
        config_path = hf_hub_download(name, CONFIG_NAME)
        try:
            return Path(config_path), Path(hf_hub_download(name, CHECKPOINT_NAMES[0]))
        except EntryNotFoundError:
            return Path(config_path), Path(hf_hub_download(name, CHECKPOINT_NAMES[1]))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name}: access is restricted; accept its licence at https://huggingface.co/{name} and log in"
            f" with 'hf auth login', or {advice}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: neither a folder here nor a repository on the Hugging Face hub"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: not a folder here, and not to be had from the Hugging Face hub: {reason}; {advice}"
        ) from error
