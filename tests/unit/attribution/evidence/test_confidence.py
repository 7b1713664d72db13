"""Groups, intervals, verdicts and warnings, on scores whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.evidence.confidence import (
    NOTHING,
    STANDS_OUT,
    TOO_FEW,
    interval,
    null_evidence,
    resample,
    standouts,
)
from stable_audio_tools.attribution.evidence.hubs import occurrences, score_health, skewness
from stable_audio_tools.attribution.evidence.membership import auc, auc_interval
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.scoring.groups import described, group_tracks, read_clusters, related
from stable_audio_tools.attribution.scoring.sample_space import SampleSpace
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, regularised_scores, score
from stable_audio_tools.errors import DataError

TRACKS = [
    {"sample_id": "a", "artist": "One", "album": "X"},
    {"sample_id": "b", "artist": "Two", "album": "X"},
    {"sample_id": "c", "artist": "One"},
    {"sample_id": "d"},
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def store_of(folder, rows, name="r"):
    store = FeatureStore.create(
        folder,
        sample_ids=[f"{name}{i}" for i in range(len(rows))],
        dim=rows.shape[1],
        latent_dim=1,
        stamp={"settings": {"mode": "hooked"}},
    )
    count = list(range(len(rows)))
    store.write(count, rows.float(), torch.zeros(len(rows), 1), [{"sample_id": f"{name}{i}"} for i in count])
    return FeatureStore.open(folder)


@pytest.fixture
def space(tmp_path):
    return SampleSpace(store_of(tmp_path / "train", draw(12, 64)), list(range(12)), ScoreSettings())


def test_groups_add_up_their_tracks_and_compare_with_the_average_track():
    groups = group_tracks(TRACKS, "artist")
    assert groups.names == ["One", "Two", "(no artist) d"]
    values = torch.tensor([[4.0, 1.0, 2.0, 1.0]])
    assert groups.sums(values).tolist() == [[6, 1, 1]]
    assert groups.times_average(values).tolist() == [[1.5, 0.5, 0.5]]
    # scaling a query changes nothing, and a set of equals is 1 everywhere
    assert torch.allclose(groups.times_average(values * 7), groups.times_average(values))
    assert groups.times_average(torch.ones(4)).tolist() == [1, 1, 1]


def test_related_tracks_share_an_artist_or_a_cluster_but_not_the_name_of_an_album():
    member = related(
        [*TRACKS, {"sample_id": "e", "cluster": "k"}, {"sample_id": "f", "artist": "Two", "cluster": "k"}]
    )
    assert member.tolist() == [0, 1, 0, 3, 1, 1]


def test_clusters_come_from_dedup(tmp_path, capsys):
    (tmp_path / "summary.json").write_text(json.dumps({"groups": [["a", "c"], ["z", "y"]]}))
    found = described([{**TRACKS[0], "publisher": "L"}, *TRACKS[1:]], tmp_path)
    assert [track.get("cluster") for track in found] == ["a", None, "a", None]
    assert found[0]["label"] == "L"
    (tmp_path / "other.json").write_text("[1]")
    for name in ("other.json", "missing.json"):
        with pytest.raises(DataError, match=name):
            read_clusters(tmp_path / name)
    described([{"sample_id": "q"}], tmp_path)
    assert "groups nothing" in capsys.readouterr().err


def test_the_sample_space_scores_as_the_method_does(tmp_path, space):
    queries = store_of(tmp_path / "queries", draw(3, 64, seed=1), "q")
    train = FeatureStore.open(tmp_path / "train")
    expected = score(train, queries, ScoreSettings())
    assert torch.allclose(space.scores(space.cross(queries)[0]), expected)
    blocks = space.cross(queries, 4)
    assert torch.allclose(space.scores(blocks).sum(0), expected)
    assert all((block != 0).all() for block in blocks)
    assert torch.equal(space.cross(queries, 4, slice(1, 3)), blocks[:, 1:3])


def test_leaving_a_group_out_is_as_if_it_had_never_been_there(tmp_path, space):
    rows = FeatureStore.open(tmp_path / "train").features()
    member = torch.tensor([0, 0, 0, 3, 4, 4, 6, 7, 8, 9, 10, 11])
    found = space.scores_left_out(member)
    for track in (1, 5, 11):
        others = member != member[track]
        kernel = rows[others] @ rows[others].T
        expected = regularised_scores(
            kernel, (rows[track] @ rows[others].T)[None], lambda_reg=space.regularisation
        )[0]
        assert torch.allclose(found[track, others], expected)
        assert found[track, ~others].isnan().all()


def test_scores_of_parts_add_up_to_the_score_of_the_whole(tmp_path, space):
    train = FeatureStore.open(tmp_path / "train")
    parts = draw(5, 64, seed=2)
    whole = store_of(tmp_path / "whole", parts.sum(0, keepdim=True))
    pieces = store_of(tmp_path / "pieces", parts)
    own = store_of(tmp_path / "own", torch.stack([train.features()[4] * share for share in (0.2, 0.5, 0.3)]))
    scores = space.between_parts(
        pieces.features(), own.features(), space.cross(pieces)[0], space.cross(own)[0]
    )
    expected = float(space.scores(space.cross(whole)[0])[0, 4])
    assert scores.shape == (5, 3)
    assert float(scores.sum()) == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(scores.sum(0) / expected, torch.tensor([0.2, 0.5, 0.3]).double(), atol=1e-4)


def test_an_interval_is_narrow_where_all_parts_agree_and_wide_where_they_do_not():
    agreed = torch.tensor([5.0, 1.0, 0.5]).double().expand(4, 6, 3) / 24
    found = resample(agreed, agreed.sum((0, 1)), [group_tracks(TRACKS[:3], "artist")], "score", 0, "clip")
    assert found.first_share == 1
    assert torch.allclose(found.low, found.high)
    assert found.rank_low.tolist() == found.rank_high.tolist() == [1, 2, 3]
    parts = agreed + draw(4, 6, 3)
    noisy = resample(parts, parts.sum((0, 1)), [], "score_squared", 0, "clip")
    assert noisy.first_share < 1
    assert (noisy.high > noisy.low).all()
    assert (noisy.rank_high - noisy.rank_low).max() == 2


@pytest.mark.parametrize("rank_by", ["score", "score_squared"])
def test_an_interval_holds_its_value_and_is_the_same_at_every_run(rank_by):
    parts = draw(8, 10, 20, seed=3)
    groups = [group_tracks([{"sample_id": str(n), "artist": str(n % 3)} for n in range(20)], "artist")]
    found, again = (resample(parts, parts.sum((0, 1)), groups, rank_by, 0, "clip") for _ in range(2))
    values = parts.sum((0, 1)) if rank_by == "score" else parts.sum((0, 1)) ** 2
    relative = values / values.abs().mean()
    assert ((found.low <= relative) & (relative <= found.high)).all()
    average = groups[0].times_average(values)
    interval_of = found.groups["artist"]
    assert ((interval_of.low <= average) & (average <= interval_of.high)).all()
    assert torch.equal(found.low, again.low)
    assert not torch.equal(found.low, resample(parts, parts.sum((0, 1)), groups, rank_by, 0, "other").low)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Means of 40 normal draws, resampled: 95 % intervals hold 0 in most of 300 cases."""
    draws = draw(40, 300, seed=4)
    chosen = torch.randint(40, (400, 40), generator=torch.Generator().manual_seed(5))
    low, high = interval(draws[chosen].mean(1), draws.mean(0))
    held = ((low <= 0) & (high >= 0)).double().mean()
    assert 0.89 < float(held) < 0.98


def test_a_copy_stands_out_and_noise_does_not(tmp_path):
    rows = draw(60, 400, seed=6)
    space = SampleSpace(store_of(tmp_path / "t", rows), list(range(60)), ScoreSettings())
    null = null_evidence(space.scores_left_out(torch.arange(60)), "score_squared")
    assert len(null) == 60
    asked = store_of(tmp_path / "q", torch.cat([rows[7:8], draw(40, 400, seed=7)]), "q")
    found = standouts(space.scores(space.cross(asked)[0]), null, "score_squared")
    assert found[0].verdict == STANDS_OUT
    assert found[0].p_value == found[0].resolution == 1 / 61
    # queries from where the null is from: the p-values are spread, and few stand out
    p_values = [item.p_value for item in found[1:]]
    assert 0.3 < np.mean(p_values) < 0.7
    assert sum(item.verdict == STANDS_OUT for item in found[1:]) <= 6
    assert NOTHING in {item.verdict for item in found}


def by_artists(count, each, dim, seed):
    """Tracks that share a direction with the others of their artist, and new ones of the first artists."""
    habits = 0.5 * draw(count, dim, seed=seed).repeat_interleave(each, dim=0)
    tracks = habits + 3 * draw(count * each, dim, seed=seed + 1)
    asked = habits[::each] + draw(count, dim, seed=seed + 2)
    names = [f"artist {n // each}" for n in range(count * each)]
    return (
        tracks,
        asked,
        group_tracks([{"sample_id": str(n), "artist": a} for n, a in enumerate(names)], "artist"),
    )


def test_an_artist_stands_out_where_no_single_track_does(tmp_path):
    tracks, asked, artists = by_artists(10, 20, 600, 11)
    space = SampleSpace(store_of(tmp_path / "t", tracks), list(range(200)), ScoreSettings())
    scores = space.scores(space.cross(store_of(tmp_path / "q", asked, "q"))[0])
    left_out = space.scores_left_out(artists.member)
    alone, together = (
        standouts(scores, null_evidence(left_out, "score_squared", groups), "score_squared", groups)
        for groups in (None, artists)
    )
    assert [item.place for item in together] == list(range(10))
    count = [sum(item.verdict == STANDS_OUT for item in found) for found in (alone, together)]
    assert count[1] >= 7
    assert count[1] - count[0] >= 4


def test_unrelated_clips_have_no_artist_that_stands_out(tmp_path):
    tracks, _, artists = by_artists(10, 20, 600, 11)
    space = SampleSpace(store_of(tmp_path / "t", tracks), list(range(200)), ScoreSettings())
    other = by_artists(60, 1, 600, 21)[0]
    scores = space.scores(space.cross(store_of(tmp_path / "q", other, "q"))[0])
    null = null_evidence(space.scores_left_out(artists.member), "score_squared", artists)
    found = standouts(scores, null, "score_squared", artists)
    assert 0.3 < np.mean([item.p_value for item in found]) < 0.7
    assert sum(item.verdict == STANDS_OUT for item in found) <= 8


def test_evidence_does_not_depend_on_the_size_of_a_query_and_few_tracks_tell_nothing():
    scores, null = draw(1, 30), draw(50, seed=1).abs()
    one, ten = (standouts(scores * scale, null, "score")[0] for scale in (1, 10))
    assert one.evidence == pytest.approx(ten.evidence)
    assert standouts(scores, null[:5] * 0, "score")[0].verdict == TOO_FEW
    assert standouts(scores, null[:0], "score")[0].verdict == TOO_FEW
    assert standouts(scores * 0, null, "score")[0].p_value == 1


def test_hubs_and_rankings_that_are_all_one_are_told():
    scores = draw(40, 100)
    assert not score_health(scores, "score").hubs
    assert not score_health(scores, "score").one_ranking
    scores[:, 17] = 9
    found = score_health(scores, "score")
    assert [hub.track for hub in found.hubs] == [17]
    assert found.hubs[0].clips == 40
    assert found.skewed
    alike = draw(40, 1, seed=1) * draw(1, 100, seed=2)
    assert score_health(alike, "score").rank_one == pytest.approx(1)
    assert score_health(scores[:2], "score").skewness is None
    assert occurrences(scores, "score", 5).sum() == 40 * 5
    assert skewness(torch.ones(9)) == 0


def test_auc_counts_pairs():
    inside, outside = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    assert auc(inside, outside) == pytest.approx(3.5 / 4)
    assert auc(outside, outside) == 0.5
    value, low, high = auc_interval(draw(50), draw(50, seed=1), 0)
    assert low < value < high
