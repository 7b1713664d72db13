"""The table of metrics, and trackers whose package is missing."""

from __future__ import annotations

import csv
import importlib.util

import pytest

from stable_audio_tools.errors import UsageError
from stable_audio_tools.training import trackers
from stable_audio_tools.training.run_page import RunPage
from stable_audio_tools.training.trackers import CsvLogger, check_logger, create_loggers


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_columns_may_come_later_and_rows_may_be_filled_twice(tmp_path):
    log = CsvLogger(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5}, 1)
    log.log_metrics({"train/loss": 1.25}, 2)
    log.log_metrics({"val/loss": 2.0}, 2)
    log.log_metrics({"train/loss": 1.0}, 3)
    assert read(log.path) == [
        {"step": "1", "train/loss": "1.5", "val/loss": ""},
        {"step": "2", "train/loss": "1.25", "val/loss": "2"},
        {"step": "3", "train/loss": "1", "val/loss": ""},
    ]


def test_a_resumed_table_drops_the_rows_that_are_computed_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path)
    for step in range(1, 5):
        first.log_metrics({"train/loss": step}, step)
    again = CsvLogger(path, resumed_step=2)
    again.log_metrics({"train/loss": 30}, 3)
    assert [(row["step"], row["train/loss"]) for row in read(path)] == [("1", "1"), ("2", "2"), ("3", "30")]


def test_none_is_none_and_csv_is_csv(tmp_path):
    assert create_loggers("none", tmp_path, "run") == []
    assert [type(log) for log in create_loggers("csv", tmp_path, "run")] == [CsvLogger, RunPage]


@pytest.mark.parametrize("name", ["wandb", "comet", "tensorboard"])
def test_a_missing_package_names_its_extra(monkeypatch, name):
    find = importlib.util.find_spec
    hidden = {"wandb", "comet_ml", "tensorboard"}
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda x: None if x in hidden else find(x))
    with pytest.raises(UsageError, match=rf"--logger {name}: .*pip install 'stable-audio-tools\[{name}\]'"):
        check_logger(name)
