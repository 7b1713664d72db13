"""The download commands as a user runs them: killed, interrupted, misled, and run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import Mirror, SmallJamendo, serve

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "download_mtg_jamendo.py"


@pytest.fixture(scope="module")
def small() -> SmallJamendo:
    return SmallJamendo(count=12, size=300_000)


@pytest.fixture
def mirrors(small: SmallJamendo) -> Iterator[tuple[Mirror, Mirror]]:
    with serve(Mirror(small.tables)) as tables, serve(Mirror(dict(small.audio))) as audio:
        yield tables, audio


def command(mirrors: tuple[Mirror, Mirror], audio_dir: Path, *more: str) -> list[str]:
    tables, audio = mirrors
    where = ["--audio-dir", str(audio_dir), "--base-url", audio.url, "--metadata-url", tables.url]
    return [sys.executable, str(SCRIPT), *where, "--retry-seconds", "0.01", "--workers", "3", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "COLUMNS": "200"}


def run(args: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, env=environment(), capture_output=True, text=True, timeout=120)


def tree(folder: Path) -> dict[str, bytes]:
    """Every visible file but the record of the run, which has a date."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "download.json" and not _hidden(path.relative_to(folder))
    }


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@pytest.mark.parametrize("mode", ["track", "tar"])
def test_killed_at_random_and_run_again_gives_identical_files(
    mode: str, mirrors: tuple[Mirror, Mirror], small: SmallJamendo, tmp_path: Path
) -> None:
    _, audio = mirrors
    undisturbed = run(command(mirrors, tmp_path / "one/audio", "--mode", mode))
    assert undisturbed.returncode == 0, undisturbed.stderr
    audio.faults["*"], audio.for_ever = [("slow", 0.02)], True  # about two seconds a run
    draw, killed = random.Random(7), 0
    for _ in range(4):
        already = len(audio.requests)
        process = subprocess.Popen(
            command(mirrors, tmp_path / "two/audio", "--mode", mode),
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and len(audio.requests) == already:
            time.sleep(0.005)  # not before it has begun to fetch
        time.sleep(draw.uniform(0.0, 0.5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, data in tree(tmp_path / "two").items():
            if name.endswith(".mp3"):
                assert data == small.tracks[name.removeprefix("audio/")]  # a name is a promise, at any moment
    assert killed >= 2
    audio.faults.clear()
    again = run(command(mirrors, tmp_path / "two/audio", "--mode", mode))
    assert again.returncode == 0, again.stderr
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert any(ranges is not None for _, _, ranges in audio.requests)  # some byte was not fetched twice
    assert not list((tmp_path / "two").rglob("*.part*"))


def test_interrupted_says_how_to_go_on(mirrors: tuple[Mirror, Mirror], tmp_path: Path) -> None:
    _, audio = mirrors
    audio.faults["*"], audio.for_ever = [("slow", 1.0)], True
    process = subprocess.Popen(
        command(mirrors, tmp_path / "audio"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores interrupts, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not audio.requests:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command again to go on where it stopped" in said
    assert "Traceback" not in said


def test_what_lacks_ends_in_a_line_and_a_code(
    mirrors: tuple[Mirror, Mirror], small: SmallJamendo, tmp_path: Path
) -> None:
    _, audio = mirrors
    name = sorted(small.tracks)[0]
    audio.faults[f"raw_30s/audio/{name}"], audio.for_ever = [("page", 404)], True
    del audio.files[f"raw_30s/audio/raw_30s_audio-{name[:2]}.tar"]
    done = run(command(mirrors, tmp_path / "audio"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: 1 of 12 files are missing, {name} first; run the same command again")
    assert f"missing {name}:" in done.stderr
    assert "answers 404" in done.stderr
    assert len(list((tmp_path / "audio").glob("*/*.mp3"))) == 11


def test_a_dry_run_prints_its_plan_on_standard_output(mirrors: tuple[Mirror, Mirror], tmp_path: Path) -> None:
    done = run(command(mirrors, tmp_path / "audio", "--dry-run", "--target", "4", "--selection", "balanced"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "chosen: 4 tracks of raw_30s (all), 0.1 hours"
    assert lines[1].startswith("licences: ")
    assert lines[2].startswith("here already: 0; to come: 1.2 MB")
    assert not (tmp_path / "audio").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--quality", "best"], "--quality: 'best' is not known"),
        (["--target", "0"], "--target: expected 1 or more"),
        (["--tags", "yodel"], "no track of this table has the tag 'yodel'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    more: list[str], said: str, mirrors: tuple[Mirror, Mirror], tmp_path: Path
) -> None:
    done = run(command(mirrors, tmp_path / "audio", *more))
    assert done.returncode == 2
    assert said in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_nobody_at_the_other_end_is_said(tmp_path: Path) -> None:
    nowhere = Mirror(url="http://127.0.0.1:9")
    done = run([*command((nowhere, nowhere), tmp_path / "audio"), "--retries", "1"])
    assert done.returncode == 2
    assert "data/raw_30s.tsv: http://127.0.0.1:9 no answer" in done.stderr
    program = [sys.executable, "-m", "stable_audio_tools.cli.main", "download-song-describer"]
    flags = ["--output-dir", str(tmp_path / "sd"), "--base-url", nowhere.url, "--retries", "0"]
    describer = run([*program, *flags])
    assert describer.returncode == 2
    assert "5 of 5 files are missing, song_describer.csv first" in describer.stderr
