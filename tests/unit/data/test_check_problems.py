"""What is called a fault, which copy stays, and what the lists and lines say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stable_audio_tools.data.check.kinds import KINDS, Thresholds
from stable_audio_tools.data.check.known import Known
from stable_audio_tools.data.check.measure import FileFacts, check_file
from stable_audio_tools.data.check.problems import problems_of
from stable_audio_tools.data.check.run import CheckReport, Recording, check_dataset
from stable_audio_tools.data.check.summary import printable, summary_of, text_lines, write_exclude_list
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.leakage import Identity
from stable_audio_tools.data.paths import append_path_list, read_path_list
from stable_audio_tools.data.sources import FileSource
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.schema.reader import parse_dataset_config

RATE = 44100


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> FileFacts:
    """A file with nothing wrong in it."""
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    samples = np.random.default_rng(0).uniform(-0.4, 0.4, (3 * RATE, 2))
    soundfile.write(path, samples + 0.2 * np.sin(np.arange(3 * RATE))[:, None], RATE)
    return check_file(FileSource(path))


def track(name: str = "a.wav") -> Track:
    return Track(0, f"d/{name}", Path(name), name, Path("."), "d", None)


def kinds_of(facts: FileFacts, known: Known | None = None, name: str = "a.wav", **figures: Any) -> list[str]:
    assert facts.measured is not None
    changed = replace(facts, measured=replace(facts.measured, **figures))
    known = known or Known({"prompt": "words"})
    return [item.kind for item in problems_of(track(name), changed, known, Thresholds())]


def test_a_track_with_nothing_wrong_has_no_problem(sound: FileFacts) -> None:
    assert kinds_of(sound) == []


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        ({"seconds": 0.99}, "short"),
        ({"seconds": 3601.0}, "long"),
        ({"loudness_lufs": -45.1}, "quiet"),
        ({"silence_seconds": 1.6}, "mostly-silent"),
        ({"dc_offset": -0.011}, "dc-offset"),
        ({"correlation": -0.91}, "anti-phase"),
        ({"clipped_runs": 100, "first_clip_seconds": 0.5}, "clipped"),
        ({"sample_rate": 192000}, "unusual-rate"),
        ({"sample_rate": 11025}, "unusual-rate"),
        ({"channels": 8}, "many-channels"),
        ({"silent_channels": 1}, "dead-channel"),
        ({"not_finite_samples": 1}, "not-finite"),
        ({"rms_dbfs": None, "peak_dbfs": None}, "silent"),
        ({"rms_dbfs": -90.0, "peak_dbfs": -85.0}, "silent"),
        ({"rms_dbfs": -90.0, "peak_dbfs": -10.0}, "constant"),
    ],
)
def test_one_figure_beyond_its_limit_is_one_fault(
    sound: FileFacts, figures: dict[str, Any], kind: str
) -> None:
    assert kinds_of(sound, **figures) == [kind]


def test_what_is_known_of_a_track_is_judged_too(sound: FileFacts) -> None:
    assert kinds_of(sound, Known({})) == ["no-caption"]
    assert kinds_of(sound, Known({"prompt": "  "})) == ["no-caption"]
    assert kinds_of(sound, Known(error="broken")) == ["metadata"]
    assert kinds_of(sound, Known(rejected=True)) == ["rejected"]
    assert kinds_of(sound, name="a\nb.wav") == ["odd-name"]
    assert kinds_of(sound, name="caf\u00e9 \U0001f468\u200d\U0001f469 \U0001f3b5.wav") == []
    unread = FileFacts("x", 0, 0, None, None, "no such file")
    assert [p.kind for p in problems_of(track(), unread, Known(), Thresholds())] == ["unreadable"]


def write(folder: Path, name: str, seed: int, seconds: float = 1.5) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(-9000, 9000, (round(seconds * RATE), 2)).astype(np.int16)
    soundfile.write(path, samples, RATE)


def index_of(*folders: Path, **keys: Any) -> TrackIndex:
    entries = [{"id": folder.name, "path": str(folder)} for folder in folders]
    config = {"dataset_type": "audio_dir", "datasets": entries, "on_error": "skip", **keys}
    return TrackIndex.from_config(parse_dataset_config(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two copies of one sound, of which the second has a caption, another sound, and an empty file."""
    root = tmp_path / "music"
    write(root, "a.wav", 1)
    write(root, "b.flac", 1)
    (root / "b.txt").write_text("a caption")
    write(root, "c.wav", 2)
    (root / "d.wav").touch()
    return root


def check(*folders: Path, **options: Any) -> CheckReport:
    return check_dataset("x", index_of(*folders), folders[0].parent / "out", num_workers=0, **options)


def excluded(report: CheckReport, *also: str) -> dict[str, str]:
    return {report.index[row].relpath: kind for row, kind in report.excluded(also).items()}


def test_of_exact_copies_the_one_with_a_caption_stays(folder: Path) -> None:
    report = check(folder)
    assert excluded(report) == {"a.wav": "duplicate", "d.wav": "unreadable"}
    assert excluded(report, "no-caption") == {**excluded(report), "c.wav": "no-caption"}
    assert summary_of(report)["copies"] == [["music/a.wav", "music/b.flac"]]


def test_a_copy_of_a_track_that_leaks_leaks(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"artist": "Bo"}))
    report = check(folder, evaluation=[Identity("e", artists=frozenset({"bo"}))])
    assert excluded(report) == {"a.wav": "leak", "b.flac": "leak", "d.wav": "unreadable"}
    assert summary_of(report)["leaks_by_rule"] == {
        "track": 0,
        "bytes": 0,
        "audio": 1,
        "recording": 0,
        "artist": 1,
    }


def test_the_same_audio_in_another_container_leaks(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "evaluation", "other.wav", 2)
    digest = check_file(FileSource(tmp_path / "evaluation/other.wav")).measured
    assert digest is not None
    report = check(folder, evaluation=[Identity("e", audio_sha256=digest.audio_sha256)])
    assert excluded(report)["c.wav"] == "leak"
    assert excluded(check(folder, evaluation=[], rules=["track"])).get("c.wav") is None
    with pytest.raises(UsageError, match="unknown leakage rule"):
        check(folder, rules=["nonsense"])


def test_a_search_for_altered_copies_decides_anew_who_stays(folder: Path) -> None:
    report = check(folder)
    altered = report.with_recordings([Recording([0, 1, 2], stays=0)])
    assert excluded(altered) == {"b.flac": "duplicate", "c.wav": "duplicate", "d.wav": "unreadable"}
    heard = report.with_recordings([Recording([1, 2], stays=None, evaluation_name="e")])
    # the copy of b.flac too, although the search did not name it
    assert excluded(heard) == {"a.wav": "leak", "b.flac": "leak", "c.wav": "leak", "d.wav": "unreadable"}
    assert excluded(report.with_recordings([])) == excluded(report)


def test_copies_that_are_silent_are_not_merged(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / "music" / name, np.zeros((RATE, 2)), RATE)
    report = check(tmp_path / "music")
    assert (list(report.copies), excluded(report)) == ([], {"a.wav": "silent", "b.wav": "silent"})


def test_the_list_names_a_path_of_two_folders_absolutely_and_keeps_what_it_held(tmp_path: Path) -> None:
    write(tmp_path / "one", "same.wav", 1)
    write(tmp_path / "two", "same.wav", 2)
    write(tmp_path / "two", "good.wav", 3)
    write(tmp_path / "two", "odd\n.wav", 3)
    (tmp_path / "two/same.wav").write_bytes(b"")
    path = tmp_path / "exclude.txt"
    path.write_bytes(b"# mine\r\nolder.wav\r\n#last")
    report = check(tmp_path / "one", tmp_path / "two")
    assert write_exclude_list(report, path) == 2
    assert read_path_list(path) == ["older.wav", str(tmp_path / "two/same.wav"), "odd\n.wav"]
    assert path.read_bytes().startswith(b"# mine\r\nolder.wav\r\n#last\n")
    before = path.read_bytes()
    assert write_exclude_list(report, path) == 0
    assert path.read_bytes() == before
    config = {"exclude_paths_file": str(path)}
    left = index_of(tmp_path / "one", tmp_path / "two", **config)
    assert [item.sample_id for item in left] == ["one/same.wav", "two/good.wav"]


def test_a_list_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text('"half a name\n')
    with pytest.raises(DataError, match="not a JSON string"):
        append_path_list(path, {"x": ["a.wav"]})
    assert path.read_text() == '"half a name\n'


def test_lines_and_json_say_the_same(folder: Path) -> None:
    report = check(folder)
    lines = "\n".join(text_lines(report))
    assert "x: 4 tracks, 0.00 hours" in lines
    assert "44100 Hz: 3" in lines
    assert "prompts       1 of 4" in lines
    assert "unreadable: 1 (cannot be decoded, left out by --fix)" in lines
    assert "music/d.wav: the file is empty" in lines
    facts = json.loads(json.dumps(summary_of(report)))
    assert facts["counts"] == {"unreadable": 1, "duplicate": 1, "no-caption": 2}
    assert set(facts["counts"]) <= set(KINDS)
    assert facts["spread"]["seconds"] == [1.5] * 5


def test_names_are_shown_on_one_line() -> None:
    assert printable("a\nb\t\U0001f3b5\u202e.wav") == "a\\nb\\t\U0001f3b5\\u202e.wav"


def test_a_metadata_function_that_needs_audio_is_given_some(tmp_path: Path) -> None:
    write(tmp_path / "music", "a.wav", 1)
    write(tmp_path / "music", "b.wav", 2)
    write(tmp_path / "music", "c.wav", 3)
    module = tmp_path / "metadata.py"
    module.write_text(
        "def get_custom_metadata(info, audio):\n"
        "    if info['relpath'] == 'b.wav':\n"
        "        return {'__reject__': True}\n"
        "    if info['relpath'] == 'c.wav':\n"
        "        raise ValueError('no c')\n"
        "    return {'prompt': f'{audio.shape[0]} channels, {info[\"seconds_total\"]} s'}\n"
    )
    index = index_of(tmp_path / "music", custom_metadata_module=str(module))
    report = check_dataset("x", index, tmp_path / "out", num_workers=0)
    assert report.known[0].prompt == "2 channels, 2 s"
    found = {item.name: (item.kind, item.detail) for item in report.problems}
    assert found["music/b.wav"] == ("rejected", "__reject__")
    assert found["music/c.wav"][0] == "metadata"
    assert "no c" in found["music/c.wav"][1]
