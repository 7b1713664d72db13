"""Song Describer from a mirror on this machine: the documented layout, verified, and resumed."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from download_server import Mirror, noise, serve

from stable_audio_tools.data.download import song_describer
from stable_audio_tools.data.download.settings import SongDescriberSettings
from stable_audio_tools.data.download.song_describer import (
    PUBLISHED,
    SongDescriberResult,
    download_song_describer,
)
from stable_audio_tools.data.jamendo import read_raw_30s, read_raw_meta
from stable_audio_tools.data.song_describer import find_recording, read_song_describer
from stable_audio_tools.errors import DataError

SHARED_CSV = Path(__file__).parents[3] / "../shared/data/song-describer/song_describer.csv"
IDS = (1101, 1201, 1302)


def published() -> dict[str, bytes]:
    """The five files of the record, with three tracks and four captions."""
    captions = ["caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration"]
    tracks, names, licenses, members = [], [], [], {}
    for n, number in enumerate(IDS):
        path = f"{number % 100:02d}/{number}.mp3"
        captions.append(f'{n},{number},"A song, with {n}",True,1,7,8,{path},200.5')
        tracks.append(f"track_{number:07d}\tartist_000007\talbum_000008\t{path}\t200.5\tgenre---pop")
        page = f"http://www.jamendo.com/track/{number}"
        names.append(
            f"track_{number:07d}\tartist_000007\talbum_000008\tSong {n}\tAnn\tFirst\t2010-01-01\t{page}"
        )
        licenses += [
            path,
            f"Song {n} by Ann from Jamendo: {page}",
            "Available under a Creative Commons license: http://creativecommons.org/licenses/by-sa/3.0/",
            "--",
        ]
        members[f"{number % 100:02d}/{number}.2min.mp3"] = noise(30_000, "song describer", number)
    captions.append(f"9,{IDS[0]},Another one,,1,7,8,01/{IDS[0]}.mp3,200.5")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("__MACOSX/01/._1101.2min.mp3", b"resource fork")
        for name, data in members.items():
            packed.writestr(name, data)

    def text(lines: list[str]) -> bytes:
        return ("\n".join(lines) + "\n").encode()

    return {
        "song_describer.csv": text(captions),
        "audio_metadata.tsv": text(names),
        "audio_licenses.txt": text(licenses),
        "song_describer_14_04_23.mtg-jamendo.tsv": text(tracks),
        "audio.zip": stream.getvalue(),
    }


class Shelf:
    """A mirror and a folder to download into."""

    def __init__(self, mirror: Mirror, home: Path) -> None:
        self.mirror, self.home = mirror, home
        self.checksums = home.parent / "md5.txt"
        self.checksums.write_text(
            "".join(f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in mirror.files.items())
        )

    def run(self, **settings: Any) -> SongDescriberResult:
        quick: dict[str, Any] = {"retry_seconds": 0.01, "retries": 1, "timeout_seconds": 5.0}
        base = {"base_url": self.mirror.url, "checksums": str(self.checksums)}
        return download_song_describer(self.home, SongDescriberSettings(**{**quick, **base, **settings}))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(Mirror(published())) as mirror:
        yield Shelf(mirror, tmp_path / "small-700")


def test_the_layout_is_the_documented_one(shelf: Shelf) -> None:
    result = shelf.run()
    assert (result.verified, result.tracks) == (3, 3)
    captions = read_song_describer(shelf.home / "song_describer.csv")
    assert {find_recording(one, shelf.home / "audio").name for one in captions} == {
        f"{number}.2min.mp3" for number in IDS
    }
    assert set(read_raw_30s(shelf.home / "raw.tsv")) == set(IDS)
    assert (shelf.home / "raw.tsv").read_text().startswith("TRACK_ID\t")
    assert set(read_raw_meta(shelf.home / "audio_metadata.tsv")) == set(IDS)
    visible = {path.name for path in shelf.home.iterdir() if not path.name.startswith(".")}
    assert visible == {
        "ATTRIBUTION.tsv", "LICENSES.md", "audio", "audio_licenses.txt", "audio_metadata.tsv",
        "download.json", "raw.tsv", "song_describer.csv",
    }  # fmt: skip
    assert not (shelf.home / ".download/audio.zip").exists()
    assert len((shelf.home / "ATTRIBUTION.tsv").read_text().splitlines()) == 4
    assert "3 recordings, 0.1 hours" in (shelf.home / "LICENSES.md").read_text()


def test_a_second_run_needs_neither_zip_nor_mirror(shelf: Shelf) -> None:
    shelf.run()
    count = len(shelf.mirror.requests)
    assert shelf.run().verified == 3
    assert shelf.run(dry_run=True).bytes_to_come == 0
    assert len(shelf.mirror.requests) == count


def test_a_recording_that_went_bad_is_replaced_out_of_the_zip(shelf: Shelf) -> None:
    shelf.run(keep_zip=True)
    path = shelf.home / "audio/01/1101.2min.mp3"
    good = path.read_bytes()
    path.write_bytes(b"bad")
    count = len(shelf.mirror.requests)
    assert shelf.run(keep_zip=True).verified == 3
    assert path.read_bytes() == good
    assert len(shelf.mirror.requests) == count


def test_a_cut_line_is_taken_up_again(shelf: Shelf) -> None:
    shelf.mirror.faults["audio.zip"] = [("cut", 40_000), ("cut", 1)]
    assert shelf.run().verified == 3
    assert shelf.mirror.asked("audio.zip")[1:] == ["bytes=40000-", "bytes=40001-"]


def test_a_file_that_is_not_the_published_one_is_refused_and_the_others_come(shelf: Shelf) -> None:
    shelf.mirror.files["audio.zip"] = b"PK not really"
    with pytest.raises(DataError, match=r"1 of 5 files are missing, audio\.zip first"):
        shelf.run()
    assert (shelf.home / "song_describer.csv").is_file()
    assert not (shelf.home / "audio").exists()
    shutil.rmtree(shelf.home)
    with pytest.raises(DataError, match="5 of 5 files are missing"):
        shelf.run(checksums="")  # the checksums of Zenodo: nothing here is of Zenodo


def test_a_recording_that_is_not_in_the_zip_is_named(shelf: Shelf) -> None:
    stream = io.BytesIO(shelf.mirror.files["audio.zip"])
    less = io.BytesIO()
    with zipfile.ZipFile(stream) as packed, zipfile.ZipFile(less, "w") as fewer:
        for name in packed.namelist():
            if "1201" not in name:
                fewer.writestr(name, packed.read(name))
    shelf.mirror.files["audio.zip"] = less.getvalue()
    shelf.checksums.write_text(
        "".join(f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in shelf.mirror.files.items())
    )
    with pytest.raises(DataError, match=r"1 of 3 files are missing, 01/1201\.2min\.mp3 first"):
        shelf.run()
    assert len((shelf.home / "ATTRIBUTION.tsv").read_text().splitlines()) == 3


def test_a_list_of_checksums_that_lacks_a_file_is_refused(shelf: Shelf) -> None:
    shelf.checksums.write_text("d41d8cd98f00b204e9800998ecf8427e  audio.zip\n")
    with pytest.raises(DataError, match=r"lacks song_describer\.csv"):
        shelf.run()


def test_the_built_in_checksum_is_that_of_the_real_captions() -> None:
    if not SHARED_CSV.is_file():
        pytest.skip("shared/data/song-describer is not on this machine")
    data = SHARED_CSV.read_bytes()
    assert PUBLISHED[song_describer.CAPTIONS] == (hashlib.md5(data).hexdigest(), len(data))
