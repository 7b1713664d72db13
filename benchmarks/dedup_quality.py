"""How many altered copies `sat dedup` finds, and how many other tracks it takes for copies.

The built-in synthesiser plays 512 pieces by 8 artists. Each of one half is altered in every way that the
table names; the originals are searched together with the copies of one kind at a time and with hard
negatives: the other pieces of the same artist, pieces on the same plan (key, tempo, chords, sounds) with
other notes, and pairs that have nothing in common but a loop under them. A copy is found when the pair
(original, copy) is called one recording; any other pair that is called so is false, except a piece beside
itself with a loop under it, which is neither. Thresholds were chosen on one half of the pieces
(``--half tuning``); the table to report is of the other. The baseline is a search by file hash.

    python benchmarks/dedup_quality.py --folder /tmp/dedup-quality --workers 2
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from fractions import Fraction
from math import sqrt
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from stable_audio_tools.dedup.inverted import LandmarkSearch
from stable_audio_tools.dedup.prints import Print, listen, load_print, save_print
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.verify import Alignment, Evidence, align, is_one_recording
from stable_audio_tools.demo.artists import DEMO_ARTISTS
from stable_audio_tools.demo.pieces import Piece, compose
from stable_audio_tools.demo.synth import SAMPLE_RATE
from stable_audio_tools.runtime.progress import track
from stable_audio_tools.runtime.seeds import derive_seed

Audio = NDArray[np.float32]
_SHOWN = 20
PER_ARTIST, SECONDS, WORLD = 64, (28.0, 34.0), "dedup benchmark"
BARS = {
    "exact copy": 1.0, "mp3 128k": 0.99, "-6 dB": 0.99, "+6 dB, clipped": 0.99, "44.1 kHz": 0.99,
    "11.025 kHz": 0.99, "2.4 s trimmed": 0.99, "3.1 s silence first, ogg": 0.99, "fades of 4 s": 0.99,
    "excerpt of 10 s, mp3": 0.97, "starts 10 s late": 0.97, "1 semitone up": 0.90, "1 semitone down": 0.90,
    "3 % faster": 0.90, "3 % slower": 0.90, "tape 3 % faster": 0.90,
}  # fmt: skip


def filtered(audio: Audio, *filters: tuple[str, str]) -> Audio:
    """``audio`` ``(2, T)`` through a chain of FFmpeg filters."""
    import av

    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="fltp", layout="stereo", time_base=Fraction(1, SAMPLE_RATE)
    )
    last = source
    for name, arguments in (*filters, ("aformat", "sample_fmts=fltp")):
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    made: list[NDArray[np.float32]] = []

    def drain() -> None:
        while True:
            try:
                made.append(sink.pull().to_ndarray())
            except (av.BlockingIOError, av.EOFError):
                return

    for start in range(0, audio.shape[1], 8192):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(audio[:, start : start + 8192]), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        source.push(frame)
        drain()
    source.push(None)
    drain()
    return np.concatenate(made, axis=1)


def tempo(audio: Audio, speed: float) -> Audio:
    return filtered(audio, ("atempo", str(speed)))


def tape(audio: Audio, speed: float) -> Audio:
    return np.ascontiguousarray(soxr.resample(audio.T, SAMPLE_RATE * speed, SAMPLE_RATE).T, dtype=np.float32)


def transpose(audio: Audio, semitones: float) -> Audio:
    speed = 2 ** (semitones / 12)
    return tempo(tape(audio, speed), 1 / speed)


def silence_first(audio: Audio, seconds: float) -> Audio:
    return np.pad(audio, ((0, 0), (round(seconds * SAMPLE_RATE), 0)))


def faded(audio: Audio, seconds: float) -> Audio:
    gain = np.ones(audio.shape[1], np.float32)
    ramp = np.linspace(0, 1, round(seconds * SAMPLE_RATE), dtype=np.float32)
    gain[: len(ramp)], gain[-len(ramp) :] = ramp, ramp[::-1]
    return audio * gain


def excerpt(audio: Audio, seed: int) -> Audio:
    length = 10 * SAMPLE_RATE
    start = int(np.random.default_rng(seed).integers(0, audio.shape[1] - length))
    return audio[:, start : start + length]


def as_mp3(audio: Audio) -> bytes:
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, bit_rate=128_000, layout="stereo")
        for start in range(0, audio.shape[1], 4608):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(audio[:, start : start + 4608]), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return made.getvalue()


def as_file(audio: Audio, container: str, rate: int = SAMPLE_RATE) -> bytes:
    made = io.BytesIO()
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio.T, SAMPLE_RATE, rate).T
    subtype = "VORBIS" if container == "OGG" else "PCM_16"
    with soundfile.SoundFile(made, "w", rate, 2, format=container, subtype=subtype) as file:
        for start in range(0, audio.shape[1], 16_384):  # libvorbis overflows its stack on long writes
            file.write(np.clip(audio[:, start : start + 16_384], -1, 1).T)
    return made.getvalue()


def copies(audio: Audio, seed: int) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Kind, suffix and how to make it, of every altered copy."""

    def wav(change: Callable[[], Audio]) -> tuple[str, Callable[[], bytes]]:
        return ".wav", lambda: as_file(change(), "WAV")

    yield "exact copy", ".flac", lambda: as_file(audio, "FLAC")
    yield "mp3 128k", ".mp3", lambda: as_mp3(audio)
    yield "-6 dB", *wav(lambda: audio * np.float32(0.5))
    yield "+6 dB, clipped", *wav(lambda: audio * np.float32(2.0))
    yield "44.1 kHz", ".wav", lambda: as_file(audio, "WAV", 44_100)
    yield "11.025 kHz", ".wav", lambda: as_file(audio, "WAV", 11_025)
    yield "2.4 s trimmed", *wav(lambda: audio[:, round(2.4137 * SAMPLE_RATE) :])
    yield "3.1 s silence first, ogg", ".ogg", lambda: as_file(silence_first(audio, 3.1), "OGG")
    yield "fades of 4 s", *wav(lambda: faded(audio, 4.0))
    yield "excerpt of 10 s, mp3", ".mp3", lambda: as_mp3(excerpt(audio, seed))
    yield "starts 10 s late", *wav(lambda: audio[:, 10 * SAMPLE_RATE + 77 :])
    yield "1 semitone up", *wav(lambda: transpose(audio, 1))
    yield "1 semitone down", *wav(lambda: transpose(audio, -1))
    yield "3 % faster", *wav(lambda: tempo(audio, 1.03))
    yield "3 % slower", *wav(lambda: tempo(audio, 0.97))
    yield "tape 3 % faster", *wav(lambda: tape(audio, 1.03))


def level(audio: Audio) -> Audio:
    return audio * np.float32(0.1 / np.sqrt(np.square(audio).mean()))


def make_prints(job: tuple[Piece, Piece, str]) -> tuple[float, float]:
    """Print a piece, its copies and its hard negatives; seconds of audio heard, and of computing for it."""
    piece, other, folder = job
    seed = derive_seed("dedup benchmark", piece.track_id)
    home = home_of(piece, folder)
    kinds = ["original", *BARS, *negatives_of(piece.number)]
    if all((home / f"{kind}.npz").exists() for kind in kinds):
        return 0.0, 0.0
    audio = piece.play()
    made = [("original", ".wav", lambda: as_file(audio, "WAV")), *copies(audio, seed)]
    if "same plan" in negatives_of(piece.number):
        twin = replace(piece, song=replace(piece.song, seed=seed % 2**31))
        made.append(("same plan", ".wav", lambda: as_file(twin.play(), "WAV")))
    # Pieces 2k and 2k + 1 of an artist get the same four bars of another artist under them, as loud.
    bars = replace(other, song=replace(other.song, bars=4)).play()[
        :, : round(4 * other.song.bar * SAMPLE_RATE)
    ]
    loop = np.tile(bars, (1, 1 + audio.shape[1] // bars.shape[1]))[:, : audio.shape[1]]
    made.append(("same loop", ".wav", lambda: as_file(level(audio) + level(loop), "WAV")))
    heard = computed = 0.0
    with tempfile.TemporaryDirectory() as place:
        for kind, suffix, encode in made:
            file = Path(place) / f"track{suffix}"
            file.write_bytes(encode())
            start = time.perf_counter()
            found = listen(file)
            computed += time.perf_counter() - start
            heard += found.facts.duration_seconds
            save_print(home / f"{kind}.npz", found)
    return heard, computed


def negatives_of(number: int) -> tuple[str, ...]:
    return ("same plan", "same loop") if number % 2 else ("same loop",)


def in_half(number: int, half: str) -> bool:
    """Pieces are taken by twos, which share a loop: one pair for tuning, the next one held out."""
    return number // 2 % 2 in {"tuning": (0,), "held out": (1,), "both": (0, 1)}[half]


def jobs(folder: Path, half: str, most: int) -> list[tuple[Piece, Piece, str]]:
    """The pieces of a half, ``most`` of each artist at most, those of all artists in turn."""
    pieces = compose(DEMO_ARTISTS, PER_ARTIST, world=WORLD, first_id=1, seconds=SECONDS)
    lenders = [
        pieces[(i // PER_ARTIST + 1) % len(DEMO_ARTISTS) * PER_ARTIST + i % PER_ARTIST // 2]
        for i in range(len(pieces))
    ]
    both = sorted(zip(pieces, lenders, strict=True), key=lambda pair: pair[0].number)
    wanted = [pair for pair in both if in_half(pair[0].number, half)]
    return [(piece, other, str(folder)) for piece, other in wanted[: most * len(DEMO_ARTISTS)]]


def home_of(piece: Piece, folder: str | Path) -> Path:
    return Path(folder) / f"{piece.artist.style}_{piece.number:02d}"


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


Item = tuple[str, str]
"""Home of a source, and kind."""


def search(
    items: list[Item],
    prints: dict[Item, Print],
    evidence: dict[Item, Evidence],
    settings: DedupSettings,
    aligned: dict[tuple[Item, Item], Alignment],
) -> list[tuple[Item, Item, Alignment | None, bool]]:
    """Pairs that the search looks at, with the verdict, as :func:`run_dedup` makes them.

    ``aligned`` keeps the alignments of originals and negatives, which come again with each kind of copy.
    """
    looked_at: list[tuple[Item, Item, Alignment | None, bool]] = []
    first: dict[str, Item] = {}
    for item in items:
        original = first.setdefault(prints[item].facts.audio_sha256, item)
        if original != item:
            looked_at.append((original, item, None, True))
    rows = list(first.values())
    with LandmarkSearch() as index:
        for item in rows:
            index.add(evidence[item].constellations)
        votes = index.pairs(settings.min_votes, settings.max_candidates)
    for i, j in zip(votes.first.tolist(), votes.second.tolist(), strict=True):
        pair = rows[i], rows[j]
        found = aligned.get(pair) or align(evidence[rows[i]], evidence[rows[j]])
        aligned[pair] = found
        looked_at.append((rows[i], rows[j], found, is_one_recording(found, settings)))
    return looked_at


def report(homes: list[Path], half: str, settings: DedupSettings, evidence_path: Path | None) -> None:
    prints: dict[Item, Print] = {}
    for home in track(homes, "reading"):
        for kind in ("original", *BARS, *negatives_of(int(home.name[-2:]))):
            found = load_print(home / f"{kind}.npz")
            if found is None:
                raise SystemExit(f"{home / kind}.npz is missing or damaged; delete the folder and run again")
            prints[home.name, kind] = found
    evidence = {item: made.evidence() for item, made in track(prints.items(), "hashing")}
    negatives = [item for item in prints if item[1] in ("same plan", "same loop")]
    originals = [(home.name, "original") for home in homes]
    true_pairs = 0
    false_pairs: dict[frozenset[Item], Alignment | None] = {}
    lines, rows = [], []
    start = time.perf_counter()
    aligned: dict[tuple[Item, Item], Alignment] = {}
    for kind, bar in track(BARS.items(), "kinds of copies"):
        items = [*originals, *((h.name, kind) for h in homes), *negatives]
        looked_at = search(items, prints, evidence, settings, aligned)
        hits = 0
        for a, b, found, same in looked_at:
            copy = {a[1], b[1]} == {"original", kind} and a[0] == b[0]
            with_a_loop = a[0] == b[0] and "same loop" in (a[1], b[1])  # the recording, and more: neither
            hits += copy and same
            if same and not copy and not with_a_loop:
                false_pairs[frozenset({a, b})] = found
            if found is not None:
                lines.append({"a": a, "b": b, "copy": copy, "same": same, **asdict(found)})
        true_pairs += hits
        low, high = wilson(hits, len(homes))
        by_hash = "1.000" if kind == "exact copy" else "0.000"
        mark = "ok" if hits / len(homes) >= bar else "BELOW"
        rows.append(
            f"| {kind} | {hits / len(homes):.3f} | {low:.3f} to {high:.3f} | {bar:.2f} {mark} | {by_hash} |"
        )
    precision = true_pairs / max(1, true_pairs + len(false_pairs))
    low, high = wilson(true_pairs, true_pairs + len(false_pairs))
    sys.stdout.write(
        f"\n{len(homes)} sources ({half}), {len(negatives)} hard negatives\n\n"
        "| copy | recall | 95 % interval | bar | by audio hash alone |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nprecision {precision:.4f} ({low:.4f} to {high:.4f}): {true_pairs} true pairs and"
        f" {len(false_pairs)} false ones; search and verification took {time.perf_counter() - start:.0f} s\n"
    )
    for pair, found in list(false_pairs.items())[:_SHOWN]:
        sys.stdout.write(f"false: {sorted(pair)} {found}\n")
    if evidence_path is not None:
        evidence_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Recall and precision of sat dedup on altered copies.")
    parser.add_argument("--folder", type=Path, default=Path("dedup-quality"), help="where prints are kept")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--half", choices=("tuning", "held out", "both"), default="held out")
    parser.add_argument("--pieces", type=int, default=32, help="of each artist in each half")
    parser.add_argument("--evidence", type=Path, help="write the evidence of every pair here (JSON lines)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    work = jobs(arguments.folder, arguments.half, arguments.pieces)
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        heard, computed = np.sum(list(track(pool.map(make_prints, work), "copies", len(work))), axis=0)
    if heard:
        sys.stdout.write(
            f"listening took {60 * computed / heard:.2f} s a minute of audio, decoding included\n"
        )
    homes = sorted(home_of(piece, arguments.folder) for piece, _, _ in work)
    report(homes, arguments.half, DedupSettings(), arguments.evidence)


if __name__ == "__main__":
    main()
