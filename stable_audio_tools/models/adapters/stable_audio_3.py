"""Adapters of Stable Audio 3: safetensors with a JSON ``lora_config`` in the metadata.

Tensors are ``<module>.lora_A`` ``(r, in)``, ``.lora_B`` ``(out, r)`` and ``.magnitude`` ``(out,)``, with
``.parametrizations.weight.0`` after the module where they were saved as torch parametrizations, and the
module relative to the network or to the conditioners. ``include`` and ``exclude`` say which layers training
chose; the file has just these, so that reading needs neither. Weights of convolutions are flattened to
``(out, in k)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.adapters.form import Adapter, collect, low_rank

KIND = "a Stable Audio 3 adapter"
METADATA = "lora_config"
TYPES = ("lora", "dora", "dora-rows")
_NAMES = {"lora_A": "down", "lora_B": "up", "magnitude": "magnitude", "lora_dropout_mask": ""}
_PARAMETRIZED = ".parametrizations.weight.0"


def is_stable_audio_3(keys: set[str]) -> bool:
    """Whether these are the keys of such a file."""
    return any(key.rpartition(".")[2] in ("lora_A", "M_xs") for key in keys)


def read_stable_audio_3(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: Path) -> Adapter:
    """The adapter in the tensors and the ``lora_config`` of a file; ``dora`` is read as ``dora-rows``.

    Raises:
        CheckpointError: the type is none of ``TYPES``, a key is unknown, or a pair is incomplete.
    """
    kind = str(config.get("adapter_type", "lora"))
    if kind not in TYPES:
        raise CheckpointError(
            f"{source}: adapter_type is {kind!r}, expected one of {', '.join(TYPES)}; merge it into its model"
            " with the tool that trained it"
        )
    layers = collect(tensors, _split, source)
    dora = kind != "lora"
    for path, parts in layers.items():
        magnitude = parts.get("magnitude")
        if dora != (magnitude is not None):
            raise CheckpointError(
                f"{source}: adapter_type is {kind!r}, but layer {path!r} has"
                f" {'no' if magnitude is None else 'a'} magnitude"
            )
        if magnitude is not None and magnitude.numel() != len(parts["up"]):
            raise CheckpointError(
                f"{source}: layer {path!r} has {magnitude.numel()} magnitudes, expected {len(parts['up'])}:"
                " one an output (dora-rows); magnitudes of inputs (dora-cols) are not supported"
            )
    return Adapter(
        str(source), KIND, {path: low_rank(parts, _scale(parts, config)) for path, parts in layers.items()}
    )


def _scale(parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    rank = int(config.get("rank") or len(parts["down"]))
    alpha = config.get("alpha")
    return (rank if alpha is None else float(alpha)) / rank


def _split(key: str) -> tuple[str, str] | None:
    path, _, name = key.rpartition(".")
    return (path.removesuffix(_PARAMETRIZED), _NAMES[name]) if name in _NAMES else None
