"""Whether the model has seen a track, as far as its loss tells: a figure beside the scores, not part of them.

A score answers "which tracks would have moved this clip", and a recording that resembles a training track
closely scores like one. Whether a recording was trained on is another question, asked here of the training
loss: a model that has fitted a recording predicts it better than the same recording slightly changed
(neighbourhood comparison, Mattern et al. 2023). The figure is

    gap = mean loss of two changed copies / loss - 1

with the same timesteps, noise and prompt; the copies are the latents with a little noise added, and with it
subtracted, so that only how the loss curves around the recording is left. Its level depends on the music, so
on its own it decides nothing. Beside tracks that are known to be outside of the training set it has a
p-value, and how well it tells the two apart is measured (AUC; 0.5 is guessing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.parts import Measured, prepared, spread
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.queries import TrackSource
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.seeds import derive_seed, generator

CHANGE = 0.2
"""Size of the noise in a changed copy, in standard deviations of the recording's latents."""

TIMESTEPS = 3
REFERENCES = 64
"""Tracks of the training set and of the reference set that the figure is validated with, at most."""


@dataclass(frozen=True)
class Membership:
    """Of one track: its loss, the gap to its changed copies, the share of references that reach the gap."""

    loss: float
    gap: float
    p_value: float | None = None


@dataclass(frozen=True)
class MembershipResult:
    """Figures by row of the training set, and how well they tell training tracks from references."""

    tracks: Mapping[int, Membership]
    references: int = 0
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None


def membership(
    measured: Measured, source: TrackSource, rows: Sequence[int], references: TrackSource | None
) -> MembershipResult:
    """The figure of the tracks ``rows`` of ``source``; ``references`` are tracks known not to be in it."""
    settings = measured.settings
    if references is None:
        found = _figures(measured, source, sorted(rows), "losses of tracks")
        return MembershipResult({row: Membership(*pair) for row, pair in found.items()})
    # the references first: what is wrong with them shows before the longer work
    outside = _figures(
        measured,
        references,
        _sample(len(references.index), REFERENCES, settings.seed, "reference"),
        "losses of references",
    )
    sample = _sample(len(source.index), min(REFERENCES, len(outside)), settings.seed, "training")
    found = _figures(measured, source, sorted({*rows, *sample}), "losses of tracks")
    if not outside:
        raise DataError("membership_reference: none of its tracks can be read")
    theirs = torch.tensor([gap for _, gap in outside.values()], dtype=torch.float64)
    ours = torch.tensor([found[row][1] for row in sample if row in found], dtype=torch.float64)
    tracks = {
        row: Membership(*found[row], (1 + int((theirs >= found[row][1]).sum())) / (1 + len(theirs)))
        for row in rows
        if row in found
    }
    return MembershipResult(tracks, len(theirs), *auc_interval(ours, theirs, settings.seed))


def auc(inside: Tensor, outside: Tensor) -> float:
    """How often a track of the training set has the larger figure; ties count half."""
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    return float(above.mean())


def auc_interval(
    inside: Tensor, outside: Tensor, seed: int, resamples: int = 400
) -> tuple[float, float, float]:
    """The AUC and its 95 % interval over tracks drawn anew with replacement."""
    draws = generator("membership-auc", seed)
    drawn = sorted(
        auc(
            inside[torch.randint(len(inside), (len(inside),), generator=draws)],
            outside[torch.randint(len(outside), (len(outside),), generator=draws)],
        )
        for _ in range(resamples)
    )
    tail = int(0.025 * resamples)
    return auc(inside, outside), drawn[tail], drawn[-1 - tail]


def _sample(count: int, most: int, seed: int, what: str) -> list[int]:
    order = sorted(range(count), key=lambda row: derive_seed("membership", what, seed, row))
    return sorted(order[:most])


def _figures(
    measured: Measured, source: TrackSource, rows: Sequence[int], what: str
) -> dict[int, tuple[float, float]]:
    """Loss and gap by row; a track that could not be read has none."""
    task = DiffusionTask(measured.model, replace(measured.settings, f="loss"), stored=source.stored)
    times = spread(measured.settings.K, TIMESTEPS)
    found: dict[int, tuple[float, float]] = {}
    for batch_rows, batch, infos in prepared(measured, source, rows, task, what):
        with torch.no_grad():
            own = _loss(task, batch, times)
            copies = (_loss(task, _changed(batch, 1), times) + _loss(task, _changed(batch, -1), times)) / 2
        gaps = copies / own.clamp(min=torch.finfo(own.dtype).tiny) - 1
        for row, info, loss, gap in zip(batch_rows, infos, own.tolist(), gaps.tolist(), strict=True):
            if "replaced" not in info:
                found[row] = (loss, gap)
    return found


def _loss(task: DiffusionTask, batch: LatentBatch, times: Sequence[int]) -> Tensor:
    return torch.stack([task.measure(batch, k)[:, 0] for k in times]).mean(0).double().cpu()


def _changed(batch: LatentBatch, sign: int) -> LatentBatch:
    """The latents with noise added or subtracted, the same noise for all tracks."""
    latents = batch.latents
    noise = torch.randn(latents.shape[1:], generator=generator("membership-copy")).to(latents)
    sounding = batch.mask.expand_as(latents)
    size = (latents.square() * sounding).flatten(1).sum(1) / sounding.flatten(1).sum(1).clamp(min=1)
    return replace(batch, latents=latents + sign * CHANGE * size.sqrt()[:, None, None] * noise)
