"""Adapter folders of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.form import Adapter, collect, low_rank
from stable_audio_tools.models.adapters.lora import ADAPTER, adapted_layers, adapter_state_dict
from stable_audio_tools.runtime.files import atomic_path, write_json

KIND = "a PEFT adapter"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT puts in front of every key of its files
_NAMES = {".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_magnitude_vector": "magnitude"}
# these change the base as well as the adapter, unless PEFT was told to convert them when it saved
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda")


def save_adapter(
    model: nn.Module, folder: str | Path, base_sha256: str | None = None, base_name: str | None = None
) -> Path:
    """Write the adapter that was trained on ``model`` to ``folder``, in PEFT's format; returns the folder.

    ``base_sha256``, the hash of the checkpoint it was trained on, goes into the config as ``revision`` and
    ``base_name`` as ``base_model_name_or_path``.

    Raises:
        UsageError: the model has no adapter.
    """
    layers = adapted_layers(model)
    if not layers:
        raise UsageError("the model has no adapters to save; call apply_lora first")
    folder = Path(folder)
    peft_config: Any = model.peft_config[ADAPTER]  # type: ignore[index]
    config = {
        **{
            key: sorted(value) if isinstance(value, set) else value
            for key, value in peft_config.to_dict().items()
        },
        "peft_type": "LORA",
        "inference_mode": True,
        "base_model_name_or_path": base_name,
        "revision": f"sha256:{base_sha256}" if base_sha256 else None,
        "target_modules": sorted(layers),
    }
    state = {
        _PREFIX + key: value.detach().cpu().contiguous() for key, value in adapter_state_dict(model).items()
    }
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, config)
    return folder


def read_peft_folder(folder: Path) -> Adapter:
    """The adapter in a folder of PEFT, ours or another's.

    Raises:
        CheckpointError: a file is missing or damaged, a key is unknown, or the adapter is of a sort that has
            changed its base too.
    """
    config, tensors = _read(folder)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE}: peft_type is {config.get('peft_type')!r}, expected 'LORA'"
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE}: init_lora_weights is {start!r}, which changes the base weights too;"
            " save it with PEFT's path_initial_model_for_weight_conversion first"
        )
    layers = collect(tensors, _split, folder)
    revision = str(config.get("revision") or "")
    return Adapter(
        str(folder),
        KIND,
        {path: low_rank(parts, _scale(config, path, len(parts["down"]))) for path, parts in layers.items()},
        revision.removeprefix("sha256:") if revision.startswith("sha256:") else None,
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no {name}; expected an adapter folder as written beside each checkpoint"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable adapter: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: {CONFIG_FILE}: expected a JSON object")
    return config, tensors


def _split(key: str) -> tuple[str, str] | None:
    for ending, part in _NAMES.items():
        if key.endswith(ending):
            return key.removesuffix(ending).removeprefix(_PREFIX), part
    return None


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` of a rank-stabilised adapter, with PEFT's pattern of alphas."""
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
