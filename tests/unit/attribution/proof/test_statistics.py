"""Subsets, rank correlation and its intervals, on data whose truth is known."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.attribution.proof.duplicates import duplicates_table, ranks_of_originals
from stable_audio_tools.attribution.proof.lds import Outcomes, Split, ceiling, lds, lds_table
from stable_audio_tools.attribution.proof.statistics import (
    TwoWayBootstrap,
    mean_interval,
    ratio_interval,
    spearman,
)
from stable_audio_tools.attribution.proof.subsets import balanced_subsets, group_rows, halves
from stable_audio_tools.errors import DataError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_subsets_hold_exactly_half_of_each_artist():
    groups = [f"artist {i // 8}" for i in range(64)]
    subsets = balanced_subsets(groups, 200)
    assert (subsets.view(200, 8, 8).sum(2) == 4).all()
    assert len({tuple(row.tolist()) for row in subsets}) == 200
    assert (subsets.double().mean(0) - 0.5).abs().max() < 0.15


def test_every_subset_holds_as_many_of_an_odd_artist_and_of_the_nameless():
    groups = ["a"] * 3 + [None, "alone", ""] + ["b"] * 5 + [None]
    rows = group_rows(groups)
    assert rows == {"a": [0, 1, 2], "b": [6, 7, 8, 9, 10], "": [3, 4, 5, 11]}
    subsets = balanced_subsets(groups, 20)
    for members, expected in ((rows["a"], 1), (rows["b"], 3), (rows[""], 2)):
        assert (subsets[:, members].sum(1) == expected).all()


def test_subsets_do_not_depend_on_how_many_are_asked_for():
    groups = ["a", "a", "b", "b"] * 3
    assert torch.equal(balanced_subsets(groups, 9)[:4], balanced_subsets(groups, 4))
    assert not torch.equal(balanced_subsets(groups, 9, seed=1), balanced_subsets(groups, 9))


def test_one_track_has_no_half():
    with pytest.raises(DataError, match="at least 2 tracks, found 1"):
        balanced_subsets(["a"], 3)


def test_halves_are_apart_and_whole():
    first, second = halves(11, "subsets")
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(11))


def test_rank_correlation_by_hand():
    first = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    second = torch.tensor([[10.0, 1.0], [30.0, 2.0], [20.0, 3.0], [40.0, 4.0]])
    # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8; a constant column knows nothing
    assert spearman(first, second).tolist() == pytest.approx([0.8, 0.0])
    assert spearman(first[:, :1], first[:, :1].exp()).item() == pytest.approx(1.0)


def test_ties_share_their_rank():
    first, second = torch.tensor([[1.0], [1.0], [2.0], [3.0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    # Pearson's correlation of (1.5, 1.5, 3, 4) with (1, 2, 3, 4)
    assert spearman(first, second).item() == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def linear_world(noise, subsets=64, queries=24, tracks=48):
    """A world whose outcome is the sum of known influences, and noise of its own for each of two seeds."""
    influence = draw(queries, tracks)
    parts = balanced_subsets([f"{i // 8}" for i in range(tracks)], subsets)
    truth = parts.double() @ influence.T
    return influence, Outcomes(parts, truth + noise * truth.std(0) * draw(2, subsets, queries, seed=1))


def test_known_influence_is_found_and_chance_is_not():
    influence, outcomes = linear_world(0.0)
    assert lds(outcomes, influence) == pytest.approx(1.0)
    assert lds(outcomes, -influence) == pytest.approx(-1.0)
    assert abs(lds(outcomes, draw(*influence.shape, seed=9))) < 0.1


def test_true_influence_reaches_the_ceiling_that_two_seeds_tell():
    influence, outcomes = linear_world(1.0, subsets=400, queries=40)
    top = ceiling(outcomes, draws=200)
    assert top.retrained.value == pytest.approx(0.5, abs=0.05)
    assert lds(outcomes, influence) == pytest.approx(top.perfect.value, abs=0.03)
    assert top.perfect.low < lds(outcomes, influence) < top.perfect.high + 0.03


def test_knowing_the_artist_alone_explains_nothing():
    influence, outcomes = linear_world(0.0)
    alone = torch.zeros_like(influence)
    alone[:, :8] = 1
    assert lds(outcomes, alone) == 0.0


def test_table_compares_in_pairs():
    influence, outcomes = linear_world(0.5)
    worse = influence + draw(*influence.shape, seed=5)
    rows, _ = lds_table({"worse": worse, "true": influence}, outcomes, against="worse", draws=200)
    assert [row["method"] for row in rows] == ["true", "worse"]
    assert rows[0]["minus_baseline"]["low"] > 0
    assert rows[0]["of_ceiling"] == pytest.approx(1.0, abs=0.1)
    assert "minus_baseline" not in rows[1]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Many small experiments of one world whose mean correlation is known from a large one."""
    tracks, queries, subsets = 24, 400, 400
    influence, guess = draw(queries, tracks), draw(queries, tracks, seed=1)
    guess = influence + guess
    parts = (draw(subsets, tracks, seed=2) > 0).double()
    measured, foretold = parts @ influence.T, parts @ guess.T
    truth = spearman(foretold, measured).mean().item()
    chance = torch.Generator().manual_seed(4)
    held = 0
    for trial in range(60):
        rows = torch.randperm(subsets, generator=chance)[:40]
        columns = torch.randperm(queries, generator=chance)[:12]
        one = (x[rows][:, columns] for x in (foretold, measured))
        found = TwoWayBootstrap({"guess": next(one)}, next(one), draws=100, seed=trial).interval("guess")
        held += found.low <= truth <= found.high
    assert 50 <= held <= 60


def test_the_same_draws_make_the_difference_of_a_method_with_itself_nothing():
    influence, outcomes = linear_world(0.5)
    one = outcomes.subsets.double() @ influence.T
    found = TwoWayBootstrap({"a": one, "b": one * 2 + 1}, outcomes.mean, draws=100).difference("a", "b")
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_simple_intervals():
    values = draw(200) + 3
    found = mean_interval(values)
    assert found.low < 3.0 < found.high
    assert found.high - found.low < 0.4
    ratio = ratio_interval(2 * values, values)
    assert ratio.value == ratio.low == ratio.high == pytest.approx(2.0)


def test_tuning_and_reporting_share_nothing():
    split = Split.of(10, 7, "generated")
    assert not set(split.tune_subsets.tolist()) & set(split.report_subsets.tolist())
    assert not set(split.tune_queries.tolist()) & set(split.report_queries.tolist())


def test_rank_of_the_original():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.2, 0.1, 0.0]])
    assert ranks_of_originals(scores, [2, 0, 0]).tolist() == [2.0, 2.0, 1.0]
    rows = duplicates_table({"a": scores, "b": scores}, [2, 0, 0], ["pitch", "pitch", "tempo"], against="b")
    first = {(row["method"], row["kind"]): row for row in rows}
    assert first["a", "all"]["first"] == pytest.approx(0.3333)
    assert first["a", "tempo"]["reciprocal_rank"]["value"] == 1.0
    assert first["a", "all"]["minus_baseline"]["value"] == 0.0
