"""The check of a dataset: measure every file, ask what is known of it, compare, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stable_audio_tools.data.check.kinds import KINDS, Thresholds
from stable_audio_tools.data.check.known import Known, known_of_all
from stable_audio_tools.data.check.measure import FileFacts
from stable_audio_tools.data.check.problems import Problem, exact_copies, problems_of
from stable_audio_tools.data.check.survey import survey
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.leakage import (
    RULES,
    Identity,
    Leak,
    artists_near,
    find_leaks,
    identity_of,
)

Checksums = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class CheckReport:
    """What was found. Rows are those of ``index``; ``copies`` are groups of rows of the same audio.

    ``evaluation_tracks`` is None where there is no evaluation to compare with.
    """

    title: str
    index: TrackIndex
    facts: Sequence[FileFacts]
    known: Sequence[Known]
    problems: Sequence[Problem]
    copies: Sequence[Sequence[int]]
    leaks: Sequence[Leak] = ()
    evaluation_tracks: int | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def rows_with(self, kinds: Sequence[str]) -> list[int]:
        """Rows that have a problem of one of ``kinds``, ascending."""
        return sorted({item.row for item in self.problems if item.kind in kinds and item.row is not None})

    def excluded(self, also: Sequence[str] = ()) -> dict[int, str]:
        """The gravest kind by row, of the tracks that training should leave out, or that ``also`` names."""
        order = list(KINDS)
        wanted = {kind for kind, about in KINDS.items() if about.excluded} | set(also)
        found: dict[int, str] = {}
        for item in sorted(self.problems, key=lambda item: order.index(item.kind)):
            if item.row is not None and item.kind in wanted:
                found.setdefault(item.row, item.kind)
        return dict(sorted(found.items()))

    def with_recordings(self, groups: Sequence[Recording]) -> CheckReport:
        """With what a search for altered copies found; it chooses anew which of exact copies stays."""
        judged = {row for group in groups for row in group.rows}
        others = [
            item
            for item in self.problems
            if not (item.kind == "leak" or (item.kind == "duplicate" and item.row in judged))
        ]
        new = [
            Problem("duplicate", self.index[row].sample_id, f"the same recording as {stays}", row)
            for group in groups
            if group.stays is not None
            for stays in [self.index[group.stays].sample_id]
            for row in group.rows
            if row != group.stays
        ]
        heard = [
            Leak(row, "recording", group.evaluation_name, "dedup")
            for group in groups
            if group.evaluation_name is not None
            for row in group.rows
        ]
        together = [*self.copies, *(group.rows for group in groups)]
        leaks = _spread([*self.leaks, *heard], together, "recording")
        found = [*others, *new, *leak_problems(leaks, self.index)]
        return replace(self, problems=_sorted(found), leaks=leaks)


@dataclass(frozen=True)
class Recording:
    """Rows that are one recording: ``stays`` does, unless it is that of an evaluation track, then named."""

    rows: Sequence[int]
    stays: int | None
    evaluation_name: str | None = None


def check_dataset(
    title: str,
    index: TrackIndex,
    output_dir: Path,
    *,
    limits: Thresholds | None = None,
    evaluation: Sequence[Identity] | None = None,
    rules: Sequence[str] = ("track", "bytes", "audio", "artist"),
    checksums: Checksums | None = None,
    num_workers: int | None = None,
) -> CheckReport:
    """Measure and judge every track of ``index``.

    Args:
        title: what reports call the dataset.
        index: its tracks; made with ``on_error="skip"``, it has what cannot be read in it too.
        output_dir: ``files.jsonl`` in it holds the figures of each file, from which a killed check goes on.
        limits: from where on a figure is a fault.
        evaluation: the tracks that must not be trained on.
        rules: what makes a track too close to them, see :data:`stable_audio_tools.data.leakage.RULES`.
        checksums: published SHA-256 by track number.
        num_workers: processes, see :func:`~stable_audio_tools.data.check.survey.survey`.

    Raises:
        DataError: a metadata module cannot be run.
        UsageError: an unknown rule.
    """
    find_leaks([], [], rules)  # an unknown rule is said now and not after hours
    limits = limits or Thresholds()
    facts = survey([track.source for track in index], output_dir / "files.jsonl", num_workers=num_workers)
    known = known_of_all(index, facts)
    problems = [
        problem
        for track, found, about in zip(index, facts, known, strict=True)
        for problem in problems_of(track, found, about, limits)
    ]
    problems += [Problem("unsupported", str(path), _why_unsupported(path)) for path in index.unsupported]
    problems += [Problem("unlisted", str(path), reason) for path, reason in index.unlisted.items()]
    problems += [Problem(*fault) for fault in index.faults]
    copies = exact_copies(index, facts)
    problems += _copy_problems(index, copies, problems)
    leaks: list[Leak] = []
    if evaluation is not None:
        leaks = find_leaks(identities(index, facts, known, checksums), evaluation, rules)
        leaks = _spread(leaks, copies, "audio")
        problems += leak_problems(leaks, index)
    return CheckReport(
        title=title,
        index=index,
        facts=facts,
        known=known,
        problems=_sorted(problems),
        copies=copies,
        leaks=leaks,
        evaluation_tracks=None if evaluation is None else len(evaluation),
    )


def identities(
    index: Sequence[Track],
    facts: Sequence[FileFacts],
    known: Sequence[Known],
    checksums: Checksums | None = None,
) -> list[Identity]:
    """By what each track can be known again."""
    return [
        identity_of(
            track.sample_id,
            f"{track.root.name}/{track.relpath}",
            about.fields,
            sha256=found.sha256,
            audio_sha256=found.measured.audio_sha256 if found.measured else None,
            manifest=checksums,
            artist_ids=artists_near(track.root),
        )
        for track, found, about in zip(index, facts, known, strict=True)
    ]


def _copy_problems(
    index: Sequence[Track], copies: Sequence[Sequence[int]], problems: Sequence[Problem]
) -> list[Problem]:
    """The copies but one of each group: the one with the fewest problems stays, or the first of these."""
    faults = Counter(item.row for item in problems)
    found = []
    for rows in copies:
        stays = min(rows, key=lambda row: (faults[row], row))
        what = f"the same audio as {index[stays].sample_id}"
        found += [Problem("duplicate", index[row].sample_id, what, row) for row in rows if row != stays]
    return found


def _spread(leaks: Sequence[Leak], groups: Sequence[Sequence[int]], rule: str) -> list[Leak]:
    """With a leak for each copy of a track that leaks: what must not be heard, must not be heard there."""
    source = {leak.row: leak.evaluation_name for leak in reversed(leaks)}
    found = list(leaks)
    waiting = [rows for rows in groups if any(row not in source for row in rows)]
    while reached := [rows for rows in waiting if any(row in source for row in rows)]:
        waiting = [rows for rows in waiting if rows not in reached]
        for rows in reached:
            name = next(source[row] for row in rows if row in source)
            found += [Leak(row, rule, name, "a copy of one that is") for row in rows if row not in source]
            source.update({row: name for row in rows if row not in source})
    return found


def leak_problems(leaks: Sequence[Leak], index: Sequence[Track]) -> list[Problem]:
    """One problem for each track that leaks, with every rule that met it."""
    by_row: dict[int, list[Leak]] = {}
    for leak in leaks:
        by_row.setdefault(leak.row, []).append(leak)
    return [
        Problem("leak", index[row].sample_id, "; ".join(_told(leak) for leak in found), row)
        for row, found in by_row.items()
    ]


def _told(leak: Leak) -> str:
    return f"{RULES[leak.rule]} as {leak.evaluation_name} ({leak.evidence[:24]})"


def _why_unsupported(path: Path) -> str:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return f"{path.suffix or 'a file without suffix'} cannot be decoded"


def _sorted(problems: Sequence[Problem]) -> list[Problem]:
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(
        problems, key=lambda item: (order[item.kind], -1 if item.row is None else item.row, item.name)
    )
