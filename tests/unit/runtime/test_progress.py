"""What the user hears of long work where there is no terminal, and of the libraries behind it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from stable_audio_tools.models.conditioners.t5 import load_t5
from stable_audio_tools.runtime.libraries import quiet_transformers
from stable_audio_tools.runtime.progress import progress_bar, say, track, warn


def test_without_a_terminal_a_bar_is_one_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([5, 6, 7]), "reading", total=3)) == [5, 6, 7]
    with progress_bar("searching") as progress:
        progress.advance(progress.task_ids[0], 2)
        say("found one")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second, third = captured.err.splitlines()
    assert re.fullmatch(r"reading  3/3  \d:\d\d:\d\d", first)
    assert second == "found one"
    assert re.fullmatch(r"searching  2  \d:\d\d:\d\d", third)


@pytest.mark.parametrize(("rank", "heard"), [({}, True), ({"RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False)])
def test_of_several_processes_the_first_speaks(
    rank: dict[str, str],
    heard: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    say("trained")
    warn("but slowly")
    assert capsys.readouterr().err == ("trained\nwarning: but slowly\n" if heard else "")


def test_work_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        for item in track([1, 2, 3], "reading"):
            if item == 2:
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert capsys.readouterr().err.startswith("reading  1/3  ")


def test_loading_a_library_model_prints_nothing_and_restores_its_settings(
    tiny_t5_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    _, encoder = load_t5(str(tiny_t5_folder))
    assert next(encoder.parameters()).dtype is torch.float32
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() == before[2]  # a download of gigabytes still shows
        logging.get_logger("transformers.test").warning("not to be seen")
        bar = logging.tqdm(range(2), file=sys.stderr)
        assert list(bar) == [0, 1]
    assert capfd.readouterr().err == ""
    after = (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    assert after == before
