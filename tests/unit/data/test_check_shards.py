"""Recordings in shards are checked like files: measured, asked for captions, listed, left out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from shard_maker import RATE, make_tar, make_wav, shard_config, shard_loader

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.check import survey as survey_module
from stable_audio_tools.data.check.kinds import Thresholds
from stable_audio_tools.data.check.run import CheckReport, check_dataset
from stable_audio_tools.data.check.summary import summary_of, write_exclude_list
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.paths import read_path_list
from stable_audio_tools.data.shard_stores import LocalShards, Shard
from stable_audio_tools.data.webdataset import ShardIndex, recordings_of
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.schema.reader import parse_dataset_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two shards: a recording twice, one that is no audio, one without a caption, a sample without audio."""
    first = {
        "a.wav": make_wav(1),
        "a.txt": b"a song",
        "sub/b.wav": make_wav(2),
        "sub/b.json": json.dumps({"prompt": "another song", "artist": "Somebody"}).encode(),
        "broken.mp3": b"this is no audio",
    }
    second = {"again.wav": make_wav(1), "again.txt": b"a song", "c.wav": make_wav(3), "d.json": b"{}"}
    make_tar(tmp_path / "shards/0.tar", first)
    make_tar(tmp_path / "shards/1.tar", second)
    return tmp_path / "shards"


def listed(config: dict[str, Any], **options: Any) -> TrackIndex:
    return recordings_of(parse_dataset_config(config), **{"lenient": True, **options})


def checked(root: Path, output: Path, **options: Any) -> CheckReport:
    return check_dataset(
        "shards",
        listed(shard_config(root)),
        output,
        limits=Thresholds(min_sample_rate=RATE),
        **{"num_workers": 0, **options},
    )


def kinds(report: CheckReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in report.problems:
        found.setdefault(item.kind, []).append(item.name)
    return found


def test_members_are_measured_and_named(root: Path, tmp_path: Path) -> None:
    report = checked(root, tmp_path / "out")
    assert [track.sample_id for track in report.index] == [
        "w/0.tar/a.wav", "w/0.tar/sub/b.wav", "w/0.tar/broken.mp3", "w/1.tar/again.wav", "w/1.tar/c.wav"
    ]  # fmt: skip
    assert kinds(report) == {
        "unreadable": ["w/0.tar/broken.mp3"],
        "duplicate": ["w/1.tar/again.wav"],
        "no-caption": ["w/1.tar/c.wav"],
        "no-recording": [f"{root}/1.tar/d"],
    }
    assert [known.prompt for known in report.known] == ["a song", "another song", "", "a song", ""]
    assert summary_of(report)["hours"] == round(4 / 3600, 4)
    assert report.facts[1].path == f"{root}/0.tar/sub/b.wav"


def test_a_member_has_the_figures_and_hashes_of_its_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    for name, content in {"a.wav": make_wav(1), "b.wav": make_wav(2)}.items():
        (tmp_path / "music" / name).write_bytes(content)
    folder = {"dataset_type": "audio_dir", "datasets": [{"id": "f", "path": str(tmp_path / "music")}]}
    files = check_dataset("folder", listed(folder), tmp_path / "files", num_workers=0)
    members = checked(root, tmp_path / "out")
    for file, member in zip(files.facts, members.facts, strict=False):
        assert (file.measured, file.sha256, file.size_bytes) == (
            member.measured,
            member.sha256,
            member.size_bytes,
        )


def test_processes_change_nothing_and_a_second_check_reads_no_shard(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = checked(root, tmp_path / "here")
    monkeypatch.setattr(survey_module, "_WORTH_PROCESSES", 1)
    apart = checked(root, tmp_path / "apart", num_workers=2)
    assert here.facts == apart.facts
    read: list[str] = []
    real = LocalShards.read

    def counted(self: LocalShards, shard: Shard, offset: int, length: int) -> bytes:
        read.append(shard.name)
        return real(self, shard, offset, length)

    index = listed(shard_config(root))
    monkeypatch.setattr(LocalShards, "read", counted)
    survey_module.survey([track.source for track in index if track.relpath != "0.tar/broken.mp3"],
                         tmp_path / "here/files.jsonl", num_workers=0)  # fmt: skip
    assert read == []
    make_tar(root / "1.tar", {"again.wav": make_wav(5), "c.wav": make_wav(3)})
    changed = checked(root, tmp_path / "here")
    assert set(read) == {"0.tar", "1.tar"}  # captions are read anew, and what could not be
    assert changed.facts[3].measured != here.facts[3].measured
    assert changed.copies == []


def test_the_list_is_of_sample_ids_and_training_follows_it(root: Path, tmp_path: Path) -> None:
    report = checked(root, tmp_path / "out")
    path = tmp_path / "exclude.txt"
    assert write_exclude_list(report, path) == 2
    assert read_path_list(path) == ["w/0.tar/broken.mp3", "w/1.tar/again.wav"]
    config = shard_config(root, exclude_paths_file=str(path), resampled_shards=False, shuffle_buffer=0)
    index = ShardIndex.from_shards(parse_dataset_config(config))  # type: ignore[arg-type]
    assert [track.relpath for track in index] == ["0.tar/a.wav", "0.tar/sub/b.wav", "1.tar/c.wav"]
    assert (index.excluded, index.shard_rows) == (2, [range(0, 2), range(2, 3)])
    loader = shard_loader(config, batch_size=1, infinite=False)
    names = {info["relpath"] for _, infos in loader for info in infos}
    assert names == {"0.tar/a.wav", "0.tar/sub/b.wav", "1.tar/c.wav"}
    assert len(listed(config, apply_excludes=False)) == 5


@pytest.mark.parametrize("line", ["1.tar/c.wav", "w/1.tar/c.wav", "{root}/1.tar/c.wav"])
def test_a_line_may_be_a_path_or_an_id_but_must_be_whole(root: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text(f"tar/c.wav\nc.wav\n{line.format(root=root)}\n")
    index = listed(shard_config(root, exclude_paths_file=str(path)))
    assert [track.relpath for track in index] == [
        "0.tar/a.wav", "0.tar/sub/b.wav", "0.tar/broken.mp3", "1.tar/again.wav"
    ]  # fmt: skip


def test_a_list_that_leaves_nothing_says_so(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text("".join(f"{track.sample_id}\n" for track in listed(shard_config(root))))
    with pytest.raises(DataError, match=r"all 5 recordings in the shards of .*exclude\.txt"):
        listed(shard_config(root, exclude_paths_file=str(path)))


def test_a_shard_that_breaks_off_is_in_the_report(root: Path, tmp_path: Path) -> None:
    whole = (root / "1.tar").read_bytes()
    with tarfile.open(root / "1.tar") as tar:
        at = tar.getmember("c.wav").offset_data
    (root / "1.tar").write_bytes(whole[: at + 100])
    found = kinds(checked(root, tmp_path / "out"))
    assert found["broken-shard"] == [f"{root}/1.tar"]
    assert found["duplicate"] == ["w/1.tar/again.wav"]


def test_a_shard_that_cannot_be_read_ends_the_check_and_accuses_no_track(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = listed(shard_config(root))

    def refused(self: LocalShards, shard: Shard, offset: int, length: int) -> bytes:
        raise DataError(f"{self.where(shard)}: the line is dead")

    monkeypatch.setattr(LocalShards, "read", refused)
    with pytest.raises(DataError, match="the line is dead"):
        check_dataset("shards", index, tmp_path / "out", num_workers=0)


def test_latents_are_no_recordings(root: Path) -> None:
    with pytest.raises(ConfigError, match="these shards hold latents"):
        listed(shard_config(root, pre_encoded=True))


def test_the_command_checks_shards_and_searches_them_for_copies(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "shards.json"
    config.write_text(json.dumps(shard_config(root)))
    arguments = ["data", "check", str(config), "--output-dir", str(tmp_path / "out"), "--json"]
    more = [
        "--fix",
        str(tmp_path / "exclude.txt"),
        "--duplicates",
        "--num-workers",
        "0",
        "--min-sample-rate",
        "8000",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *more])
    assert not ended.value.code
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["counts"] == {"unreadable": 1, "duplicate": 1, "no-caption": 1, "no-recording": 1}
    assert read_path_list(tmp_path / "exclude.txt") == ["w/0.tar/broken.mp3", "w/1.tar/again.wav"]
    assert "<audio" in (tmp_path / "out/report.html").read_text()
