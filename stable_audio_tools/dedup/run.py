"""The dedup job: a dataset in; an exclude list, the evidence and a summary out.

What ``similarity_threshold`` means: two tracks become candidates when the cosine of their histograms of DAC
codes reaches it. A histogram cannot see order, so the cosine measures likeness of sound, not identity: two
draws of N frames from one distribution with K effective codes reach N / (N + K - 1), whether they are one
recording or not. At 120 s and the 1,024 codes of DAC that is 0.91, and so the default is 0.9: a copy whose
codes all fell otherwise, because it was encoded again or shifted by part of a frame, is still looked at.
Short tracks reach less (0.72 at 30 s), an excerpt of a long track still less: lower the threshold for a
catalogue of short clips.

Candidates are then aligned in time (:mod:`stable_audio_tools.dedup.verify`), and only those whose onsets
agree are called one recording, so a low threshold costs time, not tracks. With ``verify=False`` the threshold
alone decides: take 0.99 or more then, and listen to what ``similar_pairs.jsonl`` lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.data.index import Track
from stable_audio_tools.dedup.candidates import Candidates, similar_pairs
from stable_audio_tools.dedup.clusters import KEEP_RULE, Member, choose_kept, connected_groups
from stable_audio_tools.dedup.fingerprints import (
    DacFingerprinter,
    Fingerprint,
    FingerprintSettings,
    Recording,
    histogram,
    load_fingerprint,
    load_recording,
    save_fingerprint,
)
from stable_audio_tools.dedup.outputs import DedupSummary, Pair, write_outputs
from stable_audio_tools.dedup.verify import align
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.runtime.progress import say, track


def run_dedup(
    index: Sequence[Track],
    output_dir: str | Path = "outputs/dac_dedup",
    *,
    model_path: str | Path = "descript/dac_44khz",
    device: str | None = None,
    similarity_device: str | None = "cpu",
    similarity_threshold: float = 0.9,
    histogram_mode: str = "per-codebook",
    max_audio_seconds: float | None = 120.0,
    chunk_seconds: float = 10.0,
    batch_size: int = 4,
    num_workers: int = 4,
    verify: bool = True,
    min_correlation: float = 0.85,
) -> DedupSummary:
    """Find the duplicates of a dataset and write which tracks to leave out of training.

    Writes into ``output_dir``: ``exclude_paths.txt`` (what a dataset config's ``exclude_paths_file`` points
    at), ``similar_pairs.jsonl`` (every candidate pair with its evidence), ``failed_files.json``,
    ``summary.json``, and ``fingerprints/`` by content, so that a run that was killed goes on where it
    stopped.

    Args:
        index: the tracks, ``TrackIndex.from_config(config, apply_excludes=False)``: an older exclude list
            must not hide a track from the search that makes the next one.
        model_path: DAC in the Hugging Face format, a folder or a name on the hub.
        device, similarity_device: where the codec runs, and where histograms are compared; ``None`` is the
            best.
        similarity_threshold: cosine from which a pair is looked at, in (0, 1]; see the top of this module.
        histogram_mode: ``per-codebook`` or ``global``, see
            :func:`~stable_audio_tools.dedup.fingerprints.histogram`.
        max_audio_seconds: how much of each track is heard, from its start; ``None`` for all of it.
        chunk_seconds, batch_size: the codec's load at once.
        num_workers: threads that decode ahead.
        verify: confirm candidates by aligning them in time.
        min_correlation: agreement of onsets from which an aligned pair is one recording, in (0, 1].

    Raises:
        UsageError: a setting does not fit.
        CheckpointError: there is no DAC at ``model_path``.
        DataError: none of the tracks can be read.
    """
    started = time.monotonic()
    _refuse_bad_settings(
        similarity_threshold, similarity_device, histogram_mode, num_workers, min_correlation
    )
    output_dir = Path(output_dir)
    codec = DacFingerprinter(
        model_path, device=device, settings=FingerprintSettings(max_audio_seconds, chunk_seconds, batch_size)
    )
    cache = output_dir / "fingerprints"
    heard, failed = _hear_all(index, codec, cache, histogram_mode, num_workers)
    if not heard:
        why = next(iter(failed.values()), "the index is empty")
        raise DataError(f"none of the {len(index)} tracks could be read: {why}")
    audible = [i for i in sorted(heard) if heard[i].flaw is None]
    vectors = np.stack([heard[i].histogram for i in audible] or [np.zeros(1, np.float32)])
    candidates = similar_pairs(vectors, similarity_threshold, device=similarity_device)

    @lru_cache(maxsize=2048)
    def onsets(digest: str) -> NDArray[np.int8]:
        found = load_fingerprint(cache / f"{digest}.npz", codec.stamp)
        if found is None:
            raise DataError(f"{cache / digest}.npz: was damaged or removed during the run; run again")
        return found.onsets

    pairs = _judge(candidates, audible, heard, onsets if verify else None, min_correlation)
    groups, kept = _groups(index, heard, pairs)
    summary = DedupSummary(
        tracks=len(index),
        candidates=len(pairs),
        duplicate_pairs=sum(pair.duplicate for pair in pairs),
        groups=[[index[i].sample_id for i in group] for group in groups],
        excluded=[index[i].sample_id for i in sorted(kept) if kept[i] != i],
        flagged={index[i].sample_id: flaw for i in sorted(heard) if (flaw := heard[i].flaw) is not None},
        failed=failed,
        settings={
            "model_path": str(model_path),
            "model_sha256": codec.weights_sha256,
            "similarity_threshold": similarity_threshold,
            "histogram_mode": histogram_mode,
            **asdict(codec.settings),
            "verify": verify,
            "min_correlation": min_correlation,
            "keep_rule": KEEP_RULE,
        },
        content_sha256=hash_json(
            [[item.sample_id, heard[i].digest if i in heard else None] for i, item in enumerate(index)]
        ),
        wall_seconds=round(time.monotonic() - started, 2),
    )
    write_outputs(output_dir, index, summary, pairs, kept)
    say(
        f"dedup: {summary.tracks} tracks, {len(groups)} groups of duplicates, "
        f"{len(summary.excluded)} excluded, {len(summary.flagged)} flagged, {len(failed)} unreadable; "
        f"results in {output_dir}"
    )
    return summary


def _refuse_bad_settings(
    threshold: float, similarity_device: str | None, mode: str, num_workers: int, min_correlation: float
) -> None:
    """Raise before hours of work what would otherwise be raised after them."""
    if num_workers < 1 or not 0.0 < min_correlation <= 1.0:
        raise UsageError(
            f"num workers {num_workers}, min correlation {min_correlation}: "
            "expected at least 1, and a number above 0 and up to 1"
        )
    nothing = np.zeros((0, 1), np.float32)
    similar_pairs(nothing, threshold, device=similarity_device)
    histogram(np.zeros((1, 1), np.int32), mode)


@dataclass(frozen=True)
class _Heard:
    """What stays in memory of a track; its onsets are read back from the cache by ``digest``."""

    digest: str
    histogram: NDArray[np.float32]
    duration_seconds: float
    flaw: str | None


def _hear_all(
    index: Sequence[Track], codec: DacFingerprinter, cache: Path, mode: str, num_workers: int
) -> tuple[dict[int, _Heard], dict[str, str]]:
    """What was heard by position in the index, and what went wrong by path; fingerprints go to ``cache``."""

    def prepare(item: Track) -> tuple[str, Fingerprint | Recording]:
        digest = sha256_file(item.path)
        stored = load_fingerprint(cache / f"{digest}.npz", codec.stamp)
        limit = codec.settings.max_audio_seconds
        return digest, stored or load_recording(item.path, codec.sample_rate, limit)

    heard: dict[int, _Heard] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        upcoming = _ahead(pool, prepare, index, 2 * num_workers)
        for position, future in enumerate(track(upcoming, "fingerprints", total=len(index))):
            try:
                digest, found = future.result()
            except (DataError, OSError) as error:
                failed[str(index[position].path)] = str(error)
                continue
            if isinstance(found, Recording):
                found = codec.fingerprint(found)
                save_fingerprint(cache / f"{digest}.npz", found, codec.stamp)
            heard[position] = _Heard(
                digest, histogram(found.counts, mode), found.duration_seconds, found.flaw
            )
    return heard, failed


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Track], Any], items: Sequence[Track], depth: int
) -> Iterator[Future[Any]]:
    """One future for each item, in order, with at most ``depth`` of them started and not yet taken.

    Unbounded, the decoded dataset would pile up in memory in front of a slow codec.
    """
    remaining = iter(items)
    waiting = [pool.submit(work, item) for item in islice(remaining, depth)]
    while waiting:
        yield waiting.pop(0)
        waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))


def _judge(
    candidates: Candidates,
    audible: Sequence[int],
    heard: Mapping[int, _Heard],
    onsets: Callable[[str], NDArray[np.int8]] | None,
    min_correlation: float,
) -> list[Pair]:
    """The candidates with their evidence and the verdict on each; without ``onsets`` all are duplicates."""
    pairs = []
    rows = zip(candidates.first.tolist(), candidates.second.tolist(), candidates.cosine.tolist(), strict=True)
    for first, second, cosine in track(rows, "pairs", total=len(candidates.first)):
        a, b = audible[first], audible[second]
        identical = heard[a].digest == heard[b].digest
        alignment = None
        if onsets is not None and not identical:
            alignment = align(onsets(heard[a].digest), onsets(heard[b].digest))
        same = alignment is None or alignment.correlation >= min_correlation
        pairs.append(Pair(a, b, round(cosine, 6), identical, alignment, same))
    return pairs


def _groups(
    index: Sequence[Track], heard: Mapping[int, _Heard], pairs: Sequence[Pair]
) -> tuple[list[list[int]], dict[int, int]]:
    """Groups of one recording, and for each of their members the member that is kept."""
    groups = connected_groups(len(index), ((pair.a, pair.b) for pair in pairs if pair.duplicate))
    kept: dict[int, int] = {}
    for group in groups:
        members = [
            Member(index[i].sample_id, heard[i].duration_seconds, index[i].path.stat().st_size) for i in group
        ]
        chosen = group[choose_kept(members)]
        kept.update(dict.fromkeys(group, chosen))
    return groups, kept
