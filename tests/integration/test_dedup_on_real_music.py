"""`sat dedup` as a user runs it: on real recordings and their altered copies, and again after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from stable_audio_tools.audio.files import read_audio

RATE = 22_050
SECONDS = 30.0


def changed(audio: np.ndarray) -> dict[str, tuple[str, Callable[[], np.ndarray], int]]:
    """Suffix, samples ``(T, C)`` and sample rate of each altered copy."""
    rate = RATE
    return {
        "reencoded": (".mp3", lambda: audio, rate),
        "softer": (".ogg", lambda: audio / 2, rate),
        "other rate": (".wav", lambda: soxr.resample(audio, rate, 32_000), 32_000),
        "padded": (".wav", lambda: np.pad(audio, ((3 * rate, 0), (0, 0))), rate),
        "excerpt": (".mp3", lambda: audio[7 * rate : 17 * rate + 99], rate),
        "faster": (".wav", lambda: soxr.resample(audio, rate * 1.03, rate), rate),
        "semitone": (".wav", lambda: soxr.resample(audio, rate * 2 ** (1 / 12), rate), rate),
    }


def write(path: Path, audio: np.ndarray, rate: int) -> None:
    subtype = {".mp3": "MPEG_LAYER_III", ".ogg": "VORBIS"}.get(path.suffix, "PCM_16")
    with soundfile.SoundFile(path, "w", rate, audio.shape[1], subtype=subtype) as file:
        for start in range(0, len(audio), 16_384):  # libvorbis overflows its stack on long writes
            file.write(audio[start : start + 16_384])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, jamendo_mini: Path) -> Path:
    """Half a minute of each of six recordings, and altered copies of two of them."""
    place = tmp_path_factory.mktemp("dedup-real")
    for number, path in enumerate(sorted((jamendo_mini / "audio").rglob("*.mp3"))):
        audio = read_audio(path, duration_seconds=SECONDS, sample_rate=RATE, channels=2)[0].T.numpy()
        write(place / f"{path.stem}.flac", audio, RATE)
        for kind, (suffix, make, rate) in changed(audio).items() if number < 2 else ():
            write(place / f"{path.stem} {kind}{suffix}", make(), rate)
    (place / "notes.mp3").write_text("not audio")
    return place


def command(folder: Path, output: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "stable_audio_tools.cli.main", "dedup", "--dataset-dir", str(folder)]
    return [*base, "--output-dir", str(output), "--model-path", "none", "--num-workers", "1", *more]


def dedup(folder: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, output, *more), capture_output=True, text=True, timeout=300)


def groups(output: Path) -> list[set[str]]:
    written = json.loads((output / "summary.json").read_text(encoding="utf-8"))["groups"]
    return [{Path(name).name for name in group} for group in written]


@pytest.fixture(scope="module")
def output(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dedup-real-out")
    done = dedup(folder, place)
    assert done.returncode == 0, done.stderr
    return place


def test_every_altered_copy_is_grouped_with_its_recording_and_nothing_else(
    folder: Path, output: Path
) -> None:
    copied = sorted({path.stem.split(" ")[0] for path in folder.iterdir() if " " in path.stem})
    assert len(copied) == 2
    expected = [{path.name for path in folder.glob(f"{stem}*")} for stem in copied]
    assert sorted(groups(output), key=sorted) == sorted(expected, key=sorted)


def test_the_best_recording_of_full_length_is_kept(output: Path) -> None:
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    for group in summary["groups"]:
        (kept,) = set(group) - set(summary["excluded"])
        assert kept.endswith(" other rate.wav"), "32 kHz; not the one with silence in front"


def test_the_change_is_measured(output: Path) -> None:
    lines = (output / "similar_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    found = {}
    for record in map(json.loads, lines):
        plain = next((k for k in "ab" if record[k].endswith(".flac")), None)
        if plain and "speed" in record and record["duplicate"]:
            turned = plain == "b"  # then the copy is the first track
            kind = Path(record["a" if turned else "b"]).stem.split(" ", 1)[-1]
            speed = 1 / record["speed"] if turned else record["speed"]
            found[kind] = speed, -record["semitones"] if turned else record["semitones"]
    assert found["faster"] == (pytest.approx(1.03, abs=0.003), pytest.approx(0.51, abs=0.1))
    assert found["semitone"] == (pytest.approx(2 ** (1 / 12), abs=0.003), pytest.approx(1.0, abs=0.1))
    assert found["softer"] == (pytest.approx(1.0, abs=0.001), pytest.approx(0.0, abs=0.05))


def test_a_file_that_is_no_audio_is_named_and_the_rest_goes_on(output: Path) -> None:
    (failure,) = json.loads((output / "failed_files.json").read_text(encoding="utf-8"))
    assert failure["file"].endswith("notes.mp3")


def test_evaluation_tracks_take_their_copies_out(folder: Path, tmp_path: Path) -> None:
    held_out, training = tmp_path / "held out", tmp_path / "training"
    for place in (held_out, training):
        place.mkdir()
    originals = sorted(folder.glob("*.flac"))
    (held_out / "clip.mp3").write_bytes(next(folder.glob(f"{originals[0].stem} excerpt.mp3")).read_bytes())
    for path in originals[:2]:
        (training / path.name).write_bytes(path.read_bytes())
    done = dedup(training, tmp_path / "out", "--evaluation-dir", str(held_out))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["excluded"] == [f"training/{originals[0].name}"]
    assert summary["evaluation_twins"] == {f"training/{originals[0].name}": "evaluation: held out/clip.mp3"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_run_goes_on_and_ends_the_same(folder: Path, output: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    process = subprocess.Popen(command(folder, place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(place.glob("fingerprints/*/[!.]*.npz"))) < 4:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "exclude_paths.txt").exists()
    before = {path: path.stat().st_mtime_ns for path in place.glob("fingerprints/*/[!.]*.npz")}
    done = dedup(folder, place)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was heard is not heard again"
    for name in ("exclude_paths.txt", "similar_pairs.jsonl"):
        assert (place / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--no-verify"], "landmarks"),
        (["--min-agreement", "2"], "min agreement"),
        (["--evaluation-dir", "nowhere"], "nowhere"),
        (["--evaluation-dir", "a", "--evaluation-config", "b.json"], "exactly one"),
        (["--licenses", "nowhere.txt"], "nowhere.txt"),
        (["--max-index-gib", "0"], "max index gib"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    done = dedup(folder, tmp_path / "out", *more)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()
