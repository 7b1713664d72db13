"""Everything a report says beyond the scores: intervals, verdicts, warnings, membership, stretches."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.evidence.confidence import (
    BLOCKS,
    RESAMPLES,
    STANDS_OUT,
    Resampled,
    Standout,
    null_evidence,
    resample,
    standouts,
)
from stable_audio_tools.attribution.evidence.hubs import Health, score_health
from stable_audio_tools.attribution.evidence.membership import MembershipResult, membership
from stable_audio_tools.attribution.evidence.segments import SegmentScores, places, segment_scores
from stable_audio_tools.attribution.features.parts import Measured, segment_rows, timestep_rows
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.queries import TrackSource, train_source
from stable_audio_tools.attribution.scoring.groups import Groups, all_groups, related
from stable_audio_tools.attribution.scoring.ranking import Records, order
from stable_audio_tools.attribution.scoring.sample_space import LINEAR_METHODS, MOST_TRACKS, SampleSpace
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, latent_cosine
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import hash_json
from stable_audio_tools.runtime.progress import say, track
from stable_audio_tools.runtime.seeds import generator

SEGMENT_TIMESTEPS = 3
"""Timesteps at which stretches are measured: where the score sits shows with a few."""

_MATCHED_FROM = 10
"""The track for comparison is one of this many that are closest in similarity to the first track."""

CLIPS_AT_ONCE = 64
"""Clips whose intervals are taken in one pass over the tracks' rows."""


def _flag(default: Any, text: str) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text, "panel": "Report"})


@dataclass(frozen=True)
class ReportSettings:
    """How much a report looks at.

    Raises:
        UsageError: a value is out of range; the message names the setting.
    """

    report_top: int = _flag(5, "Tracks beside each clip on the page.")
    export_top: int = _flag(50, "Tracks of each clip in the export.")
    segments: int = _flag(8, "Stretches of time that scores are split into; 0 leaves them out.")
    segment_tracks: int = _flag(3, "First tracks of each clip that are split so.")
    resamples: int = _flag(RESAMPLES, "Resamples behind the intervals; 0 leaves them out.")
    dedup: str | None = _flag(None, "Folder or summary.json of `sat dedup`: sums over its duplicates too.")
    membership_reference: str | None = _flag(
        None, "Dataset config of tracks known to be outside of the training set: validates membership."
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("report_top", 1),
            ("export_top", 1),
            ("segment_tracks", 1),
            ("segments", 0),
            ("resamples", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if self.segments == 1 or 0 < self.resamples < 40:
            raise UsageError(
                "segments must be 0 or 2 and more, and resamples 0 or 40 and more,"
                f" found {self.segments} and {self.resamples}"
            )


@dataclass
class Evidence:
    """What is known of the scores (Q, N). Rows of ``tracks`` are columns of ``scores``.

    ``resampled`` and ``standouts`` are empty where the method gives none; ``notes`` says why.
    ``artist_standouts`` are empty where no artist is known, too.
    """

    scores: Tensor
    rank_by: str
    clips: Records
    tracks: Records
    similarity: Tensor
    groups: list[Groups]
    health: Health
    matched: list[int | None]
    resampled: list[Resampled] = field(default_factory=list)
    standouts: list[Standout] = field(default_factory=list)
    artist_standouts: list[Standout] = field(default_factory=list)
    null_size: int = 0
    membership: MembershipResult | None = None
    segments: dict[tuple[int, int], SegmentScores] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def artists(self) -> Groups:
        """The tracks by artist."""
        return next(groups for groups in self.groups if groups.key == "artist")

    def artist_standing_out(self, clip: int) -> str | None:
        """The artist whose tracks together stand out for a clip."""
        if not self.artist_standouts or self.artist_standouts[clip].verdict != STANDS_OUT:
            return None
        return self.artists.names[self.artist_standouts[clip].place]

    def ranked(self, clip: int) -> list[int]:
        """Tracks of a clip from first to last."""
        return [int(n) for n in order(self.scores[clip : clip + 1], self.rank_by)[0]]


@dataclass(frozen=True)
class Asked:
    """The finished features of a run and where its parts go."""

    folder: Path
    train: FeatureStore
    queries: FeatureStore
    measured: Measured
    train_source: TrackSource
    query_source: TrackSource


def gather(
    asked: Asked,
    scores: Tensor,
    kept: Sequence[int],
    tracks: Records,
    score_settings: ScoreSettings,
    rank_by: str,
    settings: ReportSettings,
) -> Evidence:
    """Look at the scores (Q, N) from all sides.

    Args:
        kept: the rows of the training store that the columns of ``scores`` are.
        tracks: what they are.
    """
    similarity = latent_cosine(asked.train, asked.queries, score_settings)[:, list(kept)]
    evidence = Evidence(
        scores,
        rank_by,
        asked.queries.records(),
        tracks,
        similarity,
        all_groups(tracks),
        score_health(scores, rank_by),
        matched_tracks(
            scores, similarity, tracks, rank_by, settings.report_top, asked.measured.settings.seed
        ),
    )
    space = _space(asked, kept, score_settings, evidence)
    if space is not None:
        _judge(evidence, space)
        if settings.resamples:
            _resample(asked, evidence, space, settings)
    _membership(asked, evidence, kept, settings)
    if space is not None and settings.segments and space.regularisation > 0:
        _segment(asked, evidence, space, kept, settings)
    return evidence


def matched_tracks(
    scores: Tensor, similarity: Tensor, tracks: Records, rank_by: str, top: int, seed: int
) -> list[int | None]:
    """For each clip a track to compare with, drawn from those as similar to the clip as its first track.

    It is not one of the tracks shown, nor related to the first one; None where nothing is left.
    """
    member = related(tracks)
    chosen: list[int | None] = []
    for clip, ranked in enumerate(order(scores, rank_by).tolist()):
        first, shown = ranked[0], set(ranked[:top])
        left = [n for n in ranked if n not in shown and member[n] != member[first]]
        left = left or [n for n in ranked if n not in shown]
        left.sort(key=lambda n: abs(float(similarity[clip, n] - similarity[clip, first])))
        draw = torch.randint(
            min(len(left), _MATCHED_FROM) or 1, (), generator=generator("attribution-matched", seed, clip)
        )
        chosen.append(left[int(draw)] if left else None)
    return chosen


def _space(
    asked: Asked, kept: Sequence[int], settings: ScoreSettings, evidence: Evidence
) -> SampleSpace | None:
    if settings.method not in LINEAR_METHODS:
        evidence.notes.append(f"Method {settings.method!r} gives no intervals and no verdict.")
    elif len(kept) > MOST_TRACKS:
        evidence.notes.append(f"Over {MOST_TRACKS} tracks there are no intervals and no verdict.")
    elif len(kept) < 2:
        evidence.notes.append("One track cannot be ranked: there are no intervals and no verdict.")
    else:
        return SampleSpace(asked.train, list(kept), settings, asked.measured.device)
    return None


def _judge(evidence: Evidence, space: SampleSpace) -> None:
    """Whether a track, and whether an artist, stands out for each clip."""
    member = related(evidence.tracks)
    if 2 * int(torch.bincount(member).max()) > len(member):
        # one artist has most of the tracks: without them there is nothing to compare with
        member = related([{"cluster": track.get("cluster")} for track in evidence.tracks])
        evidence.notes.append(
            "Most tracks are by one artist, so the null leaves out a track and its duplicates only."
        )
    left_out, rank_by = space.scores_left_out(member), evidence.rank_by
    null = null_evidence(left_out, rank_by)
    evidence.null_size = len(null)
    evidence.standouts = standouts(evidence.scores, null, rank_by)
    if evidence.artists.known:
        null = null_evidence(left_out, rank_by, evidence.artists)
        evidence.artist_standouts = standouts(evidence.scores, null, rank_by, evidence.artists)


def _resample(asked: Asked, evidence: Evidence, space: SampleSpace, settings: ReportSettings) -> None:
    parts = timestep_rows(asked.measured, asked.query_source, asked.folder / "query_timesteps")
    K = asked.measured.settings.K
    seed = asked.measured.settings.seed
    for start in track(range(0, len(evidence.clips), CLIPS_AT_ONCE), "intervals"):
        clips = range(start, min(start + CLIPS_AT_ONCE, len(evidence.clips)))
        rows = slice(clips.start * K, clips.stop * K)
        scores = space.scores(space.cross(parts, BLOCKS, rows=rows)).unflatten(1, (len(clips), K))
        evidence.resampled += [
            resample(
                scores[:, place],
                evidence.scores[clip].double(),
                evidence.groups,
                evidence.rank_by,
                seed,
                str(evidence.clips[clip]["sample_id"]),
                settings.resamples,
            )
            for place, clip in enumerate(clips)
        ]


def _segment(
    asked: Asked, evidence: Evidence, space: SampleSpace, kept: Sequence[int], settings: ReportSettings
) -> None:
    shown_tracks = min(settings.segment_tracks, settings.report_top)
    firsts = {clip: evidence.ranked(clip)[:shown_tracks] for clip in range(len(evidence.clips))}
    columns = sorted({n for shown in firsts.values() for n in shown})
    jobs = (
        ("clips", asked.query_source, list(firsts)),
        ("tracks", asked.train_source, [kept[n] for n in columns]),
    )
    stores = []
    for name, source, rows in jobs:
        key = hash_json([rows, settings.segments, asked.measured.stamp, source.stamp()])[:12]
        folder = asked.folder / "segments" / f"{name}-{key}"
        for old in set(folder.parent.glob(f"{name}-*")) - {folder}:  # of a ranking that is no more
            shutil.rmtree(old)
        stores.append(
            segment_rows(asked.measured, source, rows, settings.segments, SEGMENT_TIMESTEPS, folder)
        )
    place = places(columns)
    pairs = {
        (q, place[n]): (evidence.clips[q], evidence.tracks[n]) for q, shown in firsts.items() for n in shown
    }
    window = asked.measured.model.config.sample_size / asked.measured.model.config.sample_rate
    found = segment_scores(space, stores[0], stores[1], pairs, settings.segments, window)
    evidence.segments = {(q, columns[p]): scores for (q, p), scores in found.items()}


def _membership(asked: Asked, evidence: Evidence, kept: Sequence[int], settings: ReportSettings) -> None:
    wanted: dict[int, int] = {}
    for clip in range(len(evidence.clips)):
        shown = [*evidence.ranked(clip)[: settings.report_top], evidence.matched[clip]]
        wanted.update({kept[n]: n for n in shown if n is not None})
    path = settings.membership_reference
    result = membership(
        asked.measured, asked.train_source, sorted(wanted), None if path is None else train_source(path)
    )
    tracks = {wanted[row]: figures for row, figures in result.tracks.items()}
    evidence.membership = MembershipResult(
        tracks, result.references, result.auc, result.auc_low, result.auc_high
    )
    if result.auc is not None:
        say(f"membership tells training tracks from {result.references} references with AUC {result.auc:.2f}")
