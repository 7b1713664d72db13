"""A tiny conditional diffusion model whose output shows every change of its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stable_audio_tools.models.factory import create_model_from_config


@pytest.fixture
def model(tiny_diffusion_config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = create_model_from_config(tiny_diffusion_config)
        for (
            parameter
        ) in model.model.parameters():  # blocks end in zeros when fresh, which would hide everything
            nn.init.normal_(parameter, std=0.1)
    return model.eval()
