"""The three ways to the tracks of MTG-Jamendo: by themselves, out of tars on the mirror, in whole tars.

Whichever it is, a track is verified against its own published SHA-256 before it gets its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stable_audio_tools.data.download.archives import Span, index_tar, unpack_tar
from stable_audio_tools.data.download.catalogue import Catalogue
from stable_audio_tools.data.download.meter import Meter
from stable_audio_tools.data.download.placing import ChecksumError, Digest, verified
from stable_audio_tools.data.download.pool import Outcome, run_all
from stable_audio_tools.data.download.transfer import Fetcher, UnreachableError, Wanted
from stable_audio_tools.data.jamendo import JamendoTrack
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say

# 320 kbit/s, and the share of the small files in 156 and 508 GB; the second set of tars has 152 GB.
BYTES_PER_SECOND = {"audio": 40_000.0, "audio-low": 12_300.0}
_TAR_BYTES = {
    ("raw_30s", "audio"): 5.08e9,
    ("raw_30s", "audio-low"): 1.56e9,
    ("autotagging_moodtheme", "audio"): 1.52e9,
    ("autotagging_moodtheme", "audio-low"): 0.47e9,
}


@dataclass
class Ways:
    """How to get tracks of ``catalogue`` into ``audio_dir``; ``refused`` names bad members of archives."""

    catalogue: Catalogue
    fetcher: Fetcher
    audio_dir: Path
    work: Path
    workers: int
    refused: list[str] = field(default_factory=list)

    def tracks(self, tracks: Sequence[JamendoTrack]) -> Outcome:
        """Each file by itself; those that the mirrors do not have so, out of their tars."""
        wanted = [
            self._wanted(track, self.catalogue.remote(self.catalogue.file_of(track))) for track in tracks
        ]
        outcome = self._fetch("tracks", wanted)
        again = [
            track
            for track in tracks
            if (error := outcome.failed.get(self.catalogue.file_of(track))) is not None
            and not isinstance(error, UnreachableError)
        ]
        if again and outcome.fatal is None:
            say(f"{len(again)} files are not to be had by themselves; looking for them in their tars")
            second = self.members(again)
            for track in again:
                name = self.catalogue.file_of(track)
                first = outcome.failed.pop(name)
                if name in second.failed:
                    outcome.failed[name] = DataError(f"{first}; {second.failed[name]}")
            outcome.fatal = second.fatal
        return outcome

    def members(self, tracks: Sequence[JamendoTrack]) -> Outcome:
        """Each file by its range of bytes in a tar on the mirror."""
        tars = sorted({self.catalogue.tar_of(track) for track in tracks})
        spans: dict[str, dict[str, Span]] = {}

        def index(tar: str) -> None:
            spans[tar] = self._index(tar)

        say(f"reading the headers of {len(tars)} tars on the mirror")
        indexed = run_all({tar: partial(index, tar) for tar in tars}, self.workers, self.fetcher.mirrors.stop)
        wanted: list[Wanted] = []
        failed: dict[str, DataError] = {}
        for track in tracks:
            name, tar = self.catalogue.file_of(track), self.catalogue.tar_of(track)
            span = spans.get(tar, {}).get(name)
            if span is not None:
                wanted.append(self._wanted(track, self.catalogue.remote(tar), span))
            else:
                failed[name] = indexed.failed.get(tar) or DataError(f"{tar}: has no member {name}")
        outcome = self._fetch("tracks out of tars", wanted)
        for name, error in outcome.failed.items():
            if isinstance(error, ChecksumError):  # the tar may have changed since its headers were read
                self._index_path(f"{self.catalogue.archive}_{self.catalogue.quality}-{name[:2]}.tar").unlink(
                    missing_ok=True
                )
        outcome.failed.update(failed)
        outcome.fatal = outcome.fatal or indexed.fatal
        return outcome

    def tars(
        self, tracks: Sequence[JamendoTrack], checksums: dict[str, Digest], *, keep: bool = False
    ) -> Outcome:
        """Whole tars, verified and then unpacked; ``keep`` leaves them in the work folder."""
        members: dict[str, list[str]] = {}
        for track in tracks:
            members.setdefault(self.catalogue.tar_of(track), []).append(self.catalogue.file_of(track))
        guess = self.tar_bytes(self.catalogue)
        meter = Meter("tars", len(members), guess * len(members))
        reasons: dict[str, DataError] = {}

        def one(tar: str, names: list[str]) -> None:
            if tar not in checksums:
                raise DataError(f"{tar}: no published checksum")
            path = self.work / "tars" / tar
            if not (path.is_file() and verified(path, checksums[tar])):
                wanted = Wanted(self.catalogue.remote(tar), path, checksums[tar], guess)
                self.fetcher.fetch(wanted, meter)
            unpacked = unpack_tar(
                path, {name: self.catalogue.checksums[name] for name in names}, self.audio_dir.joinpath
            )
            self.refused.extend(unpacked.refused)
            why = "; ".join(unpacked.problems) or f"{tar}: has no such member"
            reasons.update({name: DataError(why) for name in names if name not in unpacked.sha256})
            if not keep:
                path.unlink()
            meter.finish_file()

        tasks: dict[str, Callable[[], None]] = {
            tar: partial(one, tar, names) for tar, names in sorted(members.items())
        }
        with meter.shown():
            outcome = run_all(tasks, self.workers, self.fetcher.mirrors.stop)
        by_track = {name: error for tar, error in outcome.failed.items() for name in members[tar]}
        return Outcome({**by_track, **reasons}, outcome.fatal)

    @staticmethod
    def tar_bytes(catalogue: Catalogue) -> float:
        """How long one tar is on average."""
        return _TAR_BYTES[catalogue.archive, catalogue.quality]

    def _wanted(self, track: JamendoTrack, path: str, span: Span | None = None) -> Wanted:
        name = self.catalogue.file_of(track)
        return Wanted(
            path,
            self.audio_dir / name,
            self.catalogue.checksums[name],
            guess=track.duration_seconds * BYTES_PER_SECOND[self.catalogue.quality],
            offset=span.offset if span is not None else 0,
            size=span.size if span is not None else None,
        )

    def _fetch(self, description: str, wanted: Sequence[Wanted]) -> Outcome:
        meter = Meter(description, len(wanted), sum(one.guess for one in wanted))

        def fetch(one: Wanted) -> None:
            self.fetcher.fetch(one, meter)
            meter.finish_file()

        if not wanted:
            return Outcome()
        tasks: dict[str, Callable[[], None]] = {
            one.target.relative_to(self.audio_dir).as_posix(): partial(fetch, one) for one in wanted
        }
        with meter.shown():
            return run_all(tasks, self.workers, self.fetcher.mirrors.stop)

    def _index(self, tar: str) -> dict[str, Span]:
        path = self._index_path(tar)
        if path.is_file():
            try:
                return {name: Span(*span) for name, span in json.loads(path.read_text("utf-8")).items()}
            except (ValueError, TypeError, AttributeError):
                path.unlink()
        spans = index_tar(tar, partial(self.fetcher.read, self.catalogue.remote(tar)))
        write_json(path, {name: [span.offset, span.size] for name, span in spans.items()})
        return spans

    def _index_path(self, tar: str) -> Path:
        return self.work / "index" / f"{tar}.json"
