"""Which seconds of a clip and of a track carry their score.

The measurement is taken over one stretch of the latents at a time, and the scores of stretches add up (the
estimator is linear in the clip and in the track, see
:mod:`~stable_audio_tools.attribution.scoring.sample_space`).
It is the place in the network's output whose gradient counts, not what is heard there: attention mixes the
whole input into every stretch, so this is an approximation of where the influence sits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.scoring.sample_space import SampleSpace


@dataclass(frozen=True)
class SegmentScores:
    """Scores (S, T) of each stretch of a clip with each stretch of a track.

    Signed so that what is positive adds to the whole; ``clip_seconds`` and ``track_seconds`` are the ends of
    the stretches in their files, S + 1 and T + 1 of them.
    """

    scores: Tensor
    clip_seconds: tuple[float, ...]
    track_seconds: tuple[float, ...]

    def of_clip(self) -> list[float]:
        """Each stretch of the clip, over the size of the largest."""
        return _relative(self.scores.sum(1))

    def of_track(self) -> list[float]:
        """Each stretch of the track, over the size of the largest."""
        return _relative(self.scores.sum(0))


def segment_scores(
    space: SampleSpace,
    clips: FeatureStore,
    tracks: FeatureStore,
    pairs: Mapping[tuple[int, int], tuple[Mapping[str, Any], Mapping[str, Any]]],
    segments: int,
    window_seconds: float,
) -> dict[tuple[int, int], SegmentScores]:
    """The scores between stretches of each pair.

    Args:
        clips: rows of :func:`~stable_audio_tools.attribution.features.parts.segment_rows`.
        tracks: likewise.
        pairs: by place of the clip and of the track in those stores, what they are.
        window_seconds: what the model takes.
    """
    clip_cross, track_cross = space.cross(clips)[0], space.cross(tracks)[0]
    clip_rows, track_rows = space.rows(clips), space.rows(tracks)
    found = {}
    for (clip, track), (clip_record, track_record) in pairs.items():
        own = slice(clip * segments, (clip + 1) * segments)
        other = slice(track * segments, (track + 1) * segments)
        scores = space.between_parts(clip_rows[own], track_rows[other], clip_cross[own], track_cross[other])
        if scores.sum() < 0:  # the sign of a norm's gradient means nothing; of a loss it is the direction
            scores = -scores
        found[clip, track] = SegmentScores(
            scores, ends(clip_record, segments, window_seconds), ends(track_record, segments, window_seconds)
        )
    return found


def ends(record: Mapping[str, Any], segments: int, window_seconds: float) -> tuple[float, ...]:
    """Where stretches begin and end in a file, in seconds: of the part of it that the model was given."""
    begin, length = heard(record, window_seconds)
    return tuple(begin + length * s / segments for s in range(segments + 1))


def heard(record: Mapping[str, Any], window_seconds: float) -> tuple[float, float]:
    """Where the part of a file begins that the model was given, and its length, in seconds."""
    begin = float(record.get("offset_seconds") or 0.0)
    whole = record.get("duration_seconds")
    length = window_seconds if whole is None else min(window_seconds, max(0.0, float(whole) - begin))
    return begin, length or window_seconds


def _relative(values: Tensor) -> list[float]:
    largest = float(values.abs().max())
    return torch.zeros_like(values).tolist() if largest == 0 else (values / largest).tolist()


def places(rows: Sequence[int]) -> dict[int, int]:
    """Where each of ``rows`` is among them."""
    return {row: place for place, row in enumerate(rows)}
