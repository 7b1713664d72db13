"""What faults are called, and from where on a figure is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A sort of fault: what it means, and whether such a track goes on the exclude list unasked."""

    meaning: str
    excluded: bool = False


KINDS: dict[str, Kind] = {
    "unreadable": Kind("cannot be decoded", excluded=True),
    "not-finite": Kind("holds samples that are not numbers", excluded=True),
    "silent": Kind("holds no sound above -80 dBFS", excluded=True),
    "constant": Kind("holds a constant offset and no sound", excluded=True),
    "leak": Kind("is in the evaluation set, or too close to it", excluded=True),
    "duplicate": Kind("is a copy of a track that stays", excluded=True),
    "rejected": Kind("is turned away by the metadata function"),
    "metadata": Kind("makes the metadata fail"),
    "no-caption": Kind("has no prompt"),
    "unsupported": Kind("is a recording of a format or name that cannot be read, and is left out"),
    "unlisted": Kind("is a folder that may not be looked into"),
    "broken-shard": Kind("is a tar file that is damaged or cut off: what is before that is used"),
    "no-recording": Kind("is a sample of a shard without a recording, and is left out"),
    "anti-phase": Kind("cancels out in the mono mix"),
    "dead-channel": Kind("has a channel without sound"),
    "dc-offset": Kind("is shifted away from zero"),
    "clipped": Kind("stands still at full scale again and again"),
    "mostly-silent": Kind("is silence for the most part"),
    "quiet": Kind("is very soft"),
    "short": Kind("is very short"),
    "long": Kind("is very long"),
    "unusual-rate": Kind("has a sample rate that music seldom has"),
    "many-channels": Kind("has more than two channels, of which training hears the first two"),
    "odd-name": Kind("has a line break or another control character in its name"),
}
"""Every kind of fault, the grave ones first."""


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text, "panel": "From where on it is a fault"})


@dataclass(frozen=True)
class Thresholds:
    """From where on a figure is a fault."""

    min_seconds: float = _limit(1.0, "Shorter tracks are `short`.")
    max_seconds: float = _limit(3600.0, "Longer tracks are `long`.")
    min_loudness_lufs: float = _limit(-45.0, "Softer tracks are `quiet`.")
    max_silent_share: float = _limit(0.5, "Share below -60 dBFS from which a track is `mostly-silent`.")
    max_dc_offset: float = _limit(0.01, "Mean of a channel that is a `dc-offset`.")
    min_correlation: float = _limit(-0.9, "Of left and right; below it a track is `anti-phase`.")
    max_clipped_runs_per_minute: float = _limit(10.0, "Runs at full scale from which a track is `clipped`.")
    min_sample_rate: int = _limit(22050, "Hz; lower is an `unusual-rate`.")
    max_sample_rate: int = _limit(96000, "Hz; higher is an `unusual-rate`.")
