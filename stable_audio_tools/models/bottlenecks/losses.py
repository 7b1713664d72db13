"""The losses that bottlenecks report, and how a config weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import Info


class ReportedLoss(NamedTuple):
    """A scalar in what :meth:`Bottleneck.encode` reports."""

    weight_key: str
    """Its name under ``bottleneck.weights`` of ``training.loss_configs``."""
    weight: float
    """What it counts where the config does not say, as in the public code."""


LOSSES = {
    "kl": ReportedLoss("kl", 1e-6),  # vae
    "mmd": ReportedLoss("mmd", 100.0),  # wasserstein, in training only
    "softnorm_loss": ReportedLoss("softnorm", 1e-5),  # softnorm, in training only
    "quantizer_loss": ReportedLoss("quantizer_loss", 1.0),  # rvq
    "vq/codebook_loss": ReportedLoss("codebook_loss", 1.0),  # dac_rvq
    "vq/commitment_loss": ReportedLoss("commitment_loss", 0.25),  # dac_rvq
}
"""Every loss of every bottleneck, by its name in the info. ``fsq`` and ``dithered_fsq`` need none."""


def weighted_losses(info: Info, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The losses in ``info``, each times its weight, by name.

    Args:
        weights: by weight key; what is absent has its public weight.
    """
    return {
        name: weights.get(loss.weight_key, loss.weight) * info[name]
        for name, loss in LOSSES.items()
        if name in info
    }
