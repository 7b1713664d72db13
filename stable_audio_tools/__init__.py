"""Training, generation, de-duplication, attribution and evaluation for latent-diffusion music models.

The documented functions can be taken from here; each is imported when it is first asked for, so that
importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_audio_tools.inference.generation import generate_diffusion_cond
    from stable_audio_tools.inference.unconditional import generate_diffusion_uncond
    from stable_audio_tools.models.factory import create_model_from_config, create_model_from_config_path
    from stable_audio_tools.models.pretrained import get_pretrained_model

__all__ = [
    "create_model_from_config",
    "create_model_from_config_path",
    "generate_diffusion_cond",
    "generate_diffusion_uncond",
    "get_pretrained_model",
]

_HOMES = {
    "create_model_from_config": "models.factory",
    "create_model_from_config_path": "models.factory",
    "generate_diffusion_cond": "inference.generation",
    "generate_diffusion_uncond": "inference.unconditional",
    "get_pretrained_model": "models.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
