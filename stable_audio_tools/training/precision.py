"""Weights in bfloat16 from end to end, for ``--precision bf16-true``."""

from __future__ import annotations

import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from stable_audio_tools.training.module import ModelTrainer


class BFloat16Weights(MixedPrecision):
    """Weights, gradients and optimizer states in bfloat16; half of the memory of ``bf16-mixed``.

    Lightning's own precision of this name turns everything to bfloat16: the timesteps, and the average of the
    weights, which then stands still, since what an update adds to it is less than its last digit. Here draws,
    losses and average stay in float32, and so does the VAE, under autocast.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Turn what is trained, and what it is conditioned with."""
        assert isinstance(module, ModelTrainer)
        for name, part in module.wrapped.named_children():
            if name != "pretransform":
                part.to(torch.bfloat16)
        return module
