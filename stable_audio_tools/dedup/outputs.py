"""The files a dedup run leaves: the exclude list, the evidence, what failed, and the summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import Track
from stable_audio_tools.data.paths import write_path_list
from stable_audio_tools.dedup.clusters import KEEP_RULE
from stable_audio_tools.dedup.verify import Alignment
from stable_audio_tools.runtime.files import atomic_path, write_json
from stable_audio_tools.runtime.manifest import installed_versions


@dataclass(frozen=True)
class Pair:
    """Two tracks and the evidence about them; ``a`` and ``b`` are positions in the index, ``a < b``."""

    a: int
    b: int
    similarity: float
    identical_bytes: bool
    alignment: Alignment | None
    duplicate: bool


@dataclass(frozen=True)
class DedupSummary:
    """What a run found.

    ``groups``, ``excluded`` and the keys of ``flagged`` are sample ids, the keys of ``failed`` paths;
    ``flagged`` says why a track has nothing to compare, ``failed`` why it could not be read.
    ``content_sha256`` is over all sample ids with the hashes of their files.
    """

    tracks: int
    candidates: int
    duplicate_pairs: int
    groups: list[list[str]]
    excluded: list[str]
    flagged: dict[str, str]
    failed: dict[str, str]
    settings: dict[str, Any]
    content_sha256: str
    wall_seconds: float


def write_outputs(
    output_dir: Path,
    index: Sequence[Track],
    summary: DedupSummary,
    pairs: Sequence[Pair],
    kept: Mapping[int, int],
) -> None:
    """Write all files into ``output_dir``; ``kept`` maps each member of a group to the one that stays."""
    with (
        atomic_path(output_dir / "similar_pairs.jsonl") as temporary,
        open(temporary, "w", encoding="ascii") as out,
    ):
        for pair in pairs:
            out.write(json.dumps(_pair_record(pair, index, kept)) + "\n")
    write_json(
        output_dir / "failed_files.json",
        [{"file": path, "error": error} for path, error in summary.failed.items()],
    )
    _write_exclude_list(
        output_dir / "exclude_paths.txt", index, [i for i in sorted(kept) if kept[i] != i], summary
    )
    write_json(output_dir / "summary.json", {**asdict(summary), "versions": installed_versions()})


def _pair_record(pair: Pair, index: Sequence[Track], kept: Mapping[int, int]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "a": index[pair.a].sample_id,
        "b": index[pair.b].sample_id,
        "a_path": str(index[pair.a].path),
        "b_path": str(index[pair.b].path),
        "similarity": pair.similarity,
        "identical_bytes": pair.identical_bytes,
        **(asdict(pair.alignment) if pair.alignment else {}),
        "duplicate": pair.duplicate,
    }
    if pair.duplicate:
        record["kept"] = index[kept[pair.a]].sample_id
        record["excluded"] = [index[i].sample_id for i in (pair.a, pair.b) if kept[i] != i]
    return record


def _write_exclude_list(
    path: Path, index: Sequence[Track], positions: Sequence[int], summary: DedupSummary
) -> None:
    """One path a line: relative to its dataset's folder where that names one track only, else absolute."""
    users = Counter(item.relpath for item in index)
    settings = summary.settings
    write_path_list(
        path,
        [
            index[i].relpath if users[index[i].relpath] == 1 else str(index[i].path.absolute())
            for i in positions
        ],
        comments=(
            f"{len(positions)} duplicates of {summary.tracks} tracks; kept of each group: {KEEP_RULE}",
            f"{settings['histogram_mode']} histograms from cosine {settings['similarity_threshold']} on, "
            f"verified: {settings['verify']}; the evidence is in similar_pairs.jsonl",
        ),
    )
