"""The whole job against a mirror on this machine: what is chosen comes, is right, and is listed."""

from __future__ import annotations

import csv
import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from download_server import Mirror, SmallJamendo, noise, serve, tar_of

from stable_audio_tools.data.download import transfer
from stable_audio_tools.data.download.jamendo import JamendoResult, download_jamendo
from stable_audio_tools.data.download.session import only_run
from stable_audio_tools.data.download.settings import JamendoSettings
from stable_audio_tools.data.jamendo import JamendoFolder, read_raw_30s, read_raw_meta
from stable_audio_tools.data.licenses import read_licenses
from stable_audio_tools.errors import DataError, UsageError


class World:
    """Two mirrors, of tables and of audio, and a folder to download into."""

    def __init__(self, tables: Mirror, audio: Mirror, home: Path, small: SmallJamendo) -> None:
        self.tables, self.audio, self.home, self.small = tables, audio, home, small
        self.audio_dir = home / "small" / "audio"

    def run(self, **settings: Any) -> JamendoResult:
        quick: dict[str, Any] = {"retry_seconds": 0.01, "retries": 2, "timeout_seconds": 5.0, "workers": 4}
        base = {"base_url": self.audio.url, "metadata_url": self.tables.url}
        return download_jamendo(self.audio_dir, JamendoSettings(**{**quick, **base, **settings}))

    def recordings(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.audio_dir).as_posix(): path.read_bytes()
            for path in self.audio_dir.glob("*/[!.]*")
        }

    def listed(self) -> set[str]:
        return {track.path for track in read_raw_30s(self.audio_dir.parent / "raw_30s.tsv").values()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    small = SmallJamendo()
    with serve(Mirror(small.tables)) as tables, serve(Mirror(small.audio)) as audio:
        yield World(tables, audio, tmp_path, small)


@pytest.mark.parametrize("mode", ["track", "member", "tar"])
@pytest.mark.parametrize("quality", ["audio", "audio-low"])
def test_every_way_brings_the_same_verified_files(mode: str, quality: str, world: World) -> None:
    result = world.run(mode=mode, quality=quality)
    if quality == "audio":
        assert world.recordings() == world.small.tracks
    else:
        assert set(world.recordings()) == {p.replace(".mp3", ".low.mp3") for p in world.small.tracks}
    assert (result.verified, result.fetched, result.chosen) == (24, 24, 24)
    left = {path.name for path in (world.audio_dir.parent / ".download").iterdir()}
    assert left <= {"lock", "tables", "index", "tars"}
    assert not list((world.audio_dir.parent / ".download").glob("tars/*"))


def test_the_folder_is_what_training_reads(world: World) -> None:
    world.run(target=7)
    home = world.audio_dir.parent
    tracks, names = read_raw_30s(home / "raw_30s.tsv"), read_raw_meta(home / "raw.meta.tsv")
    assert world.listed() == set(world.recordings())
    assert len(tracks) == 7
    assert set(tracks) == set(names) == set(read_licenses(home / "audio_licenses.txt"))
    published = world.small.tables["data/raw_30s.tsv"].decode().split("\n")
    assert set((home / "raw_30s.tsv").read_text().split("\n")) <= set(published)
    info = JamendoFolder().metadata(next(iter(world.audio_dir.glob("*/*.mp3"))))
    assert info["title"].startswith('Song "')
    with open(home / "ATTRIBUTION.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert {row["PATH"] for row in rows} == set(world.recordings())
    assert all(row["TITLE"] and row["ARTIST"] and row["LICENSE"].startswith("CC BY") for row in rows)
    assert all(row["LICENSE_URL"].startswith("http") and row["URL"].startswith("http") for row in rows)
    assert "7 recordings" in (home / "LICENSES.md").read_text()


def test_the_same_seed_takes_the_same_tracks(world: World, tmp_path: Path) -> None:
    world.run(target=6, seed=1)
    first = set(world.recordings())
    for seed, same in ((1, True), (2, False)):
        shutil.rmtree(world.audio_dir.parent)
        world.run(target=6, seed=seed)
        assert (set(world.recordings()) == first) is same


def test_a_second_run_fetches_nothing(world: World) -> None:
    world.run(target=5)
    before = len(world.audio.requests) + len(world.tables.requests)
    assert world.run(target=5).fetched == 0
    assert len(world.audio.requests) + len(world.tables.requests) == before


def test_a_larger_target_keeps_what_is_there_and_lists_all(world: World) -> None:
    world.run(target=5)
    few = set(world.recordings())
    assert world.run(target=9).fetched == 4
    assert few < set(world.recordings())
    assert world.listed() == set(world.recordings())


def test_tracks_of_an_earlier_choice_stay_listed(world: World) -> None:
    world.run(tags="rare")
    world.run(tags="mood/theme---calm", target=2)
    assert world.listed() == set(world.recordings())


def test_a_file_that_went_bad_is_not_trusted(world: World) -> None:
    world.run(target=5)
    name = sorted(world.recordings())[0]
    (world.audio_dir / name).write_bytes(b"not this song")
    assert world.run(target=5).fetched == 1
    assert world.recordings()[name] == world.small.tracks[name]
    aside = (world.audio_dir / name).with_name(f".unverified-1-{Path(name).name}")
    assert aside.read_bytes() == b"not this song"


def test_a_file_that_went_bad_is_not_listed_where_it_cannot_be_had_again(world: World) -> None:
    world.run(target=5)
    name = sorted(world.recordings())[0]
    (world.audio_dir / name).write_bytes(b"not this song")
    world.audio.files.clear()
    with pytest.raises(DataError, match=f"1 of 5 files are missing, {name} first; run the same"):
        world.run(target=5)
    assert name not in world.recordings()
    assert world.listed() == set(world.recordings())


def test_one_that_cannot_be_had_is_named_and_the_others_come(world: World, capsys: Any) -> None:
    name = sorted(world.small.tracks)[3]
    world.audio.faults[f"raw_30s/audio/{name}"] = [("other", b"another song")]
    tar = f"raw_30s/audio/raw_30s_audio-{name[:2]}.tar"
    world.audio.faults[tar], world.audio.for_ever = [("page", 404)], True
    with pytest.raises(DataError, match=f"1 of 24 files are missing, {name} first"):
        world.run()
    assert set(world.recordings()) == set(world.small.tracks) - {name}
    assert world.listed() == set(world.recordings())
    said = capsys.readouterr().err
    assert f"missing {name}" in said
    assert "gave 12 bytes whose sha256" in said
    del world.audio.faults[f"raw_30s/audio/{name}"], world.audio.faults[tar]
    assert world.run().fetched == 1


def test_tracks_that_are_not_there_by_themselves_come_out_of_their_tars(world: World) -> None:
    for name in world.small.tracks:
        if name.startswith(("00", "01")):
            del world.audio.files[f"raw_30s/audio/{name}"]
    world.run()
    assert world.recordings() == world.small.tracks
    asked = [ranges for _, path, ranges in world.audio.requests if path.endswith("-00.tar")]
    assert asked
    assert all(asked)  # never the whole tar


def test_a_mirror_that_is_down_is_done_without(world: World) -> None:
    with serve(Mirror({}, {"*": [("status", 503, {})]}, for_ever=True)) as down:
        world.run(target=4, base_url=f"{down.url},{world.audio.url}", retries=0)
    assert len(world.recordings()) == 4


@pytest.mark.parametrize("mode", ["track", "tar"])
def test_a_bad_line_in_every_transfer_is_got_over(mode: str, world: World) -> None:
    world.audio.faults["*"] = [("cut", 9_000)] * 60
    world.run(mode=mode)
    assert world.recordings() == world.small.tracks


def test_tar_mode_takes_as_few_tars_as_hold_the_target(world: World) -> None:
    result = world.run(mode="tar", target=5)
    tars = {path for _, path, _ in world.audio.requests}
    assert len(tars) == 1
    assert result.chosen == 5
    assert all(path.endswith(".tar") for path in tars)
    assert {name[:2] for name in world.recordings()} == {next(iter(tars))[-6:-4]}


def test_tars_are_kept_where_asked_and_not_fetched_again(world: World) -> None:
    world.run(mode="tar", target=2, keep_tars=True)
    kept = list((world.audio_dir.parent / ".download/tars").glob("*.tar"))
    assert len(kept) == 1
    shutil.rmtree(world.audio_dir)
    count = len(world.audio.requests)
    world.run(mode="tar", target=2, keep_tars=True)
    assert len(world.audio.requests) == count


def test_a_corrupt_tar_gives_what_it_has_and_names_the_rest(world: World, capsys: Any) -> None:
    members = {name: data for name, data in world.small.tracks.items() if name.startswith("02")}
    broken = tar_of(members)[:100_000]
    world.small.seal({"02": broken})
    with pytest.raises(DataError, match=r"\d of 24 files are missing, 02/"):
        world.run(mode="tar")
    assert "raw_30s_audio-02.tar: breaks off" in capsys.readouterr().err
    here = world.recordings()
    assert {name for name in world.small.tracks if not name.startswith("02")} < set(here)
    assert all(world.small.tracks[name] == data for name, data in here.items())
    assert world.listed() == set(here)


def test_a_tar_that_is_not_the_listed_one_is_not_opened(world: World) -> None:
    path = "raw_30s/audio/raw_30s_audio-01.tar"
    world.audio.files[path] = tar_of({"01/1001.mp3": noise(10, "other")})
    with pytest.raises(DataError, match=r"6 of 24 files are missing, 01/1001\.mp3 first"):
        world.run(mode="tar")
    assert not list((world.audio_dir.parent / ".download/tars").glob("*.tar"))


def test_a_dry_run_says_and_fetches_no_audio(world: World) -> None:
    result = world.run(target=6, dry_run=True)
    assert not world.audio_dir.exists()
    assert {method for method, _, _ in world.audio.requests} == {"HEAD"}
    world.run(target=6)
    assert result.exact
    assert result.bytes_to_come == sum(map(len, world.recordings().values()))
    assert "chosen: 6 tracks" in "\n".join(result.lines())
    assert "NC (no commercial use)" in "\n".join(result.lines())
    assert world.run(target=6, dry_run=True).bytes_to_come == 0


def test_filters_hold(world: World) -> None:
    world.run(license="no-nc,no-nd", tags="jazz")
    home = world.audio_dir.parent
    assert {one.code for one in read_licenses(home / "audio_licenses.txt").values()} <= {"by", "by-sa"}
    assert all("jazz" in track.tags["genre"] for track in read_raw_30s(home / "raw_30s.tsv").values())
    assert world.recordings()


def test_splits_and_linked_tables_are_read(world: World) -> None:
    train = world.run(split="train")
    assert train.chosen == 12
    shutil.rmtree(world.audio_dir.parent)
    assert world.run(subset="autotagging").chosen == 24  # the table is a link that comes as text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quality": "high"}, "--quality: 'high' is not known; expected audio, audio-low"),
        ({"target": 0}, "--target: expected 1 or more, found 0"),
        ({"mode": "torrent"}, "--mode: 'torrent'"),
        ({"workers": 0}, "--workers: expected more than 0"),
        ({"license": "gpl"}, "--license: 'gpl' is not known"),
        ({"tags": "yodel"}, "no track of this table has the tag 'yodel'"),
        ({"license": "by-nd"}, "no track of raw_30s"),
        ({"base_url": "nowhere"}, "--base-url: 'nowhere' is no address"),
        ({"split_number": 5, "split": "train"}, "--split-number: expected 0 to 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str, world: World) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        world.run(**settings)
    assert not world.audio_dir.exists()


def test_files_of_the_other_quality_are_not_mixed_in(world: World) -> None:
    world.run(target=2, quality="audio-low")
    with pytest.raises(UsageError, match="holds 2 files of the other quality"):
        world.run(target=2)


def test_a_table_of_ones_own_is_not_lost(world: World) -> None:
    home = world.audio_dir.parent
    home.mkdir()
    (home / "raw_30s.tsv").write_bytes(world.small.tables["data/raw_30s.tsv"])
    world.run(target=3)
    assert (home / "raw_30s.tsv.bak").read_bytes() == world.small.tables["data/raw_30s.tsv"]
    assert len(world.listed()) == 3


def test_a_table_that_is_none_is_fetched_again_next_time(world: World) -> None:
    good = world.tables.files["data/raw_30s.tsv"]
    world.tables.files["data/raw_30s.tsv"] = good[: len(good) // 2].rsplit(b"\t", 2)[0]
    with pytest.raises(DataError, match="the next run fetches it anew"):
        world.run(target=3)
    world.tables.files["data/raw_30s.tsv"] = good
    assert world.run(target=3).fetched == 3


def test_a_path_that_leaves_the_folder_is_refused(world: World) -> None:
    table = world.tables.files["data/raw_30s.tsv"]
    world.tables.files["data/raw_30s.tsv"] = table.replace(b"00/1000.mp3", b"../1000.mp3")
    with pytest.raises(DataError, match=r"the path '\.\./1000\.mp3' is not of the form"):
        world.run()
    manifest = "data/download/raw_30s_audio_sha256_tracks.txt"
    world.tables.files["data/raw_30s.tsv"] = table
    world.tables.files[manifest] += f"{'0' * 64} ../../evil.mp3\n".encode()
    shutil.rmtree(world.audio_dir.parent)
    with pytest.raises(DataError, match="expected the sha256 in hex and a name"):
        world.run()


def test_a_full_disk_ends_the_run_and_what_is_there_is_listed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = transfer.open_part, []

    def full_after_five(path: Path, have: int) -> Any:
        opened.extend([path] if ".mp3" in path.name else [])
        if len(opened) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, have)

    monkeypatch.setattr(transfer, "open_part", full_after_five)
    with pytest.raises(DataError, match=r"the disk is full.*19 of 24 files are missing; make room and run"):
        world.run(workers=1)
    assert len(opened) == 6  # nothing else was tried
    assert world.listed() == set(world.recordings())
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert world.run().fetched == 19


def test_a_licence_that_cannot_be_read_keeps_nobody_from_the_audio(world: World, capsys: Any) -> None:
    text = world.tables.files["audio_licenses.txt"].decode().replace("Available under", "Ask for it:", 1)
    world.tables.files["audio_licenses.txt"] = text.encode()
    with pytest.raises(DataError, match="expected 'Available under"):
        world.run(license="no-nc")
    assert world.run().verified == 24
    assert "Ask for it:" in (world.audio_dir.parent / "audio_licenses.txt").read_text()
    assert "licences are copied as they are" in capsys.readouterr().err


def test_a_name_that_cannot_be_read_keeps_nobody_from_the_audio(world: World, capsys: Any) -> None:
    names = world.tables.files["data/raw.meta.tsv"]
    world.tables.files["data/raw.meta.tsv"] = names.replace(b"album_000000", b"nowhere")
    assert world.run().verified == 24
    assert "titles and artists are left to audio_licenses.txt" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said(world: World) -> None:
    world.audio_dir.parent.write_text("a file in the way")
    with pytest.raises(UsageError, match=r"small/\.download: cannot be made \(.*\); choose another folder"):
        world.run(target=1)


def test_one_run_a_folder(world: World) -> None:
    world.run(target=1)
    with only_run(world.audio_dir.parent), pytest.raises(UsageError, match="another download is at work"):
        world.run(target=1)


def test_the_manifest_is_what_is_believed(world: World) -> None:
    name = sorted(world.small.tracks)[0]
    evil = noise(1000, "evil")
    manifest = "data/download/raw_30s_audio_sha256_tracks.txt"
    good = hashlib.sha256(world.small.tracks[name]).hexdigest().encode()
    bad = hashlib.sha256(evil).hexdigest().encode()
    world.tables.files[manifest] = world.tables.files[manifest].replace(good, bad)
    with pytest.raises(DataError, match=f"1 of 24 files are missing, {name} first"):
        world.run()
    assert name not in world.recordings()
