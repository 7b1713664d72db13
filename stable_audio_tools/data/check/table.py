"""The check of a table of tracks, before any audio is there: what leaks, and what it lists twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stable_audio_tools.data.leakage import RULES, Identity, Leak, find_leaks, read_table
from stable_audio_tools.data.paths import append_path_list

_SHOWN = 5


@dataclass(frozen=True)
class TableReport:
    """``twins`` are groups of rows of the same file byte for byte: the first stays, or none if one leaks."""

    title: str
    tracks: Sequence[Identity]
    evaluation_tracks: int
    leaks: Sequence[Leak]
    twins: Sequence[Sequence[int]]

    @property
    def leaking(self) -> set[int]:
        """Rows that are too close to the evaluation."""
        return {leak.row for leak in self.leaks}

    @property
    def excluded(self) -> dict[int, str]:
        """``leak`` or ``duplicate`` by row, of the tracks to leave out, ascending."""
        out = dict.fromkeys(self.leaking, "leak")
        for rows in self.twins:
            leaks = any(row in out for row in rows)
            out.update(dict.fromkeys(rows, "leak") if leaks else dict.fromkeys(rows[1:], "duplicate"))
        return dict(sorted(out.items()))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "table": self.title,
            "tracks": len(self.tracks),
            "evaluation_tracks": self.evaluation_tracks,
            "leaks_by_rule": _by_rule(self.leaks),
            "twins": [[self.tracks[row].name for row in rows] for rows in self.twins],
            "to_leave_out": len(self.excluded),
            "leaks": [{"name": self.tracks[leak.row].name, **asdict(leak)} for leak in self.leaks],
        }


def check_table(
    path: Path, evaluation: Sequence[Identity], rules: Sequence[str], checksums: Mapping[str, frozenset[str]]
) -> TableReport:
    """Compare the tracks of a table with the evaluation and, where checksums are known, with each other.

    Raises:
        DataError: the table cannot be read.
        UsageError: an unknown rule.
    """
    tracks = read_table(path, checksums)
    owners: dict[str, list[int]] = {}
    for row, identity in enumerate(tracks):
        for digest in identity.sha256:
            owners.setdefault(digest, []).append(row)
    groups = sorted({tuple(rows) for rows in owners.values() if len(rows) > 1})
    return TableReport(str(path), tracks, len(evaluation), find_leaks(tracks, evaluation, rules), groups)


def table_lines(report: TableReport) -> list[str]:
    """The report as lines for a terminal."""
    lines = [f"{report.title}: {len(report.tracks)} tracks, known by their table only"]
    members = sum(map(len, report.twins))
    lines.append(f"  the same file twice  {len(report.twins)} groups of {members} tracks")
    if report.evaluation_tracks:
        lines.append(
            f"  leakage              {len(report.leaking)} tracks are too close to the"
            f" {report.evaluation_tracks} of evaluation"
        )
    said: set[int] = set()
    for rule, count in _by_rule(report.leaks).items():
        found = [leak for leak in report.leaks if leak.rule == rule]
        new = [leak for leak in found if leak.row not in said]
        said.update(leak.row for leak in new)
        besides = f", {len(new)} of them by no rule above" if len(new) < count else ""
        lines.append(f"  by {rule}: {count}{besides} ({RULES[rule]})")
        lines += [f"    {report.tracks[leak.row].name} as {leak.evaluation_name}" for leak in new[:_SHOWN]]
        lines += [f"    and {len(new) - _SHOWN} more"] if len(new) > _SHOWN else []
    lines.append(
        f"to leave out: {len(report.excluded)}, which leaves {len(report.tracks) - len(report.excluded)}"
    )
    return lines


def write_table_exclude_list(report: TableReport, path: Path) -> int:
    """Add what must be left out to the list at ``path``; returns how many lines are new.

    A track of MTG-Jamendo is named as the recording and as its smaller copy, ``NN/id.low.mp3``.
    """
    groups: dict[str, list[str]] = {}
    for row, kind in report.excluded.items():
        name = PurePosixPath(report.tracks[row].name)
        groups.setdefault(kind, []).append(str(name))
        if report.tracks[row].track_id is not None and not name.stem.endswith(".low"):
            groups[kind].append(str(name.with_suffix(f".low{name.suffix}")))
    return append_path_list(path, {f"{kind}, of {report.title}": names for kind, names in groups.items()})


def _by_rule(leaks: Sequence[Leak]) -> dict[str, int]:
    counts = {rule: len({leak.row for leak in leaks if leak.rule == rule}) for rule in RULES}
    return {rule: count for rule, count in counts.items() if count}
