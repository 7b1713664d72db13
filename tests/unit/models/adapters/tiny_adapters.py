"""What the tests of adapters do with a model."""

from __future__ import annotations

import torch
from torch import nn

from stable_audio_tools.models.adapters.lora import adapter_state_dict


def run(model: nn.Module) -> torch.Tensor:
    """The network's output for fixed inputs."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, generator=draws)
    tokens = torch.randn(2, 5, 32, generator=draws)
    with torch.no_grad():
        return model.model(
            x, torch.tensor([0.2, 0.8]), cross_attn_cond=tokens, global_cond=tokens[:, :2].flatten(1)
        )


def train_a_little(model: nn.Module) -> None:
    """Give every adapter weight a value of its own."""
    draws = torch.Generator().manual_seed(1)
    for value in adapter_state_dict(model).values():
        value += 0.05 * torch.randn(value.shape, generator=draws)
