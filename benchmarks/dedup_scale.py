"""Whether `sat dedup` scales: unrelated fingerprints are kept apart, and a million tracks fit into memory.

Fingerprints are made of invented music rather than of sound: tempo, key, chords and bars that come back,
notes with partials, drums, some peaks at random. Two parts, each with its own number of tracks:

- ``apart``: all pairs of unrelated fingerprints go through the search and the verification that
  :func:`run_dedup` uses. The bar is no false pair among 10,000, which are 50 million comparisons.
- ``search``: the time and memory of the search alone, and how many planted copies it meets, each of which
  has kept ``--kept`` of its peaks; then with as few landmarks as a million tracks would leave (20,000
  tracks and more show it). The baseline is comparing pair by pair, measured on some of them.

    python benchmarks/dedup_scale.py --apart 10000 --search 100000
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from stable_audio_tools.dedup.inverted import MAX_HITS, POSTING_BYTES, LandmarkSearch, Votes
from stable_audio_tools.dedup.landmarks import SAMPLED_SHARE, Peaks, constellations, sampled
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.spectra import BANDS, FRAMES_PER_SECOND, PITCHES, SEMITONES_PER_BAND
from stable_audio_tools.dedup.verify import Evidence, align, is_one_recording
from stable_audio_tools.runtime.progress import track
from stable_audio_tools.runtime.seeds import derive_seed

_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 7, 10))
_TOP = PITCHES / 2
_BAND_LOW_SEMITONES = 12.0  # bands start an octave under the lowest pitch
PLANNED_TRACKS, INDEX_GIB = 1_000_000, 8.0


def invent(seed: int, seconds: float) -> Peaks:
    """The landmarks of a piece that nobody played: five a second, on the beat, in a key, in bars."""
    random = np.random.default_rng(derive_seed("invented music", seed))
    beat = FRAMES_PER_SECOND * 60 / random.uniform(60, 180)
    scale = np.array(_SCALES[random.integers(len(_SCALES))]) + random.integers(12)
    bar = 4 * beat
    per_bar = max(3, round(5.0 * bar / FRAMES_PER_SECOND))
    patterns = []
    for _ in range(int(random.integers(2, 9))):  # as many different bars as the piece has
        step = random.choice(16, per_bar, p=_accents(random)) * beat / 4
        pitch = random.choice(scale, per_bar) + 12 * random.integers(0, 3, per_bar)
        partial = 12 * np.log2(random.integers(1, 5, per_bar))
        drums = random.random(per_bar) < 0.25
        pitch = np.where(drums, random.choice([3.0, 17.0, 38.0, 50.0], per_bar), pitch + partial)
        patterns.append((step, pitch))
    frames, semitones = [], []
    for number in range(int(seconds * FRAMES_PER_SECOND / bar) + 1):
        step, pitch = patterns[random.integers(len(patterns))]
        heard = random.random(per_bar) < 0.85
        frames.append(number * bar + step[heard])
        semitones.append(pitch[heard])
        extra = random.poisson(0.15 * per_bar)
        frames.append(number * bar + random.uniform(0, bar, extra))
        semitones.append(random.uniform(0, _TOP, extra))
    when = np.round(np.concatenate(frames) + random.normal(0, 0.7, sum(map(len, frames))))
    what = np.clip(np.concatenate(semitones) + random.normal(0, 0.1, len(when)), 0, _TOP)
    inside = (when >= 0) & (when < seconds * FRAMES_PER_SECOND)
    order = np.argsort(when[inside], kind="stable")
    return Peaks(when[inside][order].astype(np.float32), what[inside][order].astype(np.float32))


def _accents(random: np.random.Generator) -> np.ndarray:
    weights = random.random(16) * np.tile([3.0, 1.0, 2.0, 1.0], 4)
    return np.asarray(weights / weights.sum())


def onsets_of_peaks(peaks: Peaks, seconds: float, seed: int) -> np.ndarray:
    """Onsets to go with invented landmarks: a rise at each, a slower fall, and coder noise."""
    random = np.random.default_rng(seed)
    rises = np.zeros((round(seconds * FRAMES_PER_SECOND) + 16, BANDS))
    band = np.clip((peaks.semitones + _BAND_LOW_SEMITONES) / SEMITONES_PER_BAND, 0, BANDS - 1).astype(int)
    at = peaks.frames.astype(int)
    for delay, strength in ((0, 25.0), (1, 40.0), (2, 30.0), (3, 15.0), (6, -12.0), (9, -10.0), (12, -8.0)):
        np.add.at(rises, (at + delay, band), strength)
    return np.clip(rises + random.normal(0, 3.0, rises.shape), -127, 127).astype(np.int8)


def copy_of(peaks: Peaks, kept: float, seed: int) -> Peaks:
    """What an altered copy leaves of the landmarks: some, some others, all of them a little elsewhere."""
    random = np.random.default_rng(seed)
    stays = random.random(len(peaks)) < kept
    lost = int((~stays).sum())
    frames = np.concatenate([peaks.frames[stays], random.uniform(0, peaks.frames[-1], lost)])
    semitones = np.concatenate([peaks.semitones[stays], random.uniform(0, _TOP, lost)])
    frames = np.maximum(0, np.round(frames + random.normal(0, 0.4, len(frames))))
    order = np.argsort(frames, kind="stable")
    return Peaks(frames[order].astype(np.float32), semitones[order].astype(np.float32))


def gib_in_use() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def keep_apart(count: int, seconds: float) -> None:
    """All pairs of unrelated fingerprints through search and verification."""
    settings = DedupSettings()
    start = time.perf_counter()
    evidence = [_evidence(number, seconds) for number in track(range(count), "unrelated fingerprints")]
    made = time.perf_counter()
    with LandmarkSearch() as search:
        for one in evidence:
            search.add(one.constellations)
        votes = search.pairs(settings.min_votes, settings.max_candidates)
    searched = time.perf_counter()
    false_pairs, closest = 0, 0.0
    for first, second in track(
        list(zip(votes.first.tolist(), votes.second.tolist(), strict=True)), "verified"
    ):
        found = align(evidence[first], evidence[second])
        false_pairs += is_one_recording(found, settings)
        closest = max(closest, min(found.agreement, found.correlation))
    comparisons = count * (count - 1) // 2
    sys.stdout.write(
        f"\napart: {count:,} unrelated fingerprints of {seconds:.0f} s, {comparisons:,} comparisons\n"
        f"  candidates verified: {len(votes.first):,} ({len(votes.first) / comparisons:.2%} of all pairs)\n"
        f"  false pairs: {false_pairs} (the closest: {closest:.2f} of landmarks and onsets agree)\n"
        f"  making {made - start:.0f} s, search {searched - made:.0f} s,"
        f" verification {time.perf_counter() - searched:.0f} s\n"
    )


def _evidence(number: int, seconds: float) -> Evidence:
    peaks = invent(number, seconds)
    return Evidence(onsets_of_peaks(peaks, seconds, number), peaks, constellations(peaks))


def _sampled_hashes(job: tuple[int, float, float, int]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of one track that a planned index would hold, ascending, and their frames."""
    number, seconds, kept, originals = job
    peaks = invent(number, seconds)
    if number >= originals:
        peaks = copy_of(invent(number - originals, seconds), kept, number)
    found = constellations(peaks)
    chosen = sampled(found.hashes, SAMPLED_SHARE)
    return found.hashes[chosen], found.frames[chosen]


def time_search(count: int, seconds: float, copies: int, kept: float, workers: int) -> None:
    """The search for pairs among ``count`` tracks, and once more thinned as among a million."""
    jobs = [(number, seconds, kept, count - copies) for number in range(count)]
    share = count / PLANNED_TRACKS
    budget, hits = int(INDEX_GIB * 2**30 * share), max(1, int(MAX_HITS * share))
    with LandmarkSearch() as search, LandmarkSearch(max_index_bytes=budget, max_hits=hits) as thinned:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for hashes, frames in track(pool.map(_sampled_hashes, jobs, chunksize=64), "fingerprints", count):
                search.add_hashes(hashes, frames)
                thinned.add_hashes(hashes, frames)
        settings = DedupSettings()
        before, start = gib_in_use(), time.perf_counter()
        votes = search.pairs(settings.min_votes, settings.max_candidates)
        took, after = time.perf_counter() - start, gib_in_use()
        sparse = thinned.pairs(settings.min_votes, None)
        postings, offered, dropped = search.postings, search.offered, search.dropped
    met = int(_planted(votes, count - copies).sum())
    pairs = count * (count - 1) / 2
    slower = _seconds_a_pair(seconds, postings / offered) * pairs / took
    sys.stdout.write(
        f"\nsearch: {count:,} tracks of {seconds:.0f} s; {dropped or 'nothing is passed over'}\n"
        f"  {postings:,} postings, {postings / count:.0f} a track; {took:.0f} s,"
        f" {took / count * 1e3:.2f} ms a track, {pairs / took:.3g} pairs a second\n"
        f"  pair by pair it would take {slower * took / 3600:.0f} h: {slower:.0f} times as long\n"
        f"  candidates: {len(votes.first):,}, {len(votes.first) / count:.2f} a track; planted copies with"
        f" {kept:.0%} of their peaks met: {met} of {copies}\n"
        f"  memory: peak {after:.2f} GiB, {before:.2f} GiB before\n"
    )
    _tell_of_a_million(sparse, thinned.postings, count, copies, settings.max_candidates)


def _planted(votes: Votes, originals: int) -> np.ndarray:
    return np.asarray(votes.second - votes.first == originals)


def _tell_of_a_million(votes: Votes, postings: int, count: int, copies: int, most: int) -> None:
    """What the thinned search says of a million tracks: each would meet so many times as many by chance."""
    planted, more = _planted(votes, count - copies), PLANNED_TRACKS / count
    lines = []
    for least in range(4, 11):
        by_chance = more * int((~planted & (votes.votes >= least)).sum()) / count
        found = int((planted & (votes.votes >= least)).sum())
        lines.append(
            f"    {least} votes and more: {by_chance:.2f} a track by chance, {found} of {copies} copies"
        )
    gib = postings * more * POSTING_BYTES / 2**30
    sys.stdout.write(
        f"\na million such tracks, thinned as they would be: {postings / count:.0f} postings a track,"
        f" {gib:.2f} GiB and 0.4 GiB of tables; the {most} likeliest partners of each are looked at\n"
        + "\n".join(lines)
        + "\n"
    )


def _seconds_a_pair(seconds: float, share: float, tracks: int = 24) -> float:
    """Comparing two tracks' hashes directly, as many as the index holds of each."""
    made = []
    for number in range(tracks):
        hashes, _ = _sampled_hashes((number, seconds, 1.0, tracks))
        made.append(hashes[: max(1, round(share * len(hashes)))])
    start = time.perf_counter()
    for first in made:
        for second in made:
            np.intersect1d(first, second)
    return (time.perf_counter() - start) / tracks**2


def main() -> None:
    parser = argparse.ArgumentParser(description="Unrelated fingerprints, and the search among many.")
    parser.add_argument("--apart", type=int, default=10_000, help="unrelated fingerprints; 0: leave out")
    parser.add_argument("--apart-seconds", type=float, default=60.0)
    parser.add_argument("--search", type=int, default=100_000, help="tracks to search; 0: leave out")
    parser.add_argument("--search-seconds", type=float, default=240.0)
    parser.add_argument("--copies", type=int, default=1000, help="of the tracks to search, planted copies")
    parser.add_argument("--kept", type=float, default=0.75, help="share of its peaks that a copy keeps")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.apart:
        keep_apart(arguments.apart, arguments.apart_seconds)
    if arguments.search:
        time_search(
            arguments.search, arguments.search_seconds, arguments.copies, arguments.kept, arguments.workers
        )


if __name__ == "__main__":
    main()
