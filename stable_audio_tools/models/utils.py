"""Helpers under their public names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import checkpoint_kind, read_checkpoint
from stable_audio_tools.models.checkpoints.loading import unwrapped
from stable_audio_tools.nn.convs import fuse_weight_norm_, respell_weight_norm


def load_ckpt_state_dict(ckpt_path: str | Path) -> dict[str, Tensor]:
    """The model's state dict in a checkpoint, for ``model.load_state_dict``; a wrapped one is unwrapped.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no state dict.
    """
    _, state, _ = unwrapped(read_checkpoint(ckpt_path))
    return state


def copy_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Copy the entries of ``state_dict`` that fit ``model`` by name and shape; returns the names that do not.

    Raises:
        CheckpointError: not one of them fits.
    """
    own = model.state_dict()
    state = respell_weight_norm(dict(state_dict), model)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise CheckpointError(
            f"not one of the {len(state)} keys fits the model; is this {checkpoint_kind(own).value}?"
        )
    model.load_state_dict(fitting, strict=False)
    return [key for key in state if key not in fitting]


def remove_weight_norm_from_model(model: nn.Module) -> nn.Module:
    """Fuse the weight norm of all convolutions into plain weights, in place."""
    fuse_weight_norm_(model)
    return model
