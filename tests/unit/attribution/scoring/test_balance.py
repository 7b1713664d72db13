"""Several measurements in one store have the same say, whatever the length of their gradients."""

from __future__ import annotations

import pytest
import torch
from test_scores import store

from stable_audio_tools.attribution.scoring.balance import column_weights
from stable_audio_tools.attribution.scoring.sample_space import SampleSpace
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, regularised_scores, score
from stable_audio_tools.errors import UsageError

BOTH = {"f": "mean-squared-l2-norm+loss", "mode": "dense", "proj_dim": 30}


def draw(count, seed):
    rows = torch.randn(count, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:, :30] += 20  # what all tracks share has no say
    return (rows * torch.tensor([1e-3, 50.0]).repeat_interleave(30)).float()


@pytest.fixture
def stores(tmp_path):
    return store(tmp_path / "train", draw(12, 0), BOTH), store(tmp_path / "clips", draw(4, 1), BOTH)


def test_the_score_is_that_of_the_sum_of_kernels_over_their_spread(stores):
    kernel, cross = 0, 0
    for columns in (slice(0, 30), slice(30, 60)):
        tracks, clips = (found.features(columns) for found in stores)
        spread = (tracks - tracks.mean(0)).square().sum(1).mean()
        kernel, cross = kernel + tracks @ tracks.T / spread, cross + clips @ tracks.T / spread
    expected = regularised_scores(kernel, cross, lambda_scale=0.5)
    found = score(*stores, ScoreSettings(lambda_scale=0.5))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_units_of_a_measurement_do_not_matter(stores, tmp_path):
    scale = torch.tensor([1e4, 1e-4]).repeat_interleave(30)
    others = [
        store(tmp_path / name, rows * scale, BOTH) for name, rows in (("t", draw(12, 0)), ("c", draw(4, 1)))
    ]
    for method in ("dtrak", "gradcos"):
        settings = ScoreSettings(method)
        torch.testing.assert_close(score(*others, settings), score(*stores, settings), rtol=1e-4, atol=1e-6)


def test_weights_are_kept_and_rows_left_out_do_not_count(stores, tmp_path):
    rows = draw(12, 0)
    padded = store(tmp_path / "padded", torch.cat([rows, torch.zeros(5, 60)]), BOTH)
    torch.testing.assert_close(column_weights(padded), column_weights(stores[0]))
    (padded.folder / "features.npy").rename(tmp_path / "gone.npy")
    torch.testing.assert_close(column_weights(padded), column_weights(stores[0]))
    assert column_weights(store(tmp_path / "one", rows)) is None


def test_a_measurement_without_a_gradient_has_no_say(tmp_path):
    rows = [values * torch.tensor([1.0, 0.0]).repeat_interleave(30) for values in (draw(12, 0), draw(4, 1))]
    train, clips = (store(tmp_path / name, one, BOTH) for name, one in zip("tc", rows, strict=True))
    alone = [store(tmp_path / f"{name}1", one[:, :30]) for name, one in zip("tc", rows, strict=True)]
    torch.testing.assert_close(score(train, clips), score(*alone), rtol=1e-5, atol=1e-8)


def test_parts_of_clips_are_weighted_like_clips(stores):
    train, clips = stores
    space = SampleSpace(train, list(range(12)), ScoreSettings())
    torch.testing.assert_close(space.scores(space.cross(clips)[0]), score(train, clips))
    torch.testing.assert_close(space.rows(clips), clips.features() * column_weights(train))


def test_first_columns_are_of_one_measurement_only(stores):
    with pytest.raises(UsageError, match=r"one measurement .*train has 'mean"):
        score(*stores, ScoreSettings(used_dim=10))
