"""Warnings about the scores as a whole: tracks that come first for every clip, and rankings that are all one.

In many dimensions some points are among the nearest of very many others (hubs, Radovanović et al. 2010): such
a track is high in a ranking because of what it is, not because of the clip. How often a track is among the
first k is its k-occurrence; the skewness of these counts over the tracks says how far a few of them rule.
A score matrix that is nearly of rank one ranks the tracks alike for every clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

from stable_audio_tools.attribution.scoring.ranking import order

FIRST = 5
"""k: a track counts where it is among this many."""

SKEWED = 1.4
"""Skewness of k-occurrences from which they are called skewed."""

NEARLY_ONE = 0.9
"""Share of the first singular value in the energy of the scores from which they are called one ranking."""

_CHANCE = 0.01
_LEAST_SHARE = 0.2


@dataclass(frozen=True)
class Hub:
    """A track that is among the first ``k`` of ``clips`` clips, where chance gives ``expected``."""

    track: int
    clips: int
    expected: float


@dataclass(frozen=True)
class Health:
    """What the scores look like as a whole.

    ``skewness`` is None where there are fewer clips than make it mean something; ``rank_one`` likewise.
    """

    k: int
    skewness: float | None
    rank_one: float | None
    hubs: list[Hub]

    @property
    def one_ranking(self) -> bool:
        return self.rank_one is not None and self.rank_one >= NEARLY_ONE

    @property
    def skewed(self) -> bool:
        return self.skewness is not None and self.skewness >= SKEWED and bool(self.hubs)


def score_health(scores: Tensor, rank_by: str, k: int = FIRST) -> Health:
    """Hubs, skewness and the share of the first singular value, of scores (Q, N)."""
    clips, tracks = scores.shape
    k = min(k, max(1, tracks // 10))
    counts = occurrences(scores, rank_by, k)
    if clips < 3:
        return Health(k, None, None, [])
    energy = torch.linalg.svdvals(scores.double()) ** 2
    rank_one = float(energy[0] / energy.sum()) if energy.sum() > 0 else None
    return Health(k, skewness(counts), rank_one, _hubs(counts, clips, k))


def occurrences(scores: Tensor, rank_by: str, k: int) -> Tensor:
    """For how many clips each track is among the first k, (N,)."""
    return torch.bincount(order(scores, rank_by)[:, :k].flatten(), minlength=scores.shape[1])


def skewness(counts: Tensor) -> float:
    """The third standardised moment; 0 where all counts are the same."""
    offset = counts.double() - counts.double().mean()
    spread = offset.square().mean().sqrt()
    return float((offset**3).mean() / spread**3) if spread > 0 else 0.0


def _hubs(counts: Tensor, clips: int, k: int) -> list[Hub]:
    """Tracks that are first for a fifth of the clips or more, and more than chance allows any of N tracks."""
    chance = k / len(counts)
    least = max(3, _LEAST_SHARE * clips)
    return [
        Hub(track, count, clips * chance)
        for track, count in sorted(enumerate(counts.tolist()), key=lambda pair: -pair[1])
        if count >= least and binom.sf(count - 1, clips, chance) * len(counts) < _CHANCE
    ]
