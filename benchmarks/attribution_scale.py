"""Time and memory of scoring, on stores of synthetic rows.

The first time the kernel of the tracks is decomposed, or their rows are sketched; this is kept, and "again"
is what further clips cost. Rows agree in 0.999 of their energy, as shared noise makes them, and each clip is
a track with a tenth of noise, so that the right answer is known.

    python benchmarks/attribution_scale.py --tracks 5000 --dim 128000
    python benchmarks/attribution_scale.py --tracks 200000 --dim 8192 --sketch-dim 2048
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stable_audio_tools.attribution.evidence.confidence import BLOCKS, null_evidence, resample, standouts
from stable_audio_tools.attribution.evidence.gather import CLIPS_AT_ONCE
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.scoring.groups import group_tracks
from stable_audio_tools.attribution.scoring.kernels import EXACT_ROWS
from stable_audio_tools.attribution.scoring.sample_space import SampleSpace
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, score
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.runtime.seeds import generator

ROWS = 2000
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of attribution scores.")
    parser.add_argument("--tracks", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dim", type=int, default=128000)
    parser.add_argument("--sketch-dim", type=int, default=8192)
    parser.add_argument(
        "--folder", type=Path, default=None, help="Where the stores go; by default temporary."
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(folder, options.tracks, options.queries, options.dim, options.sketch_dim)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, tracks: int, queries: int, dim: int, sketch_dim: int) -> None:
    """Print what scoring takes."""
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    )
    print(f"{tracks} tracks, {queries} clips, {dim} numbers a row; {where}, torch {torch.__version__}")
    seconds, _ = timed(lambda: make_stores(folder, tracks, queries, dim))
    print(f"{'rows written':28s} {seconds:8.1f} s  (synthetic; not part of scoring)")
    train, clips = FeatureStore.open(folder / "train"), FeatureStore.open(folder / "queries")
    settings = ScoreSettings(sketch_dim=sketch_dim)
    first, _ = timed(lambda: score(train, clips, settings))
    again, scores = timed(lambda: score(train, clips, settings))
    kept = sum(path.stat().st_size for name in ("kernel*", "sketch*") for path in train.folder.glob(name))
    print(f"{'dtrak, the first time':28s} {first:8.1f} s  (keeps {kept / 2**30:.2f} GiB in the store)")
    print(f"{'dtrak again':28s} {again:8.2f} s")
    # A clip is always heard among the tracks it was made of.
    expected = originals(tracks, queries)
    ranks = (scores > scores.gather(1, expected[:, None])).sum(1)
    print(f"{'originals ranked first':28s} {int((ranks == 0).sum()):8d} of {queries}")
    cosine, _ = timed(lambda: score(train, clips, ScoreSettings(method="gradcos")))
    print(f"{'gradcos':28s} {cosine:8.1f} s")
    if tracks <= EXACT_ROWS:
        algebra_of_a_report(train, clips, scores, settings)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'most memory':28s} {memory:8.1f} GiB")
    if tracks > EXACT_ROWS:
        factor = MILLION / tracks
        print(
            f"{MILLION} tracks, by the number of rows: {first * factor / 60:.1f} minutes the first time,"
            f" {again * factor:.0f} s again, {kept * factor / 2**30:.0f} GiB kept"
        )


def algebra_of_a_report(
    train: FeatureStore, clips: FeatureStore, scores: Tensor, settings: ScoreSettings
) -> None:
    """Print what verdicts and intervals take; artists have ten tracks each.

    A clip stands for each of its timesteps, which cost the same whatever is in them.
    """
    tracks = [{"sample_id": str(n), "artist": str(n // 10)} for n in range(len(train))]
    artists = group_tracks(tracks, "artist")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    space = SampleSpace(train, list(range(len(train))), settings, device)
    left_out = space.scores_left_out(artists.member)
    for groups in (None, artists):
        standouts(scores, null_evidence(left_out, "score_squared", groups), "score_squared", groups)
    print(f"{'verdicts':28s} {time.perf_counter() - started:8.1f} s")
    started, K = time.perf_counter(), FeatureSettings().K
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        parts = space.scores(space.cross(clips, BLOCKS, rows=slice(start, start + CLIPS_AT_ONCE)))
        for number in range(parts.shape[1]):
            each = parts[:, number, None].expand(-1, K, -1)
            resample(each, each.sum((0, 1)), [artists], "score_squared", 0, str(start + number))
    print(f"{'intervals':28s} {time.perf_counter() - started:8.1f} s")


def timed(work: Callable[[], Tensor | None]) -> tuple[float, Tensor]:
    """Seconds, and what ``work`` returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, torch.empty(0) if result is None else result


def originals(tracks: int, queries: int) -> Tensor:
    """The track that each clip is made of."""
    return torch.randint(tracks, (queries,), generator=generator("benchmark-originals"))


def rows_of(start: int, count: int, dim: int) -> Tensor:
    """Tracks ``start`` to ``start + count``, which a clip can make again."""
    common = torch.randn(dim, generator=generator("benchmark-common")) * 30
    return torch.randn(count, dim, generator=generator("benchmark-rows", start)) + common


def make_stores(folder: Path, tracks: int, queries: int, dim: int) -> None:
    """Stores of float16 rows."""
    wanted = originals(tracks, queries)
    clips = torch.zeros(queries, dim)
    train = empty(folder / "train", tracks, dim)
    for start in range(0, tracks, ROWS):
        rows = rows_of(start, min(ROWS, tracks - start), dim)
        span = range(start, start + len(rows))
        train.write(span, rows, rows[:, :2], [{"title": str(row)} for row in span])
        for place in ((wanted >= start) & (wanted < start + len(rows))).nonzero().flatten().tolist():
            noise = torch.randn(dim, generator=generator("benchmark-clip", place)) * 0.1
            clips[place] = rows[int(wanted[place]) - start] + noise
    train.finish()
    store = empty(folder / "queries", queries, dim)
    store.write(range(queries), clips, clips[:, :2], [{}] * queries)
    store.finish()


def empty(folder: Path, count: int, dim: int) -> FeatureStore:
    """A store to fill."""
    stamp = {"settings": {"f": FeatureSettings().f, "mode": "hooked"}}
    ids = [f"{folder.name}/{row}" for row in range(count)]
    return FeatureStore.create(
        folder, sample_ids=ids, dim=dim, latent_dim=2, stamp=stamp, dtype="float16", measurements=2
    )


if __name__ == "__main__":
    main()
