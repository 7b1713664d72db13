"""Checkpoint files: read without running code from them, and written whole or not at all."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints.kinds import Kind, State, checkpoint_kind
from stable_audio_tools.models.checkpoints.zero import WEIGHTS, bare_weights, weights_file
from stable_audio_tools.runtime.files import atomic_path, sha256_file


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it lies in its file. ``model_config`` is the JSON value embedded in it, if any."""

    path: Path
    kind: Kind
    state: State
    model_config: dict[str, Any] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any kind onto the CPU, without running code from it.

    A folder that DeepSpeed wrote is read like a file; see :mod:`~stable_audio_tools.models.checkpoints.zero`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        state, config = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path}: not loaded, since it is damaged or holds Python objects besides tensors, which"
                " could run code; expected a .safetensors file or a .ckpt of tensors"
            ) from error
        raise CheckpointError(_damaged(path, error)) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(_damaged(path, error)) from error
    if not state:
        raise CheckpointError(
            f"{path}: holds no tensors; expected a state dict, or a dict with a 'state_dict'"
        )
    return Checkpoint(path, checkpoint_kind(state), state, config)


def read_state_dict(path: str | Path) -> State:
    """The state dict in a file, as it is stored there; see :func:`read_checkpoint`."""
    return read_checkpoint(path).state


def save_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], model_config: dict[str, Any] | None = None
) -> Path:
    """Write a state dict with its model config: ``.safetensors``, config in the metadata, or ``.ckpt``."""
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            # One entry at most: safetensors writes several in an order that differs from file to file.
            metadata = (
                {"format": "pt"} if model_config is None else {"model_config": json.dumps(model_config)}
            )
            save_file(_unshared(state), temporary, metadata=metadata)
        else:
            config = {} if model_config is None else {"model_config": model_config}
            with open(temporary, "wb") as stream:  # given a path, torch writes its name into the file
                torch.save({"state_dict": dict(state), **config}, stream)
    return path


def model_sha256(path: str | Path) -> str:
    """The SHA-256 of a checkpoint file, by which sidecars and feature stores know it.

    It is computed once per process, until the file's size or time of change differs.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    with safe_open(path, framework="pt") as file:
        config = (file.metadata() or {}).get("model_config")
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(config) if config else None  # noqa: SIM118


def _read_pickled(path: Path) -> tuple[State, dict[str, Any] | None]:
    # Memory-mapped where the format allows it: optimizer states, half of a training checkpoint, stay on disk.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}")
    state = content.get("state_dict", content)
    if path.name == WEIGHTS and isinstance(content.get("module"), Mapping):
        state = bare_weights(content["module"])
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is a {type(state).__name__}")
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, content.get("model_config")


def _unshared(state: Mapping[str, Tensor]) -> State:
    """Contiguous tensors with no storage in common, as safetensors needs them."""
    seen: set[int] = set()
    result: State = {}
    for key, value in state.items():
        value = value.detach().contiguous()
        pointer = value.untyped_storage().data_ptr()
        result[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return f"{path}: damaged, truncated or not a checkpoint: {reason[:160]}"
