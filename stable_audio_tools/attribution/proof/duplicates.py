"""Planted copies as queries: is the track that a copy was made from ranked first?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.proof.statistics import mean_interval


def ranks_of_originals(scores: Tensor, originals: Sequence[int]) -> Tensor:
    """Rank of each query's original among all tracks, 1 is first; of equal scores the mean rank. (Q,)."""
    own = scores[torch.arange(len(scores)), torch.tensor(originals)][:, None]
    above, equal = (scores > own).sum(1), (scores == own).sum(1)
    return above + (equal + 1) / 2


def duplicates_table(
    scores: Mapping[str, Tensor], originals: Sequence[int], kinds: Sequence[str], against: str
) -> list[dict[str, Any]]:
    """One row a method and kind of copy: how often the original is first, and the mean reciprocal rank.

    ``minus_baseline`` is the mean reciprocal rank less that of ``against``, paired by copy.
    """
    reciprocal = {name: 1 / ranks_of_originals(values, originals) for name, values in scores.items()}
    rows = []
    for name in scores:
        for kind in ["all", *dict.fromkeys(kinds)]:
            chosen = torch.tensor([kind in ("all", one) for one in kinds])
            own, other = reciprocal[name][chosen], reciprocal[against][chosen]
            row: dict[str, Any] = {
                "method": name, "kind": kind, "copies": int(chosen.sum()),
                "first": round((own == 1).double().mean().item(), 4),
                "reciprocal_rank": mean_interval(own).to_dict(),
            }  # fmt: skip
            if name != against:
                row["minus_baseline"] = mean_interval(own - other).to_dict()
            rows.append(row)
    return rows
