"""The losses that bottlenecks report, and which weight of a config is whose."""

from __future__ import annotations

from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import Info
from stable_audio_tools.schema.losses import BottleneckWeights

LOSSES = {
    "kl": "kl",  # vae
    "mmd": "mmd",  # wasserstein, in training only
    "softnorm_loss": "softnorm",  # softnorm, in training only
    "quantizer_loss": "quantizer",  # rvq
    "vq/codebook_loss": "codebook",  # dac_rvq
    "vq/commitment_loss": "commitment",  # dac_rvq
}
"""Every loss of every bottleneck: its public name in the info, and the key of its weight.

``tanh``, ``l2_norm``, ``fsq`` and ``dithered_fsq`` need none.
"""


def weighted_losses(info: Info, weights: BottleneckWeights) -> dict[str, Tensor]:
    """The losses in ``info`` by name, each times its weight."""
    return {name: getattr(weights, key) * info[name] for name, key in LOSSES.items() if name in info}
