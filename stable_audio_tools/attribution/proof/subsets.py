"""Random parts of a training set that differ in tracks and not in how much of each artist they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.seeds import generator


def balanced_subsets(groups: Sequence[str | None], count: int, seed: int = 0) -> Tensor:
    """``count`` random subsets (count, N) of booleans that hold exactly half of every group.

    With as many tracks of each artist in every subset, how many there are of whom explains nothing of what
    differs between the models. Of an odd group every subset holds the same number, the half rounded down and
    up in turn from group to group. Tracks without a group, or alone in theirs, make one group together.

    Raises:
        DataError: fewer than two tracks.
    """
    if len(groups) < 2:
        raise DataError(f"a subset of half the tracks needs at least 2 tracks, found {len(groups)}")
    member_rows = list(group_rows(groups).values())
    subsets = torch.zeros(count, len(groups), dtype=torch.bool)
    for number in range(count):
        draw = generator("proof-subset", seed, number)
        up = False
        for rows in member_rows:
            half = (len(rows) + up) // 2
            up ^= bool(len(rows) % 2)
            chosen = torch.randperm(len(rows), generator=draw)[:half]
            subsets[number, torch.tensor(rows)[chosen]] = True
    return subsets


def group_rows(groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Rows of each group in order of appearance; those of nobody, or alone, come last under an empty name."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        found.setdefault(name or "", []).append(row)
    alone = [row for name, rows in found.items() if not name or len(rows) == 1 for row in rows]
    kept = {name: rows for name, rows in found.items() if name and len(rows) > 1}
    return {**kept, "": sorted(alone)} if alone else kept


def halves(count: int, *key: int | str) -> tuple[Tensor, Tensor]:
    """Positions 0..count-1 in two random halves, in order: one to tune on, one to report on."""
    order = torch.randperm(count, generator=generator("proof-halves", *key))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values
