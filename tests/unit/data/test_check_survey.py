"""Files are measured once, by any number of processes, whatever a decoder does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stable_audio_tools.data.check import survey as survey_module
from stable_audio_tools.data.check.measure import FileFacts, check_file
from stable_audio_tools.data.check.survey import survey
from stable_audio_tools.data.sources import FileSource, Source
from stable_audio_tools.errors import UsageError

RATE = 8000


def write_tracks(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:02d}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, RATE), RATE)
    return paths


def sources(paths: list[Path]) -> list[Source]:
    return [FileSource(path) for path in paths]


def test_processes_change_nothing(tmp_path: Path) -> None:
    paths = write_tracks(tmp_path / "music", survey_module._WORTH_PROCESSES + 2)
    (tmp_path / "music/empty.wav").touch()
    paths = [tmp_path / "music/empty.wav", *reversed(paths)]
    here = survey(sources(paths), tmp_path / "here.jsonl", num_workers=0)
    apart = survey(sources(paths), tmp_path / "apart.jsonl", num_workers=2)
    assert here == apart
    assert [facts.path for facts in here] == [str(path) for path in paths]
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "apart.jsonl").read_bytes()


def test_what_is_known_is_not_read_again_and_what_changed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_tracks(tmp_path / "music", 3)
    (tmp_path / "music/broken.wav").write_bytes(b"no")
    paths.append(tmp_path / "music/broken.wav")
    journal = tmp_path / "files.jsonl"
    first = survey(sources(paths), journal, num_workers=0)
    read: list[str] = []

    def counted(source: Source) -> FileFacts:
        read.append(source.path.name)
        return check_file(source)

    monkeypatch.setattr(survey_module, "check_file", counted)
    assert survey(sources(paths), journal, num_workers=0) == first
    assert read == ["broken.wav"]
    os.utime(paths[1], ns=(0, 0))
    read.clear()
    again = survey(sources(paths[:3]), journal, num_workers=0)
    assert read == ["01.wav"]
    assert again[1].measured == first[1].measured
    assert len(journal.read_text().splitlines()) == 3


def test_lines_that_are_not_whole_or_of_another_version_are_measured_again(tmp_path: Path) -> None:
    paths = write_tracks(tmp_path / "music", 3)
    journal = tmp_path / "files.jsonl"
    first = survey(sources(paths), journal, num_workers=0)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["version"] = 0
    del lines[1]["measured"]["channels"]
    text = "\n".join(json.dumps(line) for line in lines)
    journal.write_text("[1]\nnonsense\n" + text[:-20])
    assert survey(sources(paths), journal, num_workers=0) == first


def test_a_file_that_takes_its_process_down_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_tracks(tmp_path / "music", 6)
    monkeypatch.setattr(survey_module, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(survey_module, "check_file", _crash_on_03)
    found = survey(sources(paths), tmp_path / "files.jsonl", num_workers=2)
    assert [facts.error for facts in found if facts.measured is None] == [survey_module._CRASHED]
    assert found[3].measured is None


def _crash_on_03(source: Source) -> FileFacts:
    if source.path.name == "03.wav":
        os._exit(11)
    return check_file(source)


def test_hashes_tell_the_audio_from_its_container(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (RATE, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    soundfile.write(tmp_path / "mono.wav", samples.reshape(-1, 1), RATE)
    samples[-1] += 1
    soundfile.write(tmp_path / "b.wav", samples, RATE)
    names = ("a.wav", "a.flac", "b.wav", "mono.wav")
    found = {name: check_file(FileSource(tmp_path / name)) for name in names}
    audio = {name: facts.measured.audio_sha256 for name, facts in found.items() if facts.measured}
    assert audio["a.wav"] == audio["a.flac"]
    assert len(set(audio.values())) == 3
    assert len({facts.sha256 for facts in found.values()}) == 4


def test_a_long_file_measured_in_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).uniform(-1.2, 1.2, (10 * RATE, 2)).clip(-1, 1)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    whole = check_file(FileSource(tmp_path / "a.wav"))
    monkeypatch.setattr("stable_audio_tools.data.check.measure._BLOCK_SAMPLES", 3000)
    assert check_file(FileSource(tmp_path / "a.wav")) == whole


def test_figures_of_known_signals(tmp_path: Path) -> None:
    time = np.arange(4 * RATE) / RATE
    left = 0.5 * np.sin(2 * np.pi * 200 * time)
    left[:RATE] = 0.0
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left + 0.02], axis=1), RATE, subtype="FLOAT")
    found = check_file(FileSource(tmp_path / "a.wav")).measured
    assert found is not None
    assert (found.sample_rate, found.channels, found.seconds, found.format) == (RATE, 2, 4.0, "wav")
    assert found.peak_dbfs == pytest.approx(20 * np.log10(0.52), abs=0.01)
    assert found.correlation == -1.0
    assert found.dc_offset == pytest.approx(0.02, abs=1e-4)
    assert (found.leading_silence_seconds, found.longest_silence_start_seconds) == (1.0, 0.0)
    assert found.silence_seconds == 1.0
    assert found.mono_mix_dbfs is None or found.mono_mix_dbfs < -100


def test_a_negative_number_of_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num workers is -1"):
        survey([], tmp_path / "files.jsonl", num_workers=-1)
