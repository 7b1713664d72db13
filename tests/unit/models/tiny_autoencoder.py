"""A tiny autoencoder for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.schema.autoencoder import AutoencoderConfig

RATIO = 16


def autoencoder_config(strides: tuple[int, ...] = (2, 8), **changes: Any) -> dict[str, Any]:
    oobleck = {"channels": 4, "c_mults": [1, 2], "strides": list(strides), "use_snake": True}
    ratio = strides[0] * strides[1]
    config: dict[str, Any] = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 6, **oobleck}},
        "decoder": {
            "type": "oobleck",
            "config": {"out_channels": 2, "latent_dim": 3, "final_tanh": False, **oobleck},
        },
        "bottleneck": {"type": "vae"},
        "latent_dim": 3,
        "downsampling_ratio": ratio,
        "io_channels": 2,
    }
    config["decoder"]["config"].update(changes.pop("decoder", {}))
    return {**config, **changes}


def build(**changes: Any) -> AudioAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AudioAutoencoder(AutoencoderConfig.model_validate(autoencoder_config(**changes)), 16000)
    return model.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
