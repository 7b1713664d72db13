"""What is left out, and what the tables make of what it does."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.attribution.proof.jobs import Results
from stable_audio_tools.attribution.proof.removal import (
    full_losses,
    group_jobs,
    groups_table,
    removal_table,
    removals,
)


def test_the_tracks_of_highest_score_go_and_as_many_at_random():
    scores = torch.tensor([[0.1, 5.0, 0.3, 4.0, 0.0, 0.2, 0.1, 0.0], [9.0, 0, 0, 0, 0, 0, 0, 8.0]])
    made = removals({"m": scores}, [0, 1], share=0.25)
    by = {(one.method, one.query): one.rows for one in made}
    assert by["m", 0] == (1, 3)
    assert by["m", 1] == (0, 7)
    assert all(len(rows) == 2 for rows in by.values())
    job = made[0].jobs(8, 2)
    assert job[0].rows == (0, 2, 4, 5, 6, 7)
    assert [one.seed for one in job] == [0, 1]
    assert removals({"m": scores}, [1], share=0.25)[1].rows == by["at random", 1]


def test_rises_are_against_the_models_of_everything():
    scores = torch.eye(4)
    made = removals({"m": scores, "similar": scores.flip(0)}, [0, 1, 2], share=0.25)
    found = {"full/seed0": torch.ones(4, 2), "full/seed1": torch.ones(4, 2) * 3}
    assert full_losses(found).tolist() == [2.0] * 4
    for one in made:
        for job in one.jobs(4, 2):
            rise = {"m": 0.4, "similar": 0.1, "at random": 0.0}[one.method]
            found[Results.key(job)] = torch.full((4, 2), 2.0 + rise)
    rows = {row["method"]: row for row in removal_table(made, found, 4, 2, ["similar", "at random"])}
    assert rows["m"]["rise"]["value"] == pytest.approx(0.4)
    assert rows["m"]["rise_in_percent"]["value"] == pytest.approx(20.0)
    assert rows["m"]["times similar"]["value"] == pytest.approx(4.0, rel=1e-4)
    assert rows["m"]["minus at random"]["value"] == pytest.approx(0.4)
    assert rows["m"]["queries"] == 3


def test_artists_are_left_out_whole_and_ranked():
    groups = [f"a{i // 3}" for i in range(15)]
    jobs = group_jobs(groups, 4, 1)
    assert len(jobs) == 4
    for name, (job,) in jobs.items():
        assert len(job.rows) == 12
        assert not any(groups[row] == name for row in job.rows)
    scores = torch.randn(6, 15, generator=torch.Generator().manual_seed(0))
    found = {"full/seed0": torch.zeros(6, 1)}
    for name, (job,) in jobs.items():
        members = [row for row, one in enumerate(groups) if one == name]
        found[Results.key(job)] = scores[:, members].sum(1, keepdim=True)
    table = groups_table({"true": scores, "wrong": -scores}, groups, jobs, found)
    assert [row["method"] for row in table] == ["true", "wrong"]
    assert table[0]["correlation"]["value"] == pytest.approx(1.0)
    assert table[1]["correlation"]["value"] == pytest.approx(-1.0)
