"""The files a dedup run leaves: the exclude list, the evidence, what failed, and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import Track, exclude_names
from stable_audio_tools.data.paths import write_path_list
from stable_audio_tools.dedup.clusters import KEEP_RULE
from stable_audio_tools.dedup.matching import Pair
from stable_audio_tools.runtime.files import atomic_path, write_json
from stable_audio_tools.runtime.manifest import installed_versions


@dataclass(frozen=True)
class DedupSummary:
    """What a run found.

    ``groups``, ``excluded`` and the keys of ``flagged`` are sample ids, the keys of ``failed`` paths;
    ``flagged`` says why a track has nothing to compare, ``failed`` why it could not be read.
    ``evaluation_twins`` names for each track that is excluded because of it an evaluation track of its group.
    ``content_sha256`` is over all sample ids with the hashes of their files.
    """

    tracks: int
    candidates: int
    duplicate_pairs: int
    exact_copies: int
    groups: list[list[str]]
    excluded: list[str]
    evaluation_tracks: int
    evaluation_twins: dict[str, str]
    flagged: dict[str, str]
    failed: dict[str, str]
    settings: dict[str, Any]
    content_sha256: str
    wall_seconds: float


def write_outputs(
    output_dir: Path,
    tracks: Sequence[Track],
    excluded: Sequence[int],
    summary: DedupSummary,
    pairs: Sequence[Pair],
    kept: Mapping[int, int],
) -> None:
    """Write all files but the page into ``output_dir``.

    Args:
        tracks: the dataset, and after it the evaluation tracks.
        excluded: positions of the tracks to leave out of training.
        kept: maps each member of a group to the one that stays.
    """
    with (
        atomic_path(output_dir / "similar_pairs.jsonl") as temporary,
        open(temporary, "w", encoding="ascii") as out,
    ):
        for pair in pairs:
            out.write(json.dumps(pair_record(pair, tracks, kept)) + "\n")
    write_json(
        output_dir / "failed_files.json",
        [{"file": path, "error": error} for path, error in summary.failed.items()],
    )
    _write_exclude_list(output_dir / "exclude_paths.txt", tracks[: summary.tracks], excluded, summary)
    write_json(output_dir / "summary.json", {**asdict(summary), "versions": installed_versions()})


def pair_record(pair: Pair, tracks: Sequence[Track], kept: Mapping[int, int]) -> dict[str, Any]:
    """One line of ``similar_pairs.jsonl``."""
    record: dict[str, Any] = {
        "a": tracks[pair.a].sample_id,
        "b": tracks[pair.b].sample_id,
        "a_path": tracks[pair.a].place,
        "b_path": tracks[pair.b].place,
        "similarity": pair.similarity,
        "votes": pair.votes,
        "identical_bytes": pair.identical_bytes,
        "identical_audio": pair.identical_audio,
        **_rounded(pair),
        "duplicate": pair.duplicate,
    }
    if pair.duplicate:
        record["kept"] = tracks[kept[pair.a]].sample_id
        record["excluded"] = [tracks[i].sample_id for i in (pair.a, pair.b) if kept[i] != i]
    return record


def _rounded(pair: Pair) -> dict[str, float]:
    if pair.alignment is None:
        return {}
    return {name: round(value, 4) for name, value in asdict(pair.alignment).items()}


def _write_exclude_list(
    path: Path, index: Sequence[Track], positions: Sequence[int], summary: DedupSummary
) -> None:
    """One track a line: its path from its dataset's folder where that names one track only, else absolute.

    One in a shard is named by its sample id.
    """
    settings = summary.settings
    how = (
        f"{settings['histogram_mode']} histograms from cosine {settings['similarity_threshold']} on"
        if settings["model_path"] is not None
        else "no code histograms"
    )
    write_path_list(
        path,
        exclude_names(index, positions),
        comments=(
            f"{len(positions)} duplicates of {summary.tracks} tracks; kept of each group: {KEEP_RULE}",
            f"{how}, verified: {settings['verify']}; the evidence is in similar_pairs.jsonl and pairs.html",
        ),
    )
