"""``sat data check``: what it is given, what it prints, what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.paths import read_path_list


def sat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["data", "check", *arguments])
    return int(end.value.code or 0)


def refusal(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    assert sat(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["nowhere"],
            "nowhere: does not exist; expected a folder of recordings, a dataset config or a table",
        ),
        (["words.txt"], "words.txt: is neither a folder nor a .json, .tsv or .csv file"),
        (["empty"], "no audio files in empty"),
        (["wds.json"], "no .tar files in"),
        (["broken.json"], "broken.json: not valid JSON"),
        (["music", "--rules", "track,album"], "--rules: unknown 'album'; expected track, bytes, audio"),
        (["music", "--fix-also", "loud"], "--fix-also: unknown 'loud'; expected unreadable"),
        (["music", "--checksums", "words.txt"], "words.txt:1: 'words' is not a SHA-256 and a name"),
        (["music", "--against", "nowhere.csv"], "nowhere.csv: cannot be read: No such file"),
        (["music", "--against", "nowhere"], "nowhere: does not exist"),
        (["music", "--num-workers", "-1"], "num workers is -1"),
        (["other.tsv"], "other.tsv: the header is"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tiny_audio_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("music").symlink_to(tiny_audio_folder / "audio")
    Path("empty").mkdir()
    Path("words.txt").write_text("words\n")
    Path("other.tsv").write_text("a\tb\n")
    Path("broken.json").write_text("{")
    Path("wds.json").write_text('{"dataset_type": "wds", "datasets": [{"id": "a", "path": "music"}]}')
    assert words in refusal(capfd, *arguments)
    assert not Path("outputs/data_check/summary.json").exists()


def test_a_folder_in_jamendo_layout_is_held_against_a_table_of_artists(
    tiny_audio_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("evaluation.csv").write_text("artist_id\n900002\n")
    config = {"id": "tiny", "path": str(tiny_audio_folder / "audio")}
    Path("data.json").write_text(
        json.dumps({"dataset_type": "audio_dir", "datasets": [config], "exclude_paths_file": "out.txt"})
    )
    check = ("data.json", "--against", "evaluation.csv", "--num-workers", "0")
    assert sat(*check, "--json", "--fix", "out.txt") == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["leaks_by_rule"]["artist"] == summary["counts"]["leak"] == 2
    assert read_path_list(Path("out.txt")) == ["03/1000203.wav", "04/1000204.wav"]
    # with its list, the same dataset is clean
    assert sat(*check, "--json", "--strict") == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["tracks"], summary["excluded_before"], summary["to_leave_out"]) == (6, 2, 0)
    assert sat(*check, "--rules", "track,bytes,audio", "--json") == 0
    assert "leak" not in json.loads(capfd.readouterr().out)["counts"]


def test_a_table_is_checked_without_any_audio(
    tiny_audio_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("evaluation.csv").write_text("track_id\n1000204\n")
    same, other = "a" * 64, "b" * 64
    Path("sums.txt").write_text(
        f"{same} 02/1000102.mp3\n{same} 04/1000204.mp3\n{other} 01/1000101.mp3\n{other} 05/1000305.mp3\n"
    )
    table = str(tiny_audio_folder / "raw_30s.tsv")
    arguments = (table, "--against", "evaluation.csv", "--checksums", "sums.txt", "--rules", "track,bytes")
    assert sat(*arguments, "--fix", "out.txt") == 0
    out = capfd.readouterr().out
    assert "8 tracks, known by their table only" in out
    assert "2 groups of 4 tracks" in out
    assert "by track: 1 (the same track by its number)" in out
    assert "by bytes: 2, 1 of them by no rule above" in out
    assert "to leave out: 3, which leaves 5" in out
    names = read_path_list(Path("out.txt"))
    assert {name for name in names if ".low." not in name} == {
        "02/1000102.wav",
        "04/1000204.wav",
        "05/1000305.wav",
    }
    assert sat(*arguments, "--strict") == 2


def test_altered_copies_are_searched_for_and_those_of_the_evaluation_go(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rate = 16000
    random = np.random.default_rng(0)

    def song() -> np.ndarray:
        notes = [
            np.sin(2 * np.pi * random.uniform(200, 2000) * np.arange(rate // 5) / rate) for _ in range(100)
        ]
        return 0.3 * np.concatenate([note * np.exp(-np.linspace(0, 6, len(note))) for note in notes])

    first, second, third = song(), song(), song()
    for name, audio in {
        "music/a.wav": first,
        "music/b_quieter.wav": first[rate:] * 0.5,
        "music/c.wav": second,
        "music/d.wav": third,
        "evaluation/e.flac": second[2 * rate :] * 0.7,
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, audio, rate)
    arguments = ("music", "--against", "evaluation", "--duplicates", "--num-workers", "0")
    assert sat(*arguments, "--fix", "out.txt", "--json", "--output-dir", "out") == 0
    summary = json.loads(capfd.readouterr().out)
    kinds = {
        item["name"]: item["kind"] for item in summary["problems"] if item["kind"] in ("leak", "duplicate")
    }
    assert kinds == {"music/b_quieter.wav": "duplicate", "music/c.wav": "leak"}
    assert read_path_list(Path("out.txt")) == ["c.wav", "b_quieter.wav"]
    assert summary["leaks_by_rule"]["recording"] == 1
    assert any("pairs.html" in note for note in summary["notes"])


def test_help_names_the_limits_without_loading_torch(capfd: pytest.CaptureFixture[str]) -> None:
    assert sat("--help") == 0
    assert "--max-dc-offset" in capfd.readouterr().out
    code = "import sys, stable_audio_tools.cli.data; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
