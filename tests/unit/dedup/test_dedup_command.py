"""`sat dedup`: what its flags mean."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.paths import read_path_list
from stable_audio_tools.data.webdataset import ShardIndex
from stable_audio_tools.schema.reader import parse_dataset_config

RECORD = """{path}
A Title by An Artist from Jamendo: http://www.jamendo.com/track/{number}
Available under {name}: {url}

"""
PAGE = "http://creativecommons.org/licenses/{code}/3.0/"


@pytest.fixture
def copies(music_folder: Path, tmp_path: Path) -> Path:
    """One recording under three numbers."""
    folder = tmp_path / "audio"
    for number in (1000101, 1000202, 1000303):
        path = folder / f"{number % 100:02d}" / f"{number}.wav"
        path.parent.mkdir(parents=True)
        shutil.copy(music_folder / "original.wav", path)
    return folder


def sat_dedup(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["dedup", *map(str, arguments), "--model-path", "none"])
    return int(ended.value.code or 0)


def licenses(path: Path, codes: dict[int, str]) -> Path:
    records = [
        RECORD.format(
            path=f"{n % 100:02d}/{n}.mp3", number=n, name=f"a {code} license", url=PAGE.format(code=code)
        )
        for n, code in codes.items()
    ]
    path.write_text("".join(records), encoding="utf-8")
    return path


def test_the_licence_file_decides_between_equal_copies(copies: Path, tmp_path: Path) -> None:
    listed = licenses(tmp_path / "audio_licenses.txt", {1000101: "by-nc-nd", 1000202: "by-nc", 1000303: "by"})
    assert sat_dedup("--dataset-dir", copies, "--output-dir", tmp_path / "out", "--licenses", listed) == 0
    assert read_path_list(tmp_path / "out" / "exclude_paths.txt") == ["01/1000101.wav", "02/1000202.wav"]


def test_a_licence_file_of_other_tracks_is_refused(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = licenses(tmp_path / "audio_licenses.txt", {7: "by"})
    assert sat_dedup("--dataset-dir", copies, "--output-dir", tmp_path / "out", "--licenses", listed) == 2
    assert "names none of the 3 tracks" in capsys.readouterr().err


def test_a_config_of_evaluation_tracks_takes_its_copies_out(copies: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held out"
    held_out.mkdir()
    shutil.move(copies / "02" / "1000202.wav", held_out / "clip.wav")
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "eval", "path": "held out"}]}
    (tmp_path / "eval.json").write_text(json.dumps(config), encoding="utf-8")
    output = tmp_path / "out"
    flags = ("--output-dir", output, "--evaluation-config", tmp_path / "eval.json")
    assert sat_dedup("--dataset-dir", copies, *flags) == 0
    assert read_path_list(output / "exclude_paths.txt") == ["01/1000101.wav", "03/1000303.wav"]
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["evaluation_twins"].values()) == {"evaluation: eval/clip.wav"}
    assert summary["evaluation_tracks"] == 1


def test_copies_in_shards_are_found_and_training_leaves_them_out(music_folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    members = {
        "0.tar": ["original.wav", "other.wav"],
        "1.tar": ["a/reencoded.mp3", "silent_1.wav", "broken.mp3"],
    }
    for shard, names in members.items():
        with tarfile.open(shards / shard, "w") as tar:
            for name in names:
                tar.add(music_folder / name, name)
    settings = {
        "dataset_type": "wds",
        "datasets": [{"id": "s", "path": str(shards)}],
        "index_dir": str(tmp_path / "tables"),
        "exclude_paths_file": str(tmp_path / "out/exclude_paths.txt"),
        "on_error": "skip",
    }
    config = tmp_path / "shards.json"
    config.write_text(json.dumps(settings))
    assert sat_dedup("--dataset-config", config, "--output-dir", tmp_path / "out") == 0
    assert read_path_list(tmp_path / "out/exclude_paths.txt") == ["s/1.tar/a/reencoded.mp3"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["flagged"] == {"s/1.tar/silent_1.wav": "silent"}
    assert list(summary["failed"]) == [f"{shards}/1.tar/broken.mp3"]
    assert "could not" not in (tmp_path / "out/pairs.html").read_text()
    kept = ShardIndex.from_shards(parse_dataset_config(settings))  # type: ignore[arg-type]
    assert [track.relpath for track in kept] == [
        "0.tar/original.wav", "0.tar/other.wav", "1.tar/silent_1.wav", "1.tar/broken.mp3"
    ]  # fmt: skip
