"""Adapters of LoRAW (Low-Rank Adaptation for Waveforms): a pickled dict of tensors.

Keys are ``<module path with / for .>/lora_down.weight``, ``.../lora_up.weight`` and ``.../dora_mag.weight``.
The file has neither alpha nor multiplier: they are those of the ``lora`` block of the model config that it
was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.adapters.form import Adapter, collect, low_rank
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.schema.training import LoraConfig

KIND = "a LoRAW checkpoint"
# LoRAW keeps the magnitude in a linear layer, whose bias no forward pass reads
_NAMES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "dora_mag.weight": "magnitude",
    "dora_mag.bias": "",
}


def is_loraw(keys: set[str]) -> bool:
    """Whether these are the keys of such a file."""
    return any(key.endswith("/lora_down.weight") for key in keys)


def read_loraw(tensors: Mapping[str, Tensor], source: Path, lora: LoraConfig | None) -> Adapter:
    """The adapter in the tensors of a LoRAW file.

    Args:
        lora: the ``lora`` block that it was trained with; without one, alpha is taken to be the rank.

    Raises:
        CheckpointError: a key is unknown or a pair incomplete, or the multiplier of a DoRA is not 1: LoRAW
            then scales the update but not the norm that it divides by, which a DoRA cannot express.
    """
    layers = collect(tensors, _split, source)
    is_dora = any("magnitude" in parts for parts in layers.values())
    if lora is None:
        warn(f"{source}: {KIND} does not say its alpha; taking alpha = rank, as there is no lora block")
    elif is_dora and lora.multiplier != 1:
        raise CheckpointError(
            f"{source}: lora.multiplier is {lora.multiplier:g}, but {KIND} with magnitudes needs 1"
        )
    # LoRAW cuts the rank at the width of a layer, after it has worked out the scale from the one asked for
    rank = lora.rank if lora is not None else max(len(parts["down"]) for parts in layers.values())
    scale = 1.0 if lora is None else (lora.alpha or rank) / rank * lora.multiplier
    for path, parts in layers.items():
        if len(parts["down"]) > rank:
            raise CheckpointError(
                f"{source}: layer {path!r} has rank {len(parts['down'])}, but lora.rank is {rank}; give the"
                " model config that the adapter was trained with"
            )
    return Adapter(str(source), KIND, {path: low_rank(parts, scale) for path, parts in layers.items()})


def _split(key: str) -> tuple[str, str] | None:
    path, _, name = key.rpartition("/")
    return (path.replace("/", "."), _NAMES[name]) if name in _NAMES else None
