"""What ``sat`` makes of errors: the user's end in one line and exit code 2, bugs keep their traceback."""

from __future__ import annotations

import errno

import pytest

from stable_audio_tools.cli.main import main
from stable_audio_tools.errors import ConfigError


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``sat config schema`` raise ``error``."""

    def raise_it(*_: object) -> None:
        raise error

    monkeypatch.setattr("stable_audio_tools.schema.reader.json_schema", raise_it)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("model.json: two\n   lines"), "error: model.json: two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/disk/x.ckpt"),
            "error: /disk/x.ckpt: No space left",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission denied"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(SystemExit) as exit_:
        main(["config", "schema"])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize("error", [KeyError("prompt"), FileNotFoundError(errno.ENOENT, "No such file", "x")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["config", "schema"])


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as exit_:
        main(["config", "schema"])
    assert exit_.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_ctrl_c_in_training_names_recover(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stable_audio_tools.training.settings.TrainSettings.from_flags", interrupt)
    with pytest.raises(SystemExit):
        main(["train"])
    assert "--recover" in capsys.readouterr().err


def test_an_unknown_flag_is_shown_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--batch-sise", "3"])
    assert exit_.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """A bare ``[default: 8]`` would be taken for markup and vanish."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Crops per batch and device. [default: 8]" in text
