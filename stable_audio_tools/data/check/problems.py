"""When a track has which fault."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stable_audio_tools.data.check.kinds import KINDS, Thresholds
from stable_audio_tools.data.check.known import Known
from stable_audio_tools.data.check.measure import FileFacts, Measurement
from stable_audio_tools.data.index import Track

_SOUND_DBFS = -80.0


@dataclass(frozen=True)
class Problem:
    """One fault of one track. ``row`` is its row in the index, None for what never became a track."""

    kind: str
    name: str
    detail: str
    row: int | None = None


def problems_of(track: Track, facts: FileFacts, known: Known, limits: Thresholds) -> list[Problem]:
    """What is wrong with a track by itself, the grave first."""
    found = [*_of_the_file(facts, limits), *(_of_the_text(known) if facts.measured is not None else ())]
    if any(unicodedata.category(sign).startswith("C") and sign != "\u200d" for sign in track.relpath):
        found.append(("odd-name", f"{track.relpath!r}"))
    order = list(KINDS)
    found.sort(key=lambda item: order.index(item[0]))
    return [Problem(kind, track.sample_id, detail, track.index) for kind, detail in found]


def exact_copies(index: Sequence[Track], facts: Sequence[FileFacts]) -> list[list[int]]:
    """Groups of rows whose decoded audio is the same sample by sample, each in ascending order.

    Tracks that hold no sound are in none: all silence is alike, and they are faulty by themselves.
    """
    groups: dict[str, list[int]] = {}
    for track, found in zip(index, facts, strict=True):
        if found.measured is not None and not _is_inaudible(found.measured):
            groups.setdefault(found.measured.audio_sha256, []).append(track.index)
    return [rows for rows in groups.values() if len(rows) > 1]


def _is_inaudible(measured: Measurement) -> bool:
    return measured.rms_dbfs is None or measured.rms_dbfs < _SOUND_DBFS


def _of_the_file(facts: FileFacts, limits: Thresholds) -> list[tuple[str, str]]:
    if facts.measured is None:
        return [("unreadable", facts.error or "cannot be read")]
    found = facts.measured
    result = [(kind, detail) for kind, judge in _JUDGES.items() if (detail := judge(found, limits))]
    if _is_inaudible(found):  # nothing else can be said of silence
        flawed = ("silent", "constant", "short", "long", "unusual-rate", "many-channels", "not-finite")
        result = [(kind, detail) for kind, detail in result if kind in flawed]
    return result


def _of_the_text(known: Known) -> Iterator[tuple[str, str]]:
    if known.error is not None:
        yield "metadata", known.error
    elif known.rejected:
        yield "rejected", "__reject__"
    elif not known.prompt:
        yield "no-caption", known.why_no_prompt


def _silent(found: Measurement, limits: Thresholds) -> str:
    if not _is_inaudible(found) or not (found.peak_dbfs is None or found.peak_dbfs < _SOUND_DBFS):
        return ""
    return "digital silence" if found.peak_dbfs is None else f"peak {found.peak_dbfs} dBFS"


def _constant(found: Measurement, limits: Thresholds) -> str:
    flat = _is_inaudible(found) and found.peak_dbfs is not None and found.peak_dbfs >= _SOUND_DBFS
    return f"{found.dc_offset:+.4f} from start to end" if flat else ""


def _anti_phase(found: Measurement, limits: Thresholds) -> str:
    if found.correlation is None or found.correlation >= limits.min_correlation:
        return ""
    return f"correlation of left and right {found.correlation:.2f}"


def _dead_channel(found: Measurement, limits: Thresholds) -> str:
    return f"{found.silent_channels} of {found.channels} channels" if found.silent_channels else ""


def _clipped(found: Measurement, limits: Thresholds) -> str:
    minutes = max(found.seconds / 60, 1 / 60)
    if found.clipped_runs / minutes < limits.max_clipped_runs_per_minute:
        return ""
    return f"{found.clipped_runs} runs at full scale, the first at {found.first_clip_seconds} s"


def _mostly_silent(found: Measurement, limits: Thresholds) -> str:
    share = found.silence_seconds / max(found.seconds, 1e-9)
    return f"{share:.0%} silence" if share > limits.max_silent_share else ""


def _quiet(found: Measurement, limits: Thresholds) -> str:
    soft = found.loudness_lufs is not None and found.loudness_lufs < limits.min_loudness_lufs
    return f"{found.loudness_lufs} LUFS" if soft else ""


def _unusual_rate(found: Measurement, limits: Thresholds) -> str:
    usual = limits.min_sample_rate <= found.sample_rate <= limits.max_sample_rate
    return "" if usual else f"{found.sample_rate} Hz"


_JUDGES: dict[str, Callable[[Measurement, Thresholds], str]] = {
    "not-finite": lambda found, _: f"{found.not_finite_samples} samples" if found.not_finite_samples else "",
    "silent": _silent,
    "constant": _constant,
    "anti-phase": _anti_phase,
    "dead-channel": _dead_channel,
    "dc-offset": lambda found, limits: (
        f"mean {found.dc_offset:+.4f}" if abs(found.dc_offset) > limits.max_dc_offset else ""
    ),
    "clipped": _clipped,
    "mostly-silent": _mostly_silent,
    "quiet": _quiet,
    "short": lambda found, limits: f"{found.seconds:.2f} s" if found.seconds < limits.min_seconds else "",
    "long": lambda found, limits: (
        f"{found.seconds / 3600:.2f} h" if found.seconds > limits.max_seconds else ""
    ),
    "unusual-rate": _unusual_rate,
    "many-channels": lambda found, _: f"{found.channels} channels" if found.channels > 2 else "",
}
"""What each kind of fault says of a measurement; nothing where it is not there."""
