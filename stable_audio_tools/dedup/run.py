"""The dedup job: a dataset in; an exclude list, the evidence, a page and a summary out.

Every file is heard once (:mod:`stable_audio_tools.dedup.hearing`). Pairs become candidates by the landmarks
they share in order, which finds excerpts, other encodings, other speeds and pitches, and by their histograms
of DAC codes (see :class:`~stable_audio_tools.dedup.settings.DedupSettings` for what the threshold means).
Candidates are then laid over each other (:mod:`stable_audio_tools.dedup.verify`), and only those that agree
there are called one recording, so a low threshold costs time, not tracks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stable_audio_tools.data.index import Track
from stable_audio_tools.dedup.clusters import KEEP_RULE, Member, choose_kept, connected_groups
from stable_audio_tools.dedup.fingerprints import DacFingerprinter
from stable_audio_tools.dedup.hearing import Cache, Heard, hear_all
from stable_audio_tools.dedup.matching import Pair, find_pairs
from stable_audio_tools.dedup.outputs import DedupSummary, write_outputs
from stable_audio_tools.dedup.page import write_page
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import hash_json
from stable_audio_tools.runtime.progress import say

DEFAULT_OUTPUT_DIR = "outputs/dac_dedup"


def run_dedup(
    index: Sequence[Track],
    output_dir: str | Path = DEFAULT_OUTPUT_DIR,
    settings: DedupSettings | None = None,
    *,
    evaluation: Sequence[Track] = (),
    licenses: Mapping[str, str] | None = None,
) -> DedupSummary:
    """Find the duplicates of a dataset and write which tracks to leave out of training.

    Writes into ``output_dir``: ``exclude_paths.txt`` (what a dataset config's ``exclude_paths_file`` points
    at), ``similar_pairs.jsonl`` (every candidate pair with its evidence), ``pairs.html`` (pairs to listen
    to), ``failed_files.json``, ``summary.json``, and what was heard, by content, so that a run that was
    killed goes on where it stopped.

    Args:
        index: the tracks, ``TrackIndex.from_config(config, apply_excludes=False)``: an older exclude list
            must not hide a track from the search that makes the next one.
        evaluation: tracks that training must not hear. They are searched with the others; a track that is the
            same recording as one of them is excluded, and nothing is kept of its group.
        licenses: the licence code of tracks by sample id, see
            :data:`~stable_audio_tools.dedup.clusters.LICENSE_ORDER`.

    Raises:
        CheckpointError: there is no DAC at the ``model_path`` of the settings.
        DataError: not one track could be read.
    """
    settings = settings or DedupSettings()
    resolve_device(settings.similarity_device)
    output_dir = Path(output_dir)
    started = time.monotonic()
    codec = _codec(settings)
    cache = Cache(output_dir)
    tracks = [*index, *evaluation]
    names = [f"{'evaluation: ' * (i >= len(index))}{item.sample_id}" for i, item in enumerate(tracks)]
    heard, failed = hear_all(tracks, cache, settings, codec)
    if not any(i < len(index) for i in heard):
        why = next(iter(failed.values()), "the index is empty")
        raise DataError(f"none of the {len(index)} tracks could be read: {why}")
    pairs = find_pairs(heard, names, cache, settings)
    groups, kept = _groups(tracks, len(index), heard, pairs, licenses or {})
    excluded = [i for i in sorted(kept) if i < len(index) and kept[i] != i]
    summary = DedupSummary(
        tracks=len(index),
        candidates=len(pairs),
        duplicate_pairs=sum(pair.duplicate for pair in pairs),
        exact_copies=sum(pair.identical_audio for pair in pairs),
        groups=[[names[i] for i in group] for group in groups],
        excluded=[names[i] for i in excluded],
        evaluation_tracks=len(evaluation),
        evaluation_twins={names[i]: names[kept[i]] for i in excluded if kept[i] >= len(index)},
        flagged={names[i]: flaw for i in sorted(heard) if (flaw := heard[i].facts.flaw) is not None},
        failed=failed,
        settings={
            **asdict(settings),
            "model_sha256": codec.weights_sha256 if codec else None,
            "keep_rule": KEEP_RULE,
        },
        content_sha256=hash_json(
            [[name, heard[i].digest if i in heard else None] for i, name in enumerate(names)]
        ),
        wall_seconds=round(time.monotonic() - started, 2),
    )
    write_outputs(output_dir, tracks, excluded, summary, pairs, kept)
    write_page(output_dir / "pairs.html", tracks, names, summary, pairs, kept)
    say(
        f"dedup: {summary.tracks} tracks, {len(groups)} groups of duplicates, "
        f"{len(summary.excluded)} excluded, {len(summary.flagged)} flagged, {len(failed)} unreadable; "
        f"results in {output_dir}, pairs to listen to in {output_dir / 'pairs.html'}"
    )
    return summary


def _codec(settings: DedupSettings) -> DacFingerprinter | None:
    if settings.model_path is None:
        return None
    return DacFingerprinter(
        settings.model_path,
        device=settings.device,
        max_audio_seconds=settings.max_audio_seconds,
        chunk_seconds=settings.chunk_seconds,
        batch_size=settings.batch_size,
    )


def _groups(
    tracks: Sequence[Track],
    trained: int,
    heard: Mapping[int, Heard],
    pairs: Sequence[Pair],
    licenses: Mapping[str, str],
) -> tuple[list[list[int]], dict[int, int]]:
    """Groups of one recording, and for each of their members the member that is kept."""
    groups = connected_groups(len(tracks), ((pair.a, pair.b) for pair in pairs if pair.duplicate))
    kept: dict[int, int] = {}
    for group in groups:
        members = [
            Member(
                tracks[i].sample_id,
                heard[i].facts.duration_seconds,
                heard[i].sounding_seconds,
                heard[i].size_bytes,
                heard[i].facts.lossless,
                heard[i].facts.sample_rate,
                licenses.get(tracks[i].sample_id, ""),
                evaluation=i >= trained,
            )
            for i in group
        ]
        chosen = group[choose_kept(members)]
        kept.update({i: i if i >= trained else chosen for i in group})
    return groups, kept
