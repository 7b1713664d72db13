"""Groups of tracks that are one recording, and which track of a group stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEEP_RULE = "of the tracks within 0.2 s of the longest, the highest bit rate, then the smallest sample id"
"""What :func:`choose_kept` does, in words, for the summary."""

_AS_LONG_SECONDS = 0.2
"""An encoder pads up to 0.1 s (two MP3 frames and its delay); that does not make a copy the longer one."""


@dataclass(frozen=True)
class Member:
    """What the keep rule looks at."""

    sample_id: str
    duration_seconds: float
    size_bytes: int

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
    """The position in ``members`` of the track to keep, by :data:`KEEP_RULE`; their order does not matter."""
    longest = max(member.duration_seconds for member in members)
    as_long = [i for i, member in enumerate(members) if member.duration_seconds >= longest - _AS_LONG_SECONDS]
    return min(as_long, key=lambda i: (-members[i].bits_per_second, members[i].sample_id))
