"""From a model's logits to tokens: temperature, top-k, top-p, and noise that is keyed to the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn.

    Attributes:
        temp: logits are divided by it; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens (Fan et al. 2018); 0 from all.
        top_p: draw from the fewest tokens that hold this much probability (nucleus sampling, Holtzman et al.
            2020); 0 is off, and anything else takes the place of ``top_k``, as in the public code.

    Raises:
        UsageError: a value is out of its range.
    """

    temp: float = 1.0
    top_k: int = 250
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temp < 0:
            raise UsageError(f"temp: found {self.temp}, expected 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top_k: found {self.top_k}, expected 0 (all tokens) or more")
        if not 0 <= self.top_p <= 1:
            raise UsageError(f"top_p: found {self.top_p}, expected 0 (off) to 1")


def sample_tokens(logits: Tensor, sampling: TokenSampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One token for each of ``logits (B, ..., card)``: ``(B, ...)``, int64.

    The draw is a race of exponential clocks: the token whose ``probability / noise`` is greatest wins, which
    happens with its probability. Noise of every token is drawn whatever the filters, so that a clip's draws
    stay in step.

    Args:
        generators: one per clip. Noise is drawn on their device, so that a CPU generator gives the same
            tokens on every machine.
    """
    if sampling.temp == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / sampling.temp
    if sampling.top_p > 0:
        scaled = keep_top_p(scaled, sampling.top_p)
    elif sampling.top_k > 0:
        scaled = keep_top_k(scaled, sampling.top_k)
    clocks = [
        torch.empty(scaled.shape[1:], device=each.device).exponential_(generator=each) for each in generators
    ]
    return (scaled - torch.stack(clocks).log().to(scaled.device)).argmax(dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """``logits (..., card)`` with minus infinity for all below the k-th greatest; ties with it stay."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """``logits (..., card)`` with minus infinity for all tokens but the fewest that together reach ``p``."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before > p)
    return logits.masked_fill(dropped, float("-inf"))
