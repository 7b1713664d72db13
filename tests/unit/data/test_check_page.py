"""The page of a check: everything on it, safely, in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stable_audio_tools.audio.plots import histogram_png
from stable_audio_tools.data.check.page import write_page
from stable_audio_tools.data.check.run import CheckReport, check_dataset
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.leakage import Identity
from stable_audio_tools.errors import UsageError
from stable_audio_tools.schema.reader import parse_dataset_config

RATE = 44100


def report_of(folder: Path) -> CheckReport:
    entry = {"id": "x", "path": str(folder)}
    config = {"dataset_type": "audio_dir", "datasets": [entry], "on_error": "skip"}
    index = TrackIndex.from_config(parse_dataset_config(config))
    evaluation = [Identity("<i>e</i>", artists=frozenset({"bo"}))]
    return check_dataset("<b>x</b>", index, folder.parent / "out", evaluation=evaluation, num_workers=0)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    folder = tmp_path_factory.mktemp("page") / "music"
    folder.mkdir()
    draws = np.random.default_rng(0)
    soundfile.write(folder / "<script>alert(1)<.wav", draws.uniform(-0.5, 0.5, (RATE, 8)), RATE)
    (folder / "<script>alert(1)<.txt").write_text("<img src=x>")
    (folder / "<script>alert(1)<.json").write_text('{"artist": "Bo"}')
    soundfile.write(folder / "loud.wav", np.clip(2 * np.sin(np.arange(RATE) / 30), -1, 1), RATE)
    (folder / "empty.wav").touch()
    return report_of(folder)


def test_the_page_holds_figures_plots_problems_and_players(report: CheckReport, tmp_path: Path) -> None:
    page = write_page(report, tmp_path / "report.html").read_text()
    for words in (
        "3 tracks",
        "clipped: x/loud.wav",
        "2 can be decoded",
        "the file is empty",
        "many-channels: 1",
    ):
        assert words in page
    assert page.count("<img ") == 4  # correlation is of the one pair
    assert page.count("<audio ") == 2  # a leak of eight channels, and what is clipped
    assert "Too close to the evaluation set" in page


def test_names_and_captions_are_words_and_not_markup(report: CheckReport, tmp_path: Path) -> None:
    page = write_page(report, tmp_path / "report.html").read_text()
    for foreign in ("<script>", "<img src=x>", "<i>e</i>", "<b>x</b>"):
        assert foreign not in page
    assert "&lt;script&gt;alert(1)&lt;.wav" in page


def test_a_file_that_is_gone_since_it_was_measured_is_said(report: CheckReport, tmp_path: Path) -> None:
    gone = TrackIndex([replace(track, path=tmp_path / "gone.wav") for track in report.index])
    page = write_page(replace(report, index=gone), tmp_path / "report.html").read_text()
    assert "gone.wav: No such file or directory" in page


def test_long_tables_are_cut_and_say_so(report: CheckReport, tmp_path: Path) -> None:
    problem = next(item for item in report.problems if item.kind == "unreadable")
    many = replace(report, problems=[replace(problem, name=f"track {number}") for number in range(250)])
    page = write_page(many, tmp_path / "report.html").read_text()
    assert "track 99<" in page
    assert "track 100<" not in page
    assert "And 150 more, in summary.json." in page


def test_a_histogram_is_a_picture_of_finite_values() -> None:
    assert histogram_png([1.0, 2.0, 2.0], title="$x", xlabel="s").startswith(b"\x89PNG")
    assert histogram_png([3.0]) != histogram_png([3.0, 4.0])
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(UsageError, match="needs finite values"):
            histogram_png(values)
