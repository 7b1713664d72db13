"""``sat data check`` on a folder of everything that can be wrong; and training on it, as the user chose."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from stable_audio_tools.data.paths import read_path_list

RATE = 24000
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2
ODD = "line\nbreak \U0001f3b5.wav"
SOUND = {
    "anti.wav",
    "clipped.wav",
    "eight.wav",
    "fast.wav",
    "good/one.wav",
    "good/two.flac",
    "long.wav",
    "short.wav",
}
"""What can be trained on, good or not, with ODD."""

BROKEN = {
    "circle.wav": "symbolic link",
    "corrupt.mp3": "not a readable audio file",
    "corrupt.wav": "not a readable audio file",
    "cut.wav": "truncated",
    "denied.wav": "Permission denied",
    "empty.wav": "the file is empty",
    "link.wav": "a symbolic link to ../nowhere.wav, which does not exist",
}


def noise(seed: int, seconds: float, rate: int = RATE, channels: int = 1) -> NDArray[np.float32]:
    length = round(seconds * rate)
    loud = np.repeat(np.random.default_rng(seed).uniform(0.05, 0.3, length // 800 + 1), 800)[:length]
    return (np.random.default_rng(seed + 100).uniform(-1, 1, (length, channels)) * loud[:, None]).astype("f4")


def write_long_wav(path: Path, seconds: int) -> None:
    """A WAV whose samples are a hole in the file, but for a second at its start."""
    soundfile.write(path, noise(9, 1.0, 8000), 8000, subtype="PCM_16")
    head = bytearray(path.read_bytes()[:44])
    assert head[36:40] == b"data"
    head[40:44] = (seconds * 16000).to_bytes(4, "little")
    head[4:8] = (36 + seconds * 16000).to_bytes(4, "little")
    with open(path, "r+b") as file:
        file.write(head)
        file.truncate(44 + seconds * 16000)


def write_gallery(folder: Path) -> None:
    (folder / "good").mkdir(parents=True)
    (folder / "locked").mkdir()
    one = (noise(1, 2.0) * 32767).astype(np.int16)
    soundfile.write(folder / "good/one.wav", one, RATE)
    soundfile.write(folder / "good/two.flac", noise(2, 2.0, channels=2), RATE)
    soundfile.write(folder / "good/one_again.flac", one, RATE)
    (folder / "good/one.txt").write_text("a caption")
    soundfile.write(folder / "short.wav", noise(3, 0.2), RATE)
    soundfile.write(folder / "eight.wav", noise(4, 2.0, channels=8), RATE)
    soundfile.write(folder / "fast.wav", noise(5, 2.0, 192000), 192000)
    soundfile.write(folder / ODD, noise(6, 2.0), RATE)
    soundfile.write(folder / "denied.wav", noise(7, 2.0), RATE)
    soundfile.write(folder / "locked/inside.wav", noise(8, 2.0), RATE)
    write_long_wav(folder / "long.wav", 3 * 3600)
    soundfile.write(folder / "silent.wav", np.zeros((2 * RATE, 2)), RATE)
    soundfile.write(folder / "silent_too.wav", np.zeros((2 * RATE, 2)), RATE)
    soundfile.write(folder / "constant.wav", np.full((2 * RATE, 1), 0.3), RATE)
    left = noise(10, 2.0)
    soundfile.write(folder / "anti.wav", np.concatenate([left, -left], axis=1), RATE)
    soundfile.write(folder / "clipped.wav", np.clip(np.sin(np.arange(2 * RATE) / 20) * 1.5, -1, 1), RATE)
    holed = noise(11, 2.0)
    holed[5] = np.nan
    soundfile.write(folder / "nan.wav", holed, RATE, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "corrupt.wav").write_bytes(b"RIFF" + bytes(range(256)) * 40)
    (folder / "corrupt.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    (folder / "cut.wav").write_bytes((folder / "good/one.wav").read_bytes()[:20_000])
    (folder / "link.wav").symlink_to("../nowhere.wav")
    (folder / "circle.wav").symlink_to("circle.wav")
    (folder / "music.wma").write_bytes(b"0")
    (folder / "notes.txt").write_text("not a track")


def _give_up_reading_everything() -> None:
    """Root may read any file; a child process that gives these powers up may not, nor may its children."""
    if os.geteuid() == 0:
        for power in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, power, 0, 0, 0)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python <arguments>`` as a user whom the modes of files hold for."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=_give_up_reading_everything)


def sat(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``sat <arguments>``."""
    return run("-m", "stable_audio_tools.cli.main", *arguments)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, with a file and a subfolder that may not be read."""
    folder = tmp_path_factory.mktemp("gallery") / "music"
    write_gallery(folder)
    (folder / "denied.wav").chmod(0)
    (folder / "locked").chmod(0)
    read_it = f"open({str(folder / 'denied.wav')!r})"
    if run("-c", read_it).returncode == 0:
        pytest.skip("root cannot give up reading every file here")
    yield folder
    (folder / "locked").chmod(0o700)


@pytest.fixture(scope="module")
def checked(gallery: Path) -> tuple[dict[str, Any], Path, Path]:
    """The summary of a check of the gallery, its folder of outputs, and its exclude list."""
    output, fix = gallery.parent / "out", gallery.parent / "exclude.txt"
    fix.write_text("# by hand\nold.wav")
    done = sat(
        "data", "check", str(gallery), "--output-dir", str(output), "--fix", str(fix), "--num-workers", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "\nproblems\n" in done.stdout
    return json.loads((output / "summary.json").read_text()), output, fix


def names_by_kind(summary: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in summary["problems"]:
        found.setdefault(item["kind"], []).append(item["name"].removeprefix("music/"))
    return found


def test_every_fault_is_named(checked: tuple[dict[str, Any], Path, Path], gallery: Path) -> None:
    summary, _, _ = checked
    kinds = names_by_kind(summary)
    assert kinds["unreadable"] == list(BROKEN)
    details = {item["name"]: item["detail"] for item in summary["problems"] if item["kind"] == "unreadable"}
    for name, words in BROKEN.items():
        assert words in details[f"music/{name}"]
        assert str(gallery) not in details[f"music/{name}"]
    assert kinds["not-finite"] == ["nan.wav"]
    assert kinds["silent"] == ["silent.wav", "silent_too.wav"]
    assert kinds["constant"] == ["constant.wav"]
    assert kinds["duplicate"] == ["good/one_again.flac"]
    assert kinds["unsupported"] == [str(gallery / "music.wma")]
    assert kinds["unlisted"] == [str(gallery / "locked")]
    assert kinds["anti-phase"] == ["anti.wav"]
    assert kinds["clipped"] == ["clipped.wav"]
    assert kinds["mostly-silent"] == ["long.wav"]
    assert kinds["short"] == ["short.wav"]
    assert kinds["long"] == ["long.wav"]
    assert kinds["unusual-rate"] == ["fast.wav", "long.wav"]
    assert kinds["many-channels"] == ["eight.wav"]
    assert kinds["odd-name"] == [ODD]
    assert "good/one.wav" not in kinds["no-caption"]


def test_what_is_right_is_said_too(checked: tuple[dict[str, Any], Path, Path], gallery: Path) -> None:
    summary, output, _ = checked
    files = [json.loads(line) for line in (output / "files.jsonl").read_text().splitlines()]
    assert summary["tracks"] == len(files) == 21
    assert summary["readable"] == 21 - len(BROKEN)
    assert [file["path"] for file in files] == sorted(file["path"] for file in files)
    assert summary["with_prompt"] == 1
    assert summary["channels"]["8"] == 1
    assert summary["sample_rates"]["192000"] == 1
    assert summary["hours"] == pytest.approx(3.0, abs=0.02)


def test_the_exclude_list_leaves_out_what_cannot_be_used_and_keeps_what_it_held(
    checked: tuple[dict[str, Any], Path, Path],
) -> None:
    _, _, fix = checked
    useless = {"nan.wav", "silent.wav", "silent_too.wav", "constant.wav", "good/one_again.flac"}
    assert set(read_path_list(fix)) == {"old.wav", *BROKEN, *useless}
    assert fix.read_text().startswith("# by hand\nold.wav\n")


def test_the_page_names_every_fault_and_plays_some(checked: tuple[dict[str, Any], Path, Path]) -> None:
    _, output, _ = checked
    page = (output / "report.html").read_text()
    for name in [*BROKEN, "eight.wav", "fast.wav", "short.wav", "line\\nbreak"]:
        assert name in page
    assert page.count("<audio") >= 5
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_check_reads_only_what_changed_or_failed(
    checked: tuple[dict[str, Any], Path, Path], gallery: Path
) -> None:
    first, output, fix = checked
    done = sat("data", "check", str(gallery), "--output-dir", str(output), "--fix", str(fix), "--json")
    assert done.returncode == 0, done.stderr
    assert f"files: {21 - len(BROKEN)} of 21 are known" in done.stderr
    assert "0 paths added" in done.stderr
    second = json.loads(done.stdout)
    assert second == {**first, "excluded_before": 0}


def test_strict_ends_with_an_error(checked: tuple[dict[str, Any], Path, Path], gallery: Path) -> None:
    done = sat("data", "check", str(gallery), "--output-dir", str(checked[1]), "--strict")
    assert done.returncode == 2
    assert "12 of 21 tracks must be left out" in done.stderr.splitlines()[-1]


TRAINING = """
import json, sys
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.errors import DataError
config = json.loads(sys.argv[1])
loader = create_dataloader_from_config(config, 1, 8192, 24000, num_workers=0, shuffle=False)
try:
    used = [info for _, infos in loader for info in infos]
except DataError as error:
    sys.exit(f"stopped: {error}")
print(json.dumps([[info["relpath"], info.get("replaced")] for info in used]))
"""


def train_on(folder: Path, **keys: Any) -> subprocess.CompletedProcess[str]:
    """One epoch of crops of the folder, in a process that may not read everything."""
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "music", "path": str(folder)}], **keys}
    return run("-c", TRAINING, json.dumps(config))


def test_training_stops_at_the_first_broken_file_and_names_it(gallery: Path) -> None:
    done = train_on(gallery, on_error="raise")
    assert done.returncode == 1
    assert f"{gallery / 'locked'}: cannot be listed: Permission denied" in done.stderr


def test_training_goes_on_where_errors_are_skipped_and_row_i_stays_track_i(gallery: Path) -> None:
    done = train_on(gallery, on_error="skip")
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    assert len(used) == 21
    assert {name for name, replaced in used if replaced is None}.isdisjoint(BROKEN)
    assert {replaced.removeprefix("music/") for _, replaced in used if replaced} == set(BROKEN)
    for name in [*BROKEN, "locked"]:
        assert str(gallery / name) in done.stderr


def test_training_with_the_exclude_list_meets_no_broken_file(
    checked: tuple[dict[str, Any], Path, Path], gallery: Path
) -> None:
    (gallery / "locked").chmod(0o700)
    try:
        done = train_on(gallery, on_error="raise", exclude_paths_file=str(checked[2]))
    finally:
        (gallery / "locked").chmod(0)
    assert done.returncode == 0, done.stderr
    used = {name for name, _ in json.loads(done.stdout)}
    assert used == SOUND | {ODD, "locked/inside.wav"}


def test_a_check_that_is_killed_goes_on_and_leaves_no_process_behind(tmp_path: Path) -> None:
    folder, output = tmp_path / "music", tmp_path / "out"
    folder.mkdir()
    soundfile.write(folder / "0.wav", noise(0, 15.0, 44100, 2), 44100)
    for number in range(1, 30):
        os.link(folder / "0.wav", folder / f"{number}.wav")
    command = ["-m", "stable_audio_tools.cli.main", "data", "check", str(folder), "--output-dir", str(output)]
    first = subprocess.Popen([sys.executable, *command, "--num-workers", "2"], start_new_session=True)
    journal = output / "files.jsonl"
    try:
        while first.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = journal.read_bytes().count(b"\n")
    assert 3 <= done < 30
    until = time.monotonic() + 60
    while _still_runs(first.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _still_runs(first.pid)
    with open(journal, "ab") as file:
        file.write(b'{"version": 1, "path": "cut o')
    second = run(*command, "--num-workers", "0", "--json")
    assert second.returncode == 0, second.stderr
    known = int(second.stderr.split("files: ")[1].split(" of 30 are known")[0])
    assert 3 <= known < 30
    summary = json.loads(second.stdout)
    assert (summary["tracks"], summary["readable"], summary["counts"]["duplicate"]) == (30, 30, 29)


def _still_runs(session: int) -> bool:
    """Whether a process of the session is left."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True)
    return any("Z" not in line for line in listed.stdout.splitlines())
