"""The Song Describer Dataset (Manco et al. 2023, arXiv 2311.10057): two minutes each of 706 tracks.

It is published on Zenodo (record 10072001) with MD5 checksums. The recordings come in one zip; what was taken
out of it is listed by SHA-256, so that later runs can verify them without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stable_audio_tools.data.download.archives import unpack_zip
from stable_audio_tools.data.download.catalogue import read_checksums
from stable_audio_tools.data.download.listing import copy_rows, write_attribution
from stable_audio_tools.data.download.meter import Meter, size_text
from stable_audio_tools.data.download.placing import Digest, set_aside, verified
from stable_audio_tools.data.download.pool import Outcome, run_all
from stable_audio_tools.data.download.session import (
    keep_verified,
    make_fetcher,
    only_run,
    raise_if_lacking,
    warn_of_room,
)
from stable_audio_tools.data.download.settings import SongDescriberSettings
from stable_audio_tools.data.download.transfer import Fetcher, Wanted
from stable_audio_tools.data.jamendo import read_raw_30s, read_raw_meta
from stable_audio_tools.data.licenses import LICENSES_FILE, read_licenses
from stable_audio_tools.data.song_describer import read_song_describer
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.runtime.manifest import write_manifest
from stable_audio_tools.runtime.progress import say, warn

CAPTIONS = "song_describer.csv"
NAMES = "audio_metadata.tsv"
TRACKS = "raw.tsv"
_TRACKS_PUBLISHED = "song_describer_14_04_23.mtg-jamendo.tsv"
_ZIP = "audio.zip"
_LONGEST = 120.0  # seconds; the durations in the tables are of the whole tracks
_TRACKS_HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
_RECORDING = re.compile(r"(?:audio/)?(\d\d/\d+(?:\.2min)?\.mp3)\Z")

PUBLISHED = {  # name: MD5 and bytes, of Zenodo record 10072001, version 1.0.0
    CAPTIONS: ("e90e9459c22bfbe69f5462dc1434d573", 186_208),
    NAMES: ("fa5d126659b08680719d189387d61e39", 97_667),
    LICENSES_FILE: ("cda13a080c03e14b8319430e1486ae6e", 162_171),
    _TRACKS_PUBLISHED: ("3532f2df8b4c21a7ea85d9121eae244a", 108_663),
    _ZIP: ("2126b8facfe9468cf806c6154e09bbe5", 3_318_019_617),
}


@dataclass(frozen=True)
class SongDescriberResult:
    """How many recordings are there and right, of how many, and what is to come in a dry run."""

    verified: int
    tracks: int
    bytes_to_come: float


def download_song_describer(output_dir: str | Path, settings: SongDescriberSettings) -> SongDescriberResult:
    """Get Song Describer into ``output_dir``: ``audio/NN/*.2min.mp3``, ``raw.tsv``, ``audio_metadata.tsv``,
    ``song_describer.csv``, the licences and whom to name.

    The same call goes on where an earlier one ended.

    Raises:
        UsageError: a setting does not fit.
        DataError: a file cannot be had, or a recording is missing: the others are there.
    """
    home = Path(output_dir).absolute()
    fetcher = make_fetcher(settings.base_url, "--base-url", settings)
    published = _published(settings)
    with only_run(home) as work:
        targets = _targets(home, work, published)
        audio = home / "audio"
        listed = work / "sha256_recordings.txt"
        known = read_checksums(listed) if listed.is_file() else {}
        there = [name for name in known if (audio / name).is_file()]
        good = set(there) if settings.dry_run else keep_verified(audio, known, there, settings.workers)
        if known and good == set(known):
            targets.pop(_ZIP)
        missing = {name: target for name, target in targets.items() if not _have(target, published[name][0])}
        to_come = float(sum(published[name][1] for name in missing))
        if settings.dry_run:
            return SongDescriberResult(len(good), len(known), to_come)
        say(f"to come: {len(missing)} files, {size_text(to_come)}")
        warn_of_room(home, 2 * to_come)
        write_manifest(home, "download", asdict(settings))
        outcome = _fetch(fetcher, missing, published, settings.workers)
        failed = {
            name: str(outcome.failed.get(name, "not reached before the end"))
            for name, target in missing.items()
            if not target.is_file()
        }
        raise_if_lacking(failed, len(missing), outcome.fatal)
        if _ZIP in targets:
            good |= _unpack(targets[_ZIP], audio, listed, keep=settings.keep_zip)
        wanted = _write_tables(home, targets, good)
        lacking = {name: f"not in {_ZIP}" for name in sorted(wanted - good)}
        say(f"{home}: {len(good)} verified recordings, {len(wanted)} tracks with captions")
        raise_if_lacking(lacking, len(wanted), None)
        return SongDescriberResult(len(good), len(wanted), 0.0)


def _published(settings: SongDescriberSettings) -> dict[str, tuple[Digest, int]]:
    """Checksum and size by name; of a mirror's own list the sizes are not known."""
    if not settings.checksums:
        return {name: (Digest("md5", md5), size) for name, (md5, size) in PUBLISHED.items()}
    listed = read_checksums(settings.checksums, "md5")
    missing = [name for name in PUBLISHED if name not in listed]
    if missing:
        raise DataError(f"{settings.checksums}: lacks {', '.join(missing)}")
    return {name: (listed[name], 0) for name in PUBLISHED}


def _targets(home: Path, work: Path, published: Mapping[str, tuple[Digest, int]]) -> dict[str, Path]:
    """Where each published file goes. A file of its name that is another is set aside."""
    beside = {CAPTIONS, NAMES, LICENSES_FILE}
    targets = {name: (home if name in beside else work) / name for name in published}
    for name, target in targets.items():
        if target.is_file() and not verified(target, published[name][0]):
            warn(f"{target}: is not the published file; set aside as {set_aside(target).name}")
    return targets


def _have(target: Path, digest: Digest) -> bool:
    return target.is_file() and verified(target, digest)


def _fetch(
    fetcher: Fetcher, missing: Mapping[str, Path], published: Mapping[str, tuple[Digest, int]], workers: int
) -> Outcome:
    if not missing:
        return Outcome()
    meter = Meter("Song Describer", len(missing), sum(published[name][1] for name in missing))

    def fetch(name: str) -> None:
        digest, size = published[name]
        fetcher.fetch(Wanted(name, missing[name], digest, guess=size), meter)
        meter.finish_file()

    tasks: dict[str, Callable[[], None]] = {name: partial(fetch, name) for name in missing}
    with meter.shown():
        return run_all(tasks, workers, fetcher.mirrors.stop)


def _unpack(archive: Path, audio: Path, listed: Path, *, keep: bool) -> set[str]:
    """Take the recordings out of the zip and list them; returns their paths in ``audio``."""

    def target_of(name: str) -> Path | None:
        match = _RECORDING.match(name)
        return audio / match[1] if match is not None else None

    say(f"unpacking {archive.name}")
    unpacked = unpack_zip(archive, target_of)
    for line in (*unpacked.refused, *unpacked.problems):
        warn(f"refused {line}")
    names = {
        match[1]: sha256
        for name, sha256 in unpacked.sha256.items()
        if (match := _RECORDING.match(name)) is not None
    }
    if names:
        write_text(listed, "".join(f"{sha256} {name}\n" for name, sha256 in sorted(names.items())))
    if not keep:
        archive.unlink()
    return set(names)


def _write_tables(home: Path, targets: Mapping[str, Path], good: set[str]) -> set[str]:
    """Write what belongs to the recordings; returns the paths that the captions ask for."""
    source = targets[_TRACKS_PUBLISHED]
    tracks = read_raw_30s(source)
    copy_rows(source, home / TRACKS, tracks, _TRACKS_HEADER)
    paths = {int(Path(name).name.split(".")[0]): name for name in good}
    seconds = sum(min(tracks[number].duration_seconds, _LONGEST) for number in paths if number in tracks)
    write_attribution(home, paths, read_raw_meta(home / NAMES), read_licenses(home / LICENSES_FILE), seconds)
    captions = read_song_describer(home / CAPTIONS)
    return {f"{caption.path.removesuffix('.mp3')}.2min.mp3" for caption in captions}
