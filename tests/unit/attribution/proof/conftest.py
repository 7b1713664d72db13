"""A tiny conditional model over latents, and a training set for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_model_config

FRAMES, CHANNELS = 12, 4
CONFIG: dict[str, Any] = {
    "model_type": "diffusion_cond",
    "sample_size": FRAMES,
    "sample_rate": 16000,
    "audio_channels": CHANNELS,
    "model": {
        "conditioning": {
            "configs": [{"id": "style", "type": "int", "config": {"min_val": 0, "max_val": 3}}],
            "cond_dim": 8,
        },
        "diffusion": {
            "type": "dit",
            "diffusion_objective": "v",
            "cross_attention_cond_ids": ["style"],
            "config": {
                "io_channels": CHANNELS, "embed_dim": 32, "depth": 1, "num_heads": 2, "cond_token_dim": 8,
                "transformer_type": "continuous_transformer", "ff_kwargs": {"mult": 2},
            },
        },
        "io_channels": CHANNELS,
    },
    "training": {"cfg_dropout_prob": 0.1, "timestep_sampler": "uniform", "mask_padding": True},
}  # fmt: skip


def make_tracks(model: Any, count: int, name: str, seed: int) -> LatentBatch:
    """``count`` random tracks; the last two frames of every third are padding."""
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, CHANNELS, FRAMES, generator=draw)
    infos = []
    for i in range(count):
        mask = torch.ones(FRAMES)
        if i % 3 == 0:
            mask[-2:] = 0
        infos.append({"sample_id": f"{name}{i}", "style": i % 4, "padding_mask": mask})
    return DiffusionTask(model, FeatureSettings()).prepare(latents, infos)


@pytest.fixture
def tracks() -> Any:
    """:func:`make_tracks`."""
    return make_tracks


@pytest.fixture
def config() -> Any:
    return parse_model_config(CONFIG)


@pytest.fixture
def model(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = create_model_from_config(config)
        for parameter in made.model.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    return made.eval()
