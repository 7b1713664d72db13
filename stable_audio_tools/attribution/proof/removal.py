"""Leaving tracks out and training again: those of highest score against the most similar and random ones.

Shapes: Q queries, N tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.proof.jobs import Results
from stable_audio_tools.attribution.proof.retrain import Job
from stable_audio_tools.attribution.proof.statistics import mean_interval, ratio_interval, spearman
from stable_audio_tools.attribution.proof.subsets import group_rows
from stable_audio_tools.runtime.seeds import generator


@dataclass(frozen=True)
class Removal:
    """Tracks left out for one query by one method."""

    method: str
    query: int
    rows: tuple[int, ...]

    def jobs(self, tracks: int, seeds: int) -> list[Job]:
        """Models of everything else."""
        gone = set(self.rows)
        kept = tuple(row for row in range(tracks) if row not in gone)
        return [Job(f"remove/{self.method}/{self.query}", kept, seed) for seed in range(seeds)]


def removals(scores: Mapping[str, Tensor], queries: Sequence[int], share: float = 0.05) -> list[Removal]:
    """For each query and method the tracks of highest score, and as many random ones.

    ``share`` of all tracks, at least one. Random tracks are drawn anew for each query.
    """
    count = next(iter(scores.values())).shape[1]
    size = max(1, round(share * count))
    made = []
    for query in queries:
        for name, values in scores.items():
            top = values[query].topk(size).indices.sort().values
            made.append(Removal(name, query, tuple(top.tolist())))
        draw = torch.randperm(count, generator=generator("proof-removal", query))[:size]
        made.append(Removal("at random", query, tuple(draw.sort().values.tolist())))
    return made


def removal_table(
    made: Sequence[Removal], found: Mapping[str, Tensor], tracks: int, seeds: int, against: Sequence[str]
) -> list[dict[str, Any]]:
    """How much the loss of a query rises without the tracks, on average; with the ratio to other methods.

    ``found`` are measured losses (Q, K) by job; the models of everything are among them as ``full``.
    """
    base = full_losses(found)
    rises: dict[str, dict[int, float]] = {}
    for removal in made:
        keys = [Results.key(job) for job in removal.jobs(tracks, seeds)]
        losses = [found[key].double().mean(1)[removal.query] for key in keys if key in found]
        if losses:
            change = torch.stack(losses).mean() - base[removal.query]
            rises.setdefault(removal.method, {})[removal.query] = change.item()
    rows = []
    for name, values in rises.items():
        own = torch.tensor(list(values.values()))
        row: dict[str, Any] = {"method": name, "queries": len(own), "rise": mean_interval(own).to_dict()}
        row["rise_in_percent"] = mean_interval(100 * own / base[list(values)]).to_dict()
        for other in against:
            both = [query for query in values if query in rises.get(other, {})]
            if other != name and both:
                pair = [torch.tensor([rises[one][query] for query in both]) for one in (name, other)]
                row[f"minus {other}"] = mean_interval(pair[0] - pair[1]).to_dict()
                row[f"times {other}"] = ratio_interval(pair[0], pair[1]).to_dict()
        rows.append(row)
    return rows


def full_losses(found: Mapping[str, Tensor]) -> Tensor:
    """Mean loss of the models of everything, (Q,)."""
    full = [values.double().mean(1) for key, values in found.items() if key.startswith("full/")]
    return torch.stack(full).mean(0)


def group_jobs(groups: Sequence[str | None], count: int, seeds: int) -> dict[str, list[Job]]:
    """Models without one group each, for ``count`` groups chosen at random."""
    named = {name: rows for name, rows in group_rows(groups).items() if name}
    order = torch.randperm(len(named), generator=generator("proof-groups"))[:count].tolist()
    names = [list(named)[i] for i in order]
    made = {}
    for name in names:
        gone = set(named[name])
        kept = tuple(row for row in range(len(groups)) if row not in gone)
        made[name] = [Job(f"without/{name}", kept, seed) for seed in range(seeds)]
    return made


def groups_table(
    scores: Mapping[str, Tensor],
    groups: Sequence[str | None],
    jobs: Mapping[str, Sequence[Job]],
    found: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Per method, how the groups' summed scores go with the rise of the loss without each group.

    For each query the groups left out are ranked both ways; the mean rank correlation over queries is given.
    """
    base, rows = full_losses(found), group_rows(groups)
    rises, names = [], []
    for name, stack in jobs.items():
        losses = [found[Results.key(job)].double().mean(1) for job in stack if Results.key(job) in found]
        if losses:
            rises.append(torch.stack(losses).mean(0) - base)
            names.append(name)
    if len(names) < 3:
        return []
    rise = torch.stack(rises)  # (groups, Q)
    table = []
    for method, values in scores.items():
        summed = torch.stack([values[:, rows[name]].sum(1) for name in names])
        each = spearman(summed, rise)
        table.append({"method": method, "groups": len(names), "correlation": mean_interval(each).to_dict()})
    return sorted(table, key=lambda row: -row["correlation"]["value"])
