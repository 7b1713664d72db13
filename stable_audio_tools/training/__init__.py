"""The run: Lightning module, losses, optimizers, checkpoints, demos and trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.training.factory import create_training_wrapper_from_config

__all__ = ["create_training_wrapper_from_config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stable_audio_tools.training import factory  # Lightning: heavy, and not needed to read settings

    return getattr(factory, name)
