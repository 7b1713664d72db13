"""A check in figures: as JSON, as lines of text, and as the list of what to leave out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.data.check.kinds import KINDS
from stable_audio_tools.data.check.measure import Measurement
from stable_audio_tools.data.check.problems import Problem
from stable_audio_tools.data.check.run import CheckReport
from stable_audio_tools.data.index import exclude_names
from stable_audio_tools.data.leakage import RULES
from stable_audio_tools.data.paths import append_path_list
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.manifest import installed_versions

_SHOWN = 5


def summary_of(report: CheckReport) -> dict[str, Any]:
    """All figures of the whole dataset; JSON.

    ``problems`` has every one of them. Spreads are minimum, 5th, 50th and 95th percentile and maximum.
    """
    measured = [found.measured for found in report.facts if found.measured is not None]
    return {
        "dataset": report.title,
        "tracks": len(report.index),
        "excluded_before": report.index.excluded,
        "readable": len(measured),
        "hours": round(sum(item.seconds for item in measured) / 3600, 4),
        "gigabytes": round(sum(found.size_bytes for found in report.facts) / 1e9, 4),
        "formats": _counts(item.format for item in measured),
        "sample_rates": _counts(item.sample_rate for item in measured),
        "channels": _counts(item.channels for item in measured),
        "dual_mono": sum(item.dual_mono for item in measured),
        "peaks_over_full_scale": sum((item.peak_dbfs or -1) > 0 for item in measured),
        "with_prompt": sum(bool(known.prompt) for known in report.known),
        "silence_hours": round(sum(item.silence_seconds for item in measured) / 3600, 4),
        "spread": {name: _spread(measured, name) for name in ("seconds", "loudness_lufs", "peak_dbfs")},
        "evaluation_tracks": report.evaluation_tracks,
        "leaks_by_rule": {
            rule: len({leak.row for leak in report.leaks if leak.rule == rule}) for rule in RULES
        },
        "copies": [[report.index[row].sample_id for row in rows] for rows in report.copies],
        "counts": {kind: count for kind in KINDS if (count := _count(report.problems, kind))},
        "to_leave_out": len(report.excluded()),
        "notes": list(report.notes),
        "problems": [asdict(item) for item in report.problems],
        "versions": installed_versions(),
    }


def write_summary(report: CheckReport, path: Path) -> None:
    """Write :func:`summary_of` as JSON, in one step."""
    write_json(path, summary_of(report))


def text_lines(report: CheckReport, shown: int = _SHOWN) -> list[str]:
    """The check as lines for a terminal; of each kind of problem the first ``shown``."""
    facts = summary_of(report)
    before = f", {facts['excluded_before']} more on its exclude list" if facts["excluded_before"] else ""
    lines = [
        f"{report.title}: {facts['tracks']} tracks{before}, {facts['hours']:.2f} hours,"
        f" {facts['gigabytes']:.2f} GB",
        f"  formats       {_listed(facts['formats'])}",
        f"  sample rates  {_listed(facts['sample_rates'], ' Hz')}",
        f"  channels      {_listed(facts['channels'])}"
        + (f", {facts['dual_mono']} with the same on both sides" if facts["dual_mono"] else ""),
        f"  length        {_range(facts['spread']['seconds'], 's')}",
        f"  loudness      {_range(facts['spread']['loudness_lufs'], 'LUFS')}",
        f"  peak          {_range(facts['spread']['peak_dbfs'], 'dBFS')}"
        + (f", {facts['peaks_over_full_scale']} over full scale" if facts["peaks_over_full_scale"] else ""),
        f"  silence       {facts['silence_hours'] * 3600:.0f} s in all",
        f"  prompts       {facts['with_prompt']} of {facts['tracks']}",
    ]
    if facts["evaluation_tracks"] is not None:
        rules = ", ".join(f"{count} by {rule}" for rule, count in facts["leaks_by_rule"].items() if count)
        lines.append(
            f"  leakage       {facts['counts'].get('leak', 0)} tracks are too close to the"
            f" {facts['evaluation_tracks']} of evaluation" + (f": {rules}" if rules else "")
        )
    lines += [*_problem_lines(report.problems, shown), *(f"note: {note}" for note in report.notes)]
    return lines


def _problem_lines(problems: Sequence[Problem], shown: int) -> list[str]:
    if not problems:
        return ["no problems found"]
    lines = ["problems"]
    for kind, about in KINDS.items():
        found = [item for item in problems if item.kind == kind]
        if found:
            out = ", left out by --fix" if about.excluded else ""
            lines.append(f"  {kind}: {len(found)} ({about.meaning}{out})")
            lines += [f"    {printable(item.name)}: {printable(item.detail)}" for item in found[:shown]]
            lines += [f"    and {len(found) - shown} more"] if len(found) > shown else []
    return lines


def printable(name: str) -> str:
    """``name`` on one line: a line break, a control character or a half of a pair is shown by its number."""
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in name)


def write_exclude_list(report: CheckReport, path: Path, also: Sequence[str] = ()) -> int:
    """Add what training should leave out to the exclude list at ``path``; returns how many lines are new.

    What the list held stays as it was. A track is named by its path in its folder where that is the path of
    one track only, and absolutely otherwise; one in a shard by its sample id.
    """
    chosen = report.excluded(also)
    groups: dict[str, list[str]] = {kind: [] for kind in KINDS if kind in chosen.values()}
    for kind, name in zip(chosen.values(), exclude_names(report.index, list(chosen)), strict=True):
        groups[kind].append(name)
    today = datetime.now(timezone.utc).date().isoformat()
    comments = {
        f"{kind}: {KINDS[kind].meaning} (sat data check, {today})": names for kind, names in groups.items()
    }
    return append_path_list(path, comments)


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _count(problems: Sequence[Problem], kind: str) -> int:
    return sum(item.kind == kind for item in problems)


def _spread(measured: Sequence[Measurement], name: str) -> list[float] | None:
    values = [value for item in measured if (value := getattr(item, name)) is not None]
    if not values:
        return None
    return [round(float(value), 2) for value in np.percentile(values, [0, 5, 50, 95, 100])]


def _listed(counts: dict[str, int], unit: str = "") -> str:
    return ", ".join(f"{value}{unit}: {count}" for value, count in counts.items()) or "none"


def _range(spread: list[float] | None, unit: str) -> str:
    if spread is None:
        return "none"
    low, _, middle, _, high = spread
    return f"{low:g} to {high:g} {unit}, half of them above {middle:g}"
