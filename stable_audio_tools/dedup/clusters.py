"""Groups of tracks that are one recording, and which track of a group stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEEP_RULE = (
    "none beside an evaluation track; else of the tracks within 0.5 s of the longest, silence at the ends not"
    " counted, the highest sample rate up to 44.1 kHz, then a lossless one, then the highest bit rate, then"
    " the licence that allows most, then the smallest sample id"
)
"""What :func:`choose_kept` does, in words, for the summary."""

_AS_LONG_SECONDS = 0.5
"""An encoder pads up to 0.1 s (two MP3 frames and its delay), and fades end where its noise begins."""

_FULL_RATE = 44_100
"""Hz; above it there is nothing more to hear, and a lossless copy may have been made from a lossy one."""

_SAME_BIT_RATE = 1.02
"""Tags and covers count as bytes: bit rates this close are one."""

LICENSE_ORDER = ("by", "by-sa", "lal", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd")
"""Licence codes from the one that allows most; any other, and none, come last."""


@dataclass(frozen=True)
class Member:
    """What the keep rule looks at.

    ``sounding_seconds`` is the duration without silence at the ends; ``license`` a code of
    :data:`LICENSE_ORDER`, or empty.
    """

    sample_id: str
    duration_seconds: float
    sounding_seconds: float
    size_bytes: int
    lossless: bool = False
    sample_rate: int = 0
    license: str = ""
    evaluation: bool = False

    @property
    def bits_per_second(self) -> float:
        return 8.0 * self.size_bytes / max(self.duration_seconds, 1e-3)


def connected_groups(count: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected components with two or more of ``count`` nodes, by union-find.

    Members and groups are in ascending order, whatever the order of the edges.
    """
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for node in range(count):
        groups.setdefault(root(node), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def choose_kept(members: Sequence[Member]) -> int:
    """The position in ``members`` of the track to keep, by :data:`KEEP_RULE`; their order does not matter.

    Where one of them is an evaluation track that one is chosen, and so nothing of the group is trained on.
    """
    seen = [i for i, member in enumerate(members) if member.evaluation]
    if seen:
        return min(seen, key=lambda i: members[i].sample_id)
    longest = max(member.sounding_seconds for member in members)
    left = [i for i, member in enumerate(members) if member.sounding_seconds >= longest - _AS_LONG_SECONDS]
    highest = max(_useful_rate(members[i]) for i in left)
    left = [i for i in left if _useful_rate(members[i]) == highest]
    left = [i for i in left if members[i].lossless] or left
    densest = max(members[i].bits_per_second for i in left)
    left = [i for i in left if members[i].bits_per_second * _SAME_BIT_RATE >= densest]
    return min(left, key=lambda i: (_license_rank(members[i].license), members[i].sample_id))


def _useful_rate(member: Member) -> int:
    return min(member.sample_rate, _FULL_RATE)


def _license_rank(code: str) -> int:
    return LICENSE_ORDER.index(code) if code in LICENSE_ORDER else len(LICENSE_ORDER)
