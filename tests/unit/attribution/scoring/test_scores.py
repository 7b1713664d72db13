"""Scores against the formula in feature space, and what a ranking says."""

from __future__ import annotations

import csv

import pytest
import torch

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.gradients.measurements import measurement_names
from stable_audio_tools.attribution.scoring.groups import group_tracks, write_groups
from stable_audio_tools.attribution.scoring.ranking import order, write_ranking
from stable_audio_tools.attribution.scoring.scores import METHODS, ScoreSettings, regularised_scores, score
from stable_audio_tools.errors import StoreError, UsageError

SETTINGS = {"f": "mean-squared-l2-norm", "mode": "hooked"}


def store(folder, rows, settings=SETTINGS, dtype="float32"):
    made = FeatureStore.create(
        folder,
        sample_ids=[f"{folder.name}/{i}" for i in range(len(rows))],
        dim=rows.shape[1],
        latent_dim=rows.shape[1],
        stamp={"checkpoint": "c", "model_config": "m", "adapter": None, "settings": settings},
        dtype=dtype,
        measurements=len(measurement_names(settings["f"])),
    )
    made.write(range(len(rows)), rows, rows, [{"sample_id": name} for name in made.sample_ids])
    return FeatureStore.open(folder)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(12, 40, generator=generator), torch.randn(5, 40, generator=generator)


def test_sample_space_equals_feature_space(rows):
    """phi_q Phi^T (Phi Phi^T + l)^-1 = phi_q (Phi^T Phi + l)^-1 Phi^T, the form of the TRAK paper."""
    tracks, queries = (values.double() for values in rows)
    for reg in (0.3, 20.0):
        expected = queries @ torch.linalg.solve(
            tracks.T @ tracks + reg * torch.eye(40, dtype=torch.float64), tracks.T
        )
        found = regularised_scores(tracks @ tracks.T, queries @ tracks.T, lambda_reg=reg)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_lambda_scale_is_relative_to_the_mean_eigenvalue(rows):
    tracks, queries = (values.double() for values in rows)
    kernel, cross = tracks @ tracks.T, queries @ tracks.T
    mean = float(torch.linalg.eigvalsh(kernel)[:-1].mean())
    expected = regularised_scores(kernel, cross, lambda_reg=0.2 * mean)
    torch.testing.assert_close(regularised_scores(kernel, cross, lambda_scale=0.2), expected)
    # Units of the features do not change what it means.
    torch.testing.assert_close(regularised_scores(kernel * 1e-12, cross * 1e-12, lambda_scale=0.2), expected)


def test_what_all_tracks_share_does_not_hide_a_copy(rows):
    """Cosines of 0.9999 between all tracks, as shared noise makes them."""
    tracks = rows[0].double() + 1000 * torch.ones(40, dtype=torch.float64)
    scores = regularised_scores(tracks @ tracks.T, tracks @ tracks.T, lambda_scale=0.1)
    assert scores.argmax(1).tolist() == list(range(12))
    assert (scores.diagonal() > 0.5).all()


def test_one_track_is_enough():
    assert float(regularised_scores(torch.tensor([[4.0]]), torch.tensor([[4.0]]))) == pytest.approx(1 / 4)


def test_lambda_zero_with_copies_in_the_training_set_is_finite(rows):
    tracks = torch.cat([rows[0], rows[0][:2]]).double()
    scores = regularised_scores(tracks @ tracks.T, tracks @ tracks.T, lambda_reg=0.0)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0, 0], scores[0, 12], rtol=1e-6, atol=1e-9)
    assert abs(float(scores[0, 0]) - 0.5) < 1e-6


@pytest.mark.parametrize("method", ["dtrak", "gradcos", "latent-cosine"])
def test_a_query_that_is_a_track_ranks_that_track_first(tmp_path, rows, method):
    train, queries = store(tmp_path / "t", rows[0]), store(tmp_path / "q", rows[0][[4, 0, 9]])
    ranked = order(score(train, queries, ScoreSettings(method=method)))
    assert ranked[:, 0].tolist() == [4, 0, 9]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"trak", "random", "clap", "loudness"}))
def test_scores_do_not_depend_on_the_order_of_tracks_or_queries(tmp_path, rows, method):
    tracks, queries = rows
    forward = score(
        store(tmp_path / "t", tracks), store(tmp_path / "q", queries), ScoreSettings(method=method)
    )
    backward = score(
        store(tmp_path / "t2", tracks.flip(0)),
        store(tmp_path / "q2", queries.flip(0)),
        ScoreSettings(method=method),
    )
    torch.testing.assert_close(forward, backward.flip(0, 1), rtol=1e-9, atol=1e-9)


def test_trak_is_dtrak_of_the_loss(tmp_path, rows):
    loss = {**SETTINGS, "f": "loss"}
    train, queries = store(tmp_path / "t", rows[0], loss), store(tmp_path / "q", rows[1], loss)
    torch.testing.assert_close(
        score(train, queries, ScoreSettings(method="trak")),
        score(train, queries, ScoreSettings(method="dtrak")),
    )
    other = store(tmp_path / "o", rows[0])
    with pytest.raises(UsageError, match="'trak' needs features of f 'loss'"):
        score(other, other, ScoreSettings(method="trak"))


def test_used_dim_keeps_the_first_columns_unbiased(tmp_path, rows):
    dense = {"f": "loss", "mode": "dense", "proj_dim": 40}
    train, queries = store(tmp_path / "t", rows[0], dense), store(tmp_path / "q", rows[1], dense)
    found = score(train, queries, ScoreSettings(method="graddot", used_dim=10))
    torch.testing.assert_close(
        found, (rows[1][:, :10] @ rows[0][:, :10].T * 4).double(), rtol=1e-5, atol=1e-5
    )
    hooked = store(tmp_path / "h", rows[0])
    with pytest.raises(UsageError, match="used_dim belongs to dense features"):
        score(hooked, hooked, ScoreSettings(used_dim=10))


def test_stores_of_different_settings_are_refused(tmp_path, rows):
    train, queries = store(tmp_path / "t", rows[0]), store(tmp_path / "q", rows[1], {**SETTINGS, "f": "loss"})
    with pytest.raises(StoreError, match=r"settings\.f differs"):
        score(train, queries)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown attribution method 'shap'; known: dtrak, trak"):
        ScoreSettings(method="shap")


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


TRACKS = [
    {"sample_id": "a", "path": "/m/a.wav", "artist": "Ann", "album": "X", "title": "One, two"},
    {"sample_id": "b", "path": "/m/b.wav", "artist": "Bob", "album": "Y", "title": "B"},
    {"sample_id": "c", "path": "/m/c.wav", "artist": "Ann", "album": "Z", "title": "C"},
    {"sample_id": "d", "path": "/m/d.wav"},
]
QUERIES = [{"sample_id": "q1", "prompt": "rock, loud"}, {"sample_id": "q2"}]
SCORES = torch.tensor([[0.1, -0.9, 0.3, 0.2], [0.5, 0.4, 0.0, -0.1]], dtype=torch.float64)


def test_ranking_rows(tmp_path):
    rows = read(write_ranking(tmp_path / "r.csv", SCORES, QUERIES, TRACKS, top_k=3))
    assert [(row["query"], row["rank"], row["sample_id"]) for row in rows] == [
        ("q1", "1", "c"),
        ("q1", "2", "d"),
        ("q1", "3", "a"),
        ("q2", "1", "a"),
        ("q2", "2", "b"),
        ("q2", "3", "c"),
    ]
    assert rows[2] == {
        "query": "q1",
        "query_prompt": "rock, loud",
        "rank": "3",
        "sample_id": "a",
        "path": "/m/a.wav",
        "score": "0.1",
        "score_squared": "0.01",
        "artist": "Ann",
        "album": "X",
        "title": "One, two",
    }


def test_ranking_by_square_ignores_the_sign(tmp_path):
    rows = read(write_ranking(tmp_path / "r.csv", SCORES, QUERIES, TRACKS, rank_by="score_squared", top_k=1))
    assert [row["sample_id"] for row in rows] == ["b", "a"]
    assert rows[0]["score"] == "-0.9"


def test_group_sums(tmp_path):
    rows = read(write_groups(tmp_path / "g.csv", SCORES, QUERIES, group_tracks(TRACKS, "artist")))
    first = [
        (r["rank"], r["group"], r["tracks"], float(r["score_sum"]), r["best_rank"])
        for r in rows
        if r["query"] == "q1"
    ]
    assert first == [
        ("1", "Ann", "2", pytest.approx(0.4), "1"),
        ("2", "(no artist) d", "1", pytest.approx(0.2), "2"),
        ("3", "Bob", "1", pytest.approx(-0.9), "4"),
    ]
