"""The index: the same rows everywhere, exact roots, nothing skipped without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.paths import normalise_path, read_path_list, write_path_list
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.reader import parse_dataset_config


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_audio(path, torch.zeros(1, 800), 8000)


def _index(
    *roots: Path, base_dir: Path | None = None, apply_excludes: bool = True, **options: Any
) -> TrackIndex:
    entries = [{"id": f"d{number}", "path": str(root)} for number, root in enumerate(roots)]
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": entries, **options})
    return TrackIndex.from_config(config, base_dir=base_dir, apply_excludes=apply_excludes)


def _names(index: TrackIndex) -> list[str]:
    return [track.sample_id for track in index]


def test_rows_are_sorted_by_dataset_then_path(tmp_path: Path) -> None:
    _touch(tmp_path / "one", "b/2.wav", "a.wav", "b/10.wav", "B.FLAC".lower())
    _touch(tmp_path / "two", "a.wav")
    index = _index(tmp_path / "two", tmp_path / "one")
    assert _names(index) == ["d0/a.wav", "d1/a.wav", "d1/b.flac", "d1/b/10.wav", "d1/b/2.wav"]
    assert [track.index for track in index] == list(range(5))
    assert index[3].path == tmp_path / "one/b/10.wav"
    assert index[3].relpath == "b/10.wav"
    assert [track.sample_id for track in index[1:3]] == ["d1/a.wav", "d1/b.flac"]


def test_upper_case_suffixes_and_strange_names_survive(tmp_path: Path) -> None:
    names = [
        "LOUD.WAV",
        "new\nline.wav",
        "emoji 🎷.wav",
        "#hash.wav",
        '"quoted".wav',
        " space .wav",
        "$(touch x).wav",
    ]
    for name in names:
        save_audio(tmp_path / "x.wav", torch.zeros(1, 800), 8000).rename(tmp_path / name)
    index = _index(tmp_path)
    assert sorted(track.relpath for track in index) == sorted(names)
    write_path_list(tmp_path / "out.txt", names[1:], comments=["why"])
    assert read_path_list(tmp_path / "out.txt") == names[1:]
    left = _index(tmp_path, exclude_paths_file=str(tmp_path / "out.txt"))
    assert [track.relpath for track in left] == ["LOUD.WAV"]
    assert left.excluded == 6
    index.write(tmp_path / "index.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [row["relpath"] for row in rows] == [track.relpath for track in index]


def test_hidden_and_temporary_files_are_not_tracks(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", ".hidden.wav", ".git/b.wav", ".tmp-12-c.wav")
    assert _names(_index(tmp_path)) == ["d0/a.wav"]


def test_unsupported_formats_are_listed_and_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _touch(tmp_path, "a.wav")
    for name in ("song.wma", "old.ape", "cover.jpg", "notes.txt"):
        (tmp_path / name).touch()
    index = _index(tmp_path)
    assert sorted(path.name for path in index.unsupported) == ["old.ape", "song.wma"]
    warning = capfd.readouterr().err
    assert "2 files" in warning
    assert "old.ape" in warning


def test_names_that_are_not_utf8_are_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _touch(tmp_path, "a.wav")
    try:
        os.link(os.fsencode(tmp_path / "a.wav"), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    except OSError as error:
        pytest.skip(f"this file system takes UTF-8 names only: {error}")
    index = _index(tmp_path)
    assert _names(index) == ["d0/a.wav"]
    assert len(index.unsupported) == 1
    assert "caf" in capfd.readouterr().err


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    _touch(tmp_path / "root", "a/1.wav")
    _touch(tmp_path / "elsewhere", "2.wav")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "root/a/self").symlink_to(tmp_path / "root/a", target_is_directory=True)
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert _names(_index(tmp_path / "root")) == ["d0/a/1.wav", "d0/linked/2.wav"]


def test_a_link_that_leads_nowhere_is_a_track_that_cannot_be_read(tmp_path: Path) -> None:
    _touch(tmp_path / "root", "1.wav")
    (tmp_path / "root/dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "root/circle.wav").symlink_to(tmp_path / "root/circle.wav")
    index = _index(tmp_path / "root")
    assert _names(index) == ["d0/1.wav", "d0/circle.wav", "d0/dangling.wav"]
    before = index.hash
    _touch(tmp_path, "nowhere.wav")
    assert _index(tmp_path / "root").hash != before


def test_filelist_is_the_list(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", "b.wav", "sub/c.wav", "d.wav")
    lines = ["# chosen", "", "./sub//c.wav", str(tmp_path / "a.wav"), "a.wav\r", "sub/../d.wav"]
    (tmp_path / "filelist.txt").write_text("\n".join(lines), newline="")
    assert _names(_index(tmp_path)) == ["d0/a.wav", "d0/d.wav", "d0/sub/c.wav"]
    (tmp_path / "filelist.txt").write_text("a.wav\nmissing.wav\n")
    with pytest.raises(
        DataError, match=r"filelist\.txt: 1 of 2 files do not exist, the first is 'missing\.wav'"
    ):
        _index(tmp_path)
    (tmp_path / "filelist.txt").write_text("../other.wav\n")
    with pytest.raises(DataError, match="outside the folder"):
        _index(tmp_path)


def test_excludes_match_exactly_relative_or_absolute(tmp_path: Path) -> None:
    drums, drums2 = tmp_path / "drums", tmp_path / "drums2"
    for root in (drums, drums2):
        _touch(root, "a.wav", "aa.wav", "sub/b.wav", "sub/c.wav")
    listed = [f"{drums}/a.wav", "./sub/./b.wav", f"{drums2}/../drums/sub/c.wav", "# aa.wav", "sub", "wav"]
    (tmp_path / "out.txt").write_text("\n".join(listed) + "\n")
    index = _index(drums, drums2, exclude_paths_file=str(tmp_path / "out.txt"))
    assert _names(index) == ["d0/aa.wav", "d1/a.wav", "d1/aa.wav", "d1/sub/c.wav"]
    assert index.excluded == 4
    everything = _index(drums, drums2, exclude_paths_file=str(tmp_path / "out.txt"), apply_excludes=False)
    assert len(everything) == 8


def test_a_folder_whose_name_begins_like_another_keeps_its_own_metadata(tmp_path: Path) -> None:
    entries = []
    for name in ("drums", "drums2"):
        _touch(tmp_path / name, "a.wav")
        (tmp_path / f"{name}.py").write_text("def get_custom_metadata(info, audio):\n    return {}\n")
        module = str(tmp_path / f"{name}.py")
        entries.append({"id": name, "path": str(tmp_path / name), "custom_metadata_module": module})
    index = TrackIndex.from_config(parse_dataset_config({"dataset_type": "audio_dir", "datasets": entries}))
    assert [(track.root.name, Path(str(track.metadata_module)).stem) for track in index] == [
        ("drums", "drums"),
        ("drums2", "drums2"),
    ]


def test_excludes_match_through_a_linked_root(tmp_path: Path) -> None:
    _touch(tmp_path / "real", "a.wav", "b.wav")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    for named, opened in (("real", "link"), ("link", "link")):
        (tmp_path / "out.txt").write_text(f"{tmp_path / named}/a.wav\n")
        assert _names(_index(tmp_path / opened, exclude_paths_file=str(tmp_path / "out.txt"))) == ["d0/b.wav"]


def test_normalise_path_never_leaves_the_root(tmp_path: Path) -> None:
    assert normalise_path("a//b/../c.wav", tmp_path) == "a/c.wav"
    assert normalise_path(f"{tmp_path}/a.wav", tmp_path) == "a.wav"
    for outside in ("..", "../a.wav", ".", str(tmp_path), str(tmp_path.parent), f"{tmp_path}2/a.wav"):
        assert normalise_path(outside, tmp_path) is None


def test_a_missing_exclude_list_is_one_warning_that_names_dedup(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _touch(tmp_path, "a.wav")
    assert len(_index(tmp_path, exclude_paths_file="outputs/none.txt")) == 1
    warning = capfd.readouterr().err
    assert warning.count("warning:") == 1
    assert "sat dedup" in warning
    assert "scripts/dac_hist_dedup.py" in warning
    _index(tmp_path, exclude_paths_file="outputs/none.txt", apply_excludes=False)
    assert capfd.readouterr().err == ""


def test_an_exclude_list_for_something_else_is_noticed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _touch(tmp_path, "a.wav")
    (tmp_path / "out.txt").write_text("b.wav\n")
    _index(tmp_path, exclude_paths_file=str(tmp_path / "out.txt"))
    assert "none of the 1 lines" in capfd.readouterr().err


def test_paths_are_found_in_the_working_folder_then_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, beside = tmp_path / "work", tmp_path / "configs"
    _touch(beside / "music", "a.wav")
    work.mkdir()
    monkeypatch.chdir(work)
    assert _index(Path("music"), base_dir=beside)[0].path == beside / "music/a.wav"
    _touch(work / "music", "b.wav")
    assert _index(Path("music"), base_dir=beside)[0].path == work / "music/b.wav"
    with pytest.raises(DataError, match=rf"looked for {work}/none or {beside}/none"):
        _index(Path("none"), base_dir=beside)


def test_empty_datasets_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"no audio files in .*expected .*\.mp3"):
        _index(tmp_path)
    _touch(tmp_path, "a.wav")
    (tmp_path / "out.txt").write_text("a.wav\n")
    with pytest.raises(DataError, match=r"all 1 tracks .* exclude list"):
        _index(tmp_path, exclude_paths_file=str(tmp_path / "out.txt"))
    with pytest.raises(DataError, match="is not a folder"):
        _index(tmp_path / "a.wav")


def test_the_hash_is_of_names_and_sizes(tmp_path: Path) -> None:
    for place in ("here", "there"):
        _touch(tmp_path / place, "a.wav", "b.wav")
    first = _index(tmp_path / "here").hash
    assert first == _index(tmp_path / "there").hash
    save_audio(tmp_path / "there/b.wav", torch.zeros(1, 900), 8000)
    assert _index(tmp_path / "there").hash != first
    (tmp_path / "here/b.wav").rename(tmp_path / "here/c.wav")
    assert _index(tmp_path / "here").hash != first
