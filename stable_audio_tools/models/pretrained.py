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

_ADVICE = "give a folder with the same files instead"
_HUB_TIMEOUT_SECONDS = 10.0


def get_pretrained_model(name_or_folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The model called ``name_or_folder`` in evaluation mode, and its config as JSON value.

    A text encoder that the config names relative to its own folder (``../t5``) is found there. The weights
    keep their published names.

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


from_pretrained = get_pretrained_model
"""The name that Hugging Face users look for."""


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
    """Config and checkpoint of the repository ``name``: from the hub, or as they were fetched before."""
    from huggingface_hub import errors, hf_hub_download

    try:
        offline = not _hub_answers(name)
        config = hf_hub_download(name, CONFIG_NAME, local_files_only=offline)
        for checkpoint in CHECKPOINT_NAMES:
            try:
                return Path(config), Path(hf_hub_download(name, checkpoint, local_files_only=offline))
            except errors.EntryNotFoundError:
                continue
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: access is restricted; accept its licence at https://huggingface.co/{name} and log in"
            f" with 'hf auth login', or {_ADVICE}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: neither a folder here nor a repository on the Hugging Face hub; a private one takes"
            " 'hf auth login'"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: not a folder here, not fetched before, and the Hugging Face hub cannot be reached;"
            f" {_ADVICE}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{name}: this repository has no {CONFIG_NAME}; {_ADVICE}") from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: not a folder here, and not to be had from the Hugging Face hub: {reason}; {_ADVICE}"
        ) from error
    found = "could be had while offline" if offline else "is in this repository"
    raise CheckpointError(f"{name}: neither of {' and '.join(CHECKPOINT_NAMES)} {found}; {_ADVICE}")


def _hub_answers(name: str) -> bool:
    """Whether the hub can be reached; asked once, since a download asks six times over half a minute.

    Raises:
        RepositoryNotFoundError, EntryNotFoundError: it answers that there is no such model, or none for us.
        ValueError: ``name`` cannot be that of a repository.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=_HUB_TIMEOUT_SECONDS)
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError):
        raise
    except Exception:  # of httpx or of requests, by the version of the hub's client
        return False
    return True
