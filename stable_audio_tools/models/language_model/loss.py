"""The loss of a language model over codes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats: the mean over codebooks, and that of each codebook ``(Q,)``.

    A codebook's own is the mean over its unmasked codes, so every codebook weighs the same. One without any,
    in clips shorter than its delay, is 0 and does not count in the mean.

    Args:
        logits: ``(B, Q, T, card)``; whatever stands where the mask is False has no influence.
        codes: ``(B, Q, T)``.
        mask: ``(B, Q, T)``, True where a code counts.
    """
    logits = logits.masked_fill(~mask.unsqueeze(-1), 0.0).float()
    losses = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
    counts = mask.sum(dim=(0, 2))
    per_codebook = (losses * mask).sum(dim=(0, 2)) / counts.clamp_min(1)
    return per_codebook.sum() / (counts > 0).sum().clamp_min(1), per_codebook
