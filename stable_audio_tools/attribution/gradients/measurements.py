"""The numbers of a sample's network output whose gradients become its features.

TRAK differentiates the training loss (Park et al. 2023); D-TRAK found that other functions of the output
give better attributions for diffusion models (Zheng et al. 2024, table 1). All of them take

    output (B, C, L), target (B, C, L), mask (B, 1, L) with 1 = audio and 0 = padding

and give one number per sample, (B,), which no other sample of the batch and no padded frame can change.
Averages are over the unpadded elements of the sample, so that a short clip weighs like a long one.

Several, joined by ``+``, are measured on one forward pass; their gradients lie beside each other in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError

Measurement = Callable[[Tensor, Tensor, Tensor], Tensor]


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _average(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over the unpadded elements; 0 where everything is padding."""
    count = mask.flatten(1).sum(1) * values.shape[1]
    return _sum(values * mask) / count.clamp(min=1)


def loss(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The training loss: mean squared error."""
    return _average((output - target) ** 2, mask)


def mean_squared_l2_norm(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared Euclidean norm, divided by the number of elements."""
    return _average(output**2, mask)


def mean(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of the output."""
    return _average(output, mask)


def l1_norm(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of absolute values."""
    return _sum(output.abs() * mask)


def l2_norm(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Euclidean norm. Its gradient at an output of all zeros is taken as zero."""
    squared = _sum(output**2 * mask)
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)


def linf_norm(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Largest absolute value; ties share the gradient."""
    return (output.abs() * mask).flatten(1).amax(1)


MEASUREMENTS: dict[str, Measurement] = {
    "loss": loss,
    "mean-squared-l2-norm": mean_squared_l2_norm,
    "mean": mean,
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
    "linf-norm": linf_norm,
}


def measurement_names(f: str) -> list[str]:
    """The measurements that ``f`` names, joined by ``+``.

    Raises:
        UsageError: one is unknown, or named twice.
    """
    names = f.split("+")
    for name in names:
        if name not in MEASUREMENTS:
            raise UsageError(f"unknown f {name!r}; known: {', '.join(MEASUREMENTS)}, or several joined by +")
    if len(set(names)) < len(names):
        raise UsageError(f"f {f!r} names a measurement twice")
    return names


def measure(f: str, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What ``f`` names, of every sample: (B, M)."""
    return torch.stack([MEASUREMENTS[name](output, target, mask) for name in measurement_names(f)], dim=1)


def stretches(mask: Tensor, count: int) -> Tensor:
    """The unpadded frames of ``mask`` (B, 1, L) in ``count`` stretches of one length, (B, count, L)."""
    sounding = mask > 0
    length, place = sounding.sum(2, keepdim=True), sounding.cumsum(2) - 1
    ends = torch.arange(count + 1, device=mask.device)[:, None] * length // count  # (B, count + 1, 1)
    return (sounding & (place >= ends[:, :-1]) & (place < ends[:, 1:])).to(mask.dtype)
