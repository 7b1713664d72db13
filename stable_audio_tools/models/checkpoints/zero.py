"""Checkpoint folders of DeepSpeed, read without it.

Under ZeRO 1 and 2 every rank has all weights, and the first writes them into one file; what is spread over
the ranks is the optimizer's. With half precision the weights in there are half too; the average of a run of
this package is kept in float32 whatever the precision, and that is what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_audio_tools.errors import CheckpointError

WEIGHTS = "mp_rank_00_model_states.pt"
_SPREAD = "zero_pp_rank_0_mp_rank_00_model_states.pt"
_WRAPPERS = ("module.", "_forward_module.")


def weights_file(folder: Path) -> Path:
    """The file in a checkpoint folder of DeepSpeed that holds the weights and what the run recorded.

    Raises:
        CheckpointError: the folder is of another kind, was not written to its end, or is of ZeRO 3, where
            weights are spread over ranks.
    """
    latest = folder / "latest"
    tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else "checkpoint"
    for place in (folder / tag, folder):
        if (place / WEIGHTS).is_file():
            return place / WEIGHTS
        if (place / _SPREAD).is_file():
            raise CheckpointError(
                f"{folder}: its weights are spread over ranks (ZeRO 3); put them together with the"
                " zero_to_fp32.py in there"
            )
    raise CheckpointError(
        f"{folder}: is a folder; expected a checkpoint file, or a folder of DeepSpeed with {tag}/{WEIGHTS}"
    )


def bare_weights(module: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict that DeepSpeed stores, without the names of what it wraps around a model."""
    for wrapper in _WRAPPERS:
        if module and all(key.startswith(wrapper) for key in module):
            module = {key.removeprefix(wrapper): value for key, value in module.items()}
    return dict(module)
