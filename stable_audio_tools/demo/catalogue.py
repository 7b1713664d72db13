"""The built-in catalogue on disk, in MTG-Jamendo layout, with planted near-duplicates and an evaluation set.

::

    <folder>/audio/NN/<id>.mp3 (or .ogg, .flac)      the tracks, NN = id modulo 100
    <folder>/raw_30s.tsv, raw.meta.tsv               their tags; their titles, artists and albums
    <folder>/planted.json                            which tracks are copies of which, and how they were made
    <folder>/song_describer/song_describer.csv       captions of other pieces, not in the catalogue
    <folder>/song_describer/audio/NN/<id>.2min.mp3   and their sound
    <folder>/catalogue.json                          the settings; written last: with it, all is there
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.artists import DEMO_ARTISTS
from stable_audio_tools.demo.pieces import Piece, compose
from stable_audio_tools.demo.synth import SAMPLE_RATE
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import atomic_path, hash_json, write_json, write_text
from stable_audio_tools.runtime.progress import track
from stable_audio_tools.schema.reader import read_json

Audio = NDArray[np.float32]

_VERSION = 1
"""Goes up when the music changes, so that an old folder is written anew."""

_FORMATS = ("mp3", "mp3", "ogg", "mp3", "flac", "mp3")
_FIRST_ID, _FIRST_COPY_ID, _FIRST_EVALUATION_ID = 2000101, 2009001, 3000001


@dataclass(frozen=True)
class CatalogueSettings:
    """How much music to write."""

    tracks_per_artist: int = 5
    planted: int = 8
    evaluation_tracks_per_artist: int = 2
    seconds: tuple[float, float] = (11.0, 16.0)
    seed: int = 42


@dataclass(frozen=True)
class _Job:
    """One audio file to write: a piece and what is done to it first, or the bytes of another file."""

    piece: Piece
    path: Path
    edit: str = "none"
    copy_of: Path | None = None


def _attenuate(audio: Audio) -> Audio:
    return audio * np.float32(10 ** (-6 / 20))


def _trim_start(audio: Audio) -> Audio:
    return audio[:, round(0.75 * SAMPLE_RATE) :]


EDITS: dict[str, Callable[[Audio], Audio]] = {
    "none": lambda audio: audio,
    "6 dB softer": _attenuate,
    "0.75 s cut off the start": _trim_start,
}

_PLANTED = (
    ("copy", "none"),
    ("re-encoded", "none"),
    ("softer", "6 dB softer"),
    ("trimmed", "0.75 s cut off the start"),
)


def write_catalogue(
    folder: str | Path, settings: CatalogueSettings | None = None, *, num_workers: int | None = None
) -> Path:
    """Compose and write the catalogue into ``folder``, keeping what is there. Returns ``folder``.

    ``num_workers`` processes render at once (default: one for each CPU, at most 16; 0: this one).

    Raises:
        UsageError: there are fewer tracks than planted copies, or the folder holds another catalogue.
    """
    settings = settings or CatalogueSettings()
    folder = Path(folder)
    stamp = {"version": _VERSION, "sample_rate": SAMPLE_RATE, "settings": asdict(settings)}
    marker = folder / "catalogue.json"
    if marker.exists():
        if hash_json(read_json(marker)) == hash_json(stamp):
            return folder
        raise UsageError(f"{folder}: holds a catalogue of other settings; choose another folder or delete it")
    world = f"demo {settings.seed}"
    pieces = compose(
        DEMO_ARTISTS, settings.tracks_per_artist, world=world, first_id=_FIRST_ID, seconds=settings.seconds
    )
    jobs = [
        _Job(p, folder / "audio" / _relative(p.track_id, s))
        for p, s in zip(pieces, cycle(_FORMATS), strict=False)
    ]
    copies, planted = _plant(jobs, settings, folder)
    evaluation = compose(
        DEMO_ARTISTS,
        settings.evaluation_tracks_per_artist,
        world=world + " evaluation",
        first_id=_FIRST_EVALUATION_ID,
        seconds=settings.seconds,
    )
    heard = folder / "song_describer"
    eval_jobs = [_Job(p, heard / "audio" / _relative(p.track_id, "2min.mp3")) for p in evaluation]
    seconds = _render_all([*jobs, *copies, *eval_jobs], num_workers)
    _write_tables(folder, [*jobs, *copies], seconds)
    _write_captions(heard / "song_describer.csv", evaluation, seconds[-len(eval_jobs) :] if eval_jobs else [])
    write_json(folder / "planted.json", planted)
    write_json(marker, stamp)
    return folder


def _relative(track_id: int, suffix: str) -> str:
    return f"{track_id % 100:02d}/{track_id}.{suffix}"


def _plant(
    jobs: Sequence[_Job], settings: CatalogueSettings, folder: Path
) -> tuple[list[_Job], list[dict[str, str]]]:
    """Copies of some tracks under ids of their own, and the ground truth about them."""
    if settings.planted > len(jobs):
        raise UsageError(f"planted is {settings.planted}, but there are only {len(jobs)} tracks to copy")
    chosen = np.random.default_rng(settings.seed).permutation(len(jobs))[: settings.planted]
    copies, truth = [], []
    for number, index in enumerate(sorted(int(i) for i in chosen)):
        original, (kind, edit) = jobs[index], _PLANTED[number % len(_PLANTED)]
        suffix = original.path.suffix.lstrip(".")
        if kind != "copy":  # edited copies also come in another format
            suffix = "ogg" if suffix == "mp3" else "mp3"
        path = folder / "audio" / _relative(_FIRST_COPY_ID + number, suffix)
        copies.append(_Job(original.piece, path, edit, original.path if kind == "copy" else None))
        truth.append(
            {
                "original": original.path.relative_to(folder / "audio").as_posix(),
                "duplicate": path.relative_to(folder / "audio").as_posix(),
                "kind": kind,
                "how": f"{edit if edit != 'none' else 'unchanged'}, as {suffix}",
            }
        )
    return copies, truth


def _render_all(jobs: Sequence[_Job], num_workers: int | None) -> list[float]:
    """Write the audio files of ``jobs``; returns their lengths in seconds."""
    if num_workers is None:
        num_workers = default_workers()
    played = [job for job in jobs if job.copy_of is None]
    if num_workers == 0:
        seconds = [_render(job) for job in track(played, "composing and playing")]
    else:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            seconds = list(
                track(pool.map(_render, played, chunksize=2), "composing and playing", len(played))
            )
    lengths = {job.path: length for job, length in zip(played, seconds, strict=True)}
    for job in jobs:
        if job.copy_of is not None:
            with atomic_path(job.path) as temporary:
                shutil.copyfile(job.copy_of, temporary)
            lengths[job.path] = lengths[job.copy_of]
    return [lengths[job.path] for job in jobs]


def default_workers() -> int:
    """Processes to render with: one for each CPU this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


def _render(job: _Job) -> float:
    """Play, edit and write one file unless it is there; returns its length in seconds."""
    import soundfile

    if job.path.exists():
        return float(soundfile.info(str(job.path)).duration)
    audio = EDITS[job.edit](job.piece.play())
    with atomic_path(job.path) as temporary:
        subtype = {".ogg": "VORBIS", ".flac": "PCM_16", ".mp3": "MPEG_LAYER_III"}[job.path.suffix]
        container = {".ogg": "OGG", ".flac": "FLAC", ".mp3": "MP3"}[job.path.suffix]
        with soundfile.SoundFile(
            str(temporary), "w", samplerate=SAMPLE_RATE, channels=2, format=container, subtype=subtype
        ) as stream:
            for start in range(
                0, audio.shape[1], SAMPLE_RATE
            ):  # libvorbis overflows its stack on one long write
                stream.write(audio[:, start : start + SAMPLE_RATE].T)
    return audio.shape[1] / SAMPLE_RATE


def _write_tables(folder: Path, jobs: Sequence[_Job], seconds: Sequence[float]) -> None:
    """``raw_30s.tsv`` and ``raw.meta.tsv``, tab separated, tags spilling into the columns after the fifth."""
    tags = [["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]]
    meta = [
        ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "TRACK_NAME", "ARTIST_NAME", "ALBUM_NAME", "RELEASEDATE", "URL"]
    ]
    for job, length in zip(jobs, seconds, strict=False):
        piece = job.piece
        track_id = int(job.path.stem)
        ids = [f"track_{track_id:07d}", f"artist_{piece.artist.artist_id:06d}", f"album_{piece.album_id:06d}"]
        tags.append([*ids, job.path.relative_to(folder / "audio").as_posix(), f"{length:.1f}", *piece.tags])
        url = f"https://example.org/{track_id}"
        meta.append([*ids, piece.title, piece.artist.name, piece.album, "2026-01-01", url])
    write_text(folder / "raw_30s.tsv", "".join("\t".join(row) + "\n" for row in tags))
    write_text(folder / "raw.meta.tsv", "".join("\t".join(row) + "\n" for row in meta))


def _write_captions(path: Path, pieces: Sequence[Piece], seconds: Sequence[float]) -> None:
    """A table with the columns of the Song Describer dataset (Manco et al. 2023)."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        [
            "caption_id",
            "track_id",
            "caption",
            "is_valid_subset",
            "familiarity",
            "artist_id",
            "album_id",
            "path",
            "duration",
        ]
    )
    for number, (piece, length) in enumerate(zip(pieces, seconds, strict=True)):
        ids = [number, piece.track_id, piece.caption, True, 0, piece.artist.artist_id, piece.album_id]
        table.writerow([*ids, _relative(piece.track_id, "mp3"), f"{length:.1f}"])
    write_text(path, text.getvalue())
