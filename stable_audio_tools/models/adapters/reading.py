"""One door for adapters of every kind: the kind is told by what is inside, never by the name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.adapters.form import Adapter
from stable_audio_tools.models.adapters.loraw import is_loraw, read_loraw
from stable_audio_tools.models.adapters.peft_folder import CONFIG_FILE, read_peft_folder
from stable_audio_tools.models.adapters.stable_audio_3 import METADATA, is_stable_audio_3, read_stable_audio_3
from stable_audio_tools.schema.training import LoraConfig

EXPECTED = "a PEFT folder, a LoRAW checkpoint or a Stable Audio 3 adapter"


def read_adapter(path: str | Path, lora: LoraConfig | None = None) -> Adapter:
    """Read an adapter onto the CPU, without running code from it; ``kind`` says what it was.

    Args:
        path: a folder of PEFT or a file in it, a LoRAW checkpoint, or an adapter of Stable Audio 3.
        lora: the ``lora`` block it was trained with, for LoRAW, whose files do not say their alpha.

    Raises:
        CheckpointError: it is missing, damaged, or of no known kind; what was found is named.
    """
    path = Path(path)
    if path.is_dir():
        return read_peft_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such adapter; expected {EXPECTED}")
    tensors, config = _read(path)
    keys = set(tensors)
    if is_loraw(keys):
        return read_loraw(tensors, path, lora)
    if is_stable_audio_3(keys):
        return read_stable_audio_3(tensors, config, path)
    if (path.parent / CONFIG_FILE).is_file():
        return read_peft_folder(path.parent)
    raise CheckpointError(f"{path}: {_found(keys)}; expected {EXPECTED}")


def _found(keys: set[str]) -> str:
    """What a file without a known adapter holds, with advice where it is clear what was meant."""
    if any(".lora_A.default." in key for key in keys):
        return "found the training checkpoint of a LoRA run: give the .adapter folder beside it"
    if any(key.endswith(".lora_A.weight") for key in keys):
        return (
            f"found the weights of a PEFT adapter, but no {CONFIG_FILE} beside them, which says their alpha"
        )
    first = f", first {min(keys)!r}" if keys else ""
    return f"found {len(keys)} tensors{first}, none of which is of an adapter that is known here"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file, and the ``lora_config`` beside them."""
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {}).get(METADATA, "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict):
                raise CheckpointError(f"{path}: found a {type(content).__name__}, expected {EXPECTED}")
            config = content.get(METADATA, {})
            inner = content.get("state_dict", content)
            tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not loaded, since it is damaged or holds Python objects besides tensors, which could"
            f" run code; expected {EXPECTED}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable adapter: {reason}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: {METADATA}: expected a JSON object, found {type(config).__name__}")
    return tensors, config


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a header, then its brace."""
    with open(path, "rb") as stream:
        return stream.read(9)[8:] == b"{"
