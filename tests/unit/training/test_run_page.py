"""The page of a run: every number that is logged finds its picture, and it costs little."""

from __future__ import annotations

import csv
import re
from itertools import pairwise

import pytest

from stable_audio_tools.training import run_page
from stable_audio_tools.training.run_page import RunPage, thinned

NUMBERS = {
    "train/loss": 0.5,
    "train/grad_norm": 1.5,
    "train/loss_t0.00-0.25": 0.6,
    "train/lr": 1e-4,
    "speed/steps_per_second": 3.0,
    "speed/waiting_for_data": 0.1,
    "memory/peak_gib": 2.0,
}


def pictures(page):
    return re.findall(r'<img alt="([^"]+)"', (page.folder / "index.html").read_text())


def test_each_number_has_its_place_and_none_is_empty(tmp_path):
    page = RunPage(tmp_path, "mine")
    for step in (1, 2):
        page.log_metrics(NUMBERS, step)
    page.finalize("success")
    html = (tmp_path / "index.html").read_text()
    assert "mine" in html
    assert "finished, step 2" in html
    assert pictures(page) == [
        "training and validation",
        "training, by band",
        "learning rate",
        "gradient norm",
        "steps per second",
        "share of the time spent waiting for data",
        "peak memory",
    ]
    page.log_metrics({"val/loss": 0.4, "val/loss_t0.10": 0.4, "eval/fad": 1.0, "eval/alignment": 0.2}, 2)
    page.log_metrics({"train/kl_loss": 0.01, "val/sisdr": 3.0}, 2)
    page.finalize("failed")
    assert "stopped by an error" in (tmp_path / "index.html").read_text()
    assert len(pictures(page)) == 12


def test_a_run_that_goes_on_begins_with_its_table(tmp_path):
    with (tmp_path / "metrics.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerows([["step", "train/loss", "val/loss"], [1, 3.0, ""], [2, 2.0, 2.5]])
    page = RunPage(tmp_path, "mine")
    page.log_metrics({"train/loss": 1.0}, 3)
    assert page.curves == {"train/loss": ([1, 2, 3], [3.0, 2.0, 1.0]), "val/loss": ([2], [2.5])}


def test_it_is_drawn_seldom_where_drawing_takes_long(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_page.time, "monotonic", lambda: now[0])
    drawn = []

    def draw(self, path):
        drawn.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(run_page.Page, "write", draw)
    page = RunPage(tmp_path, "mine")
    for step in range(1, 400):
        page.log_metrics({"train/loss": 1.0}, step)
        now[0] += 1.0
    assert len(drawn) == 5
    assert all(later - earlier >= 100 for earlier, later in pairwise(drawn[1:]))
    page.finalize("success")
    assert len(drawn) == 6, "the last numbers are always shown"


@pytest.mark.parametrize("length", [1, 399, 400, 401, 12345])
def test_a_long_curve_keeps_its_mean(length):
    steps, values = list(range(length)), [float(i % 7) for i in range(length)]
    x, y = thinned(steps, values, 400)
    assert len(x) == len(y) <= 400
    if length <= 400:
        assert (x, y) == (steps, values)
    elif length % -(-length // 400) == 0:
        assert sum(y) / len(y) == pytest.approx(sum(values) / length)
    assert x == sorted(x)
