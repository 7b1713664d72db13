"""Scores of many tracks: each way of taking the inverse against the one in float64."""

from __future__ import annotations

import math

import pytest
import soundfile
import torch
from test_scores import store

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.scoring import baselines, kernels, scores
from stable_audio_tools.attribution.scoring.kernels import products
from stable_audio_tools.attribution.scoring.sample_space import SampleSpace
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, score, score_many
from stable_audio_tools.errors import StoreError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Rows that agree in 0.999 of their energy, as shared noise makes them; blocks smaller than the work."""
    monkeypatch.setattr(kernels, "COLUMNS_AT_ONCE", 64)
    monkeypatch.setattr(kernels, "ROWS_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(8)
    common = torch.randn(200, generator=generator) * 30
    tracks = torch.randn(40, 200, generator=generator) + common
    clips = torch.cat([torch.randn(3, 200, generator=generator) + common, tracks[[11, 5]]])
    return store(tmp_path / "t", tracks), store(tmp_path / "q", clips)


def go_large(monkeypatch, exact_rows=1000):
    monkeypatch.setattr(scores, "SMALL_WORK", 0)
    monkeypatch.setattr(scores, "EXACT_ROWS", exact_rows)


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["dtrak", "gradcos", "graddot"])
@pytest.mark.parametrize("lambda_reg", [None, 3.0])
def test_float32_around_the_mean_row_is_as_good_as_float64(stores, monkeypatch, method, lambda_reg):
    settings = ScoreSettings(method=method, lambda_reg=lambda_reg)
    expected = score(*stores, settings)
    go_large(monkeypatch)
    assert distance(score(*stores, settings), expected) < 1e-5


def test_products_are_those_of_the_rows(stores):
    train, queries = stores
    found = products(train, queries, 200, kernel=True, device=CPU)
    rows, clips = train.features(), queries.features()
    torch.testing.assert_close(found.kernel, rows @ rows.T, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(found.cross, clips @ rows.T, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(found.norms, (rows**2).sum(1), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(found.own, (clips**2).sum(1), rtol=1e-6, atol=1e-3)


def test_the_decomposition_is_made_once(stores, monkeypatch):
    go_large(monkeypatch)
    first = score(*stores)
    monkeypatch.setattr(torch.linalg, "eigh", lambda *_: pytest.fail("decomposed again"))
    again = score(FeatureStore.open(stores[0].folder), stores[1])
    assert torch.equal(first, again)
    other = score(*stores, ScoreSettings(lambda_scale=10.0))
    assert distance(other, first) > 0.1
    space = SampleSpace(stores[0], list(range(len(stores[0]))), ScoreSettings())
    assert distance(space.scores(space.cross(stores[1])[0]), first) < 1e-5


@pytest.mark.parametrize("lambda_reg", [None, 3.0])
def test_without_loss_the_sketched_inverse_is_the_inverse(stores, monkeypatch, lambda_reg):
    """A sketch as wide as the rows loses nothing: what is left is the push-through identity."""
    settings = ScoreSettings(lambda_reg=lambda_reg)
    expected = score(*stores, settings)
    go_large(monkeypatch, exact_rows=10)
    assert distance(score(*stores, settings), expected) < 1e-5
    monkeypatch.setattr(kernels, "_sketch", lambda rows, dim: pytest.fail("sketched all rows again"))
    with pytest.raises(pytest.fail.Exception):
        score(*stores, settings)  # of the clips only
    assert sorted(path.name for path in stores[0].folder.glob("sketch*")) == [
        "sketch-200-200.npy",
        "sketch-200-200.npz",
    ]


def test_a_narrow_sketch_still_finds_copies_and_agrees_in_the_main(stores, monkeypatch):
    expected = score(*stores)
    go_large(monkeypatch, exact_rows=10)
    found = score(*stores, ScoreSettings(sketch_dim=120))
    assert found.argmax(1)[3:].tolist() == [11, 5]
    together = torch.stack([found.flatten(), expected.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.8


def test_sketched_inner_products_are_unbiased_and_spread_as_a_sketch_does():
    """The variance of a product of two rows is at most 2 |x|^2 |y|^2 / D' (Charikar et al. 2002)."""
    generator = torch.Generator().manual_seed(2)
    errors = []
    for dim in range(960, 1040):  # another length is another draw of signs
        x, y = torch.randn(2, dim, generator=generator).double()
        sketched = kernels._sketch(torch.stack([x, y]), 64)
        errors.append((sketched[0] @ sketched[1] - x @ y) / (x.norm() * y.norm()))
    errors = torch.stack(errors)
    assert errors.std() < (2 / 64) ** 0.5
    assert errors.mean().abs() < 3 * (2 / 64) ** 0.5 / len(errors) ** 0.5


def test_used_dim_and_an_absolute_lambda_mean_the_same_in_every_way(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(8)
    dense = {"f": "loss", "mode": "dense", "proj_dim": 60}
    pair = [
        store(tmp_path / name, torch.randn(count, 60, generator=generator), dense)
        for name, count in (("t", 30), ("q", 4))
    ]
    settings = ScoreSettings(used_dim=40, lambda_reg=20.0)
    expected = score(*pair, settings)
    for exact_rows in (1000, 10):
        go_large(monkeypatch, exact_rows)
        assert distance(score(*pair, settings), expected) < 1e-4


def test_an_ensemble_is_the_mean_of_scores(tmp_path):
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (
            store(tmp_path / f"{number}" / "t", torch.randn(9, 20, generator=generator) * 10**number),
            store(tmp_path / f"{number}" / "q", torch.randn(2, 20, generator=generator) * 10**number),
        )
        for number in range(2)
    ]
    one, other = (score(*pair) for pair in pairs)
    torch.testing.assert_close(score_many(pairs), (one + other) / 2)
    dots = score_many(pairs, ScoreSettings(method="graddot"))
    assert dots.abs().max() < 10, "the second, ten times as long, must not outweigh the first"
    stranger = store(tmp_path / "x" / "q", torch.randn(3, 20, generator=generator))
    with pytest.raises(StoreError, match="holds other rows than"):
        score_many([pairs[0], (pairs[1][0], stranger)])


@pytest.mark.parametrize("method", ["clap", "loudness"])
def test_listening_baselines_need_recordings(stores, method):
    with pytest.raises(UsageError, match=r"t/0: its recording is not at"):
        score(*stores, ScoreSettings(method=method))


@pytest.fixture
def recordings(tmp_path):
    """Three tracks, of 220 Hz, softer, and noise; and a clip that is the second of them."""
    folder = tmp_path / "audio"
    folder.mkdir()
    time = torch.arange(2 * 16000) / 16000
    generator = torch.Generator().manual_seed(0)
    sounds = [
        torch.sin(2 * torch.pi * 220 * time) * 0.8,
        torch.sin(2 * torch.pi * 220 * time) * 0.05,
        torch.randn(len(time), generator=generator) * 0.3,
    ]
    paths = []
    for number, sound in enumerate(sounds):
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], sound.numpy(), 16000)

    def of(name, rows):
        made = FeatureStore.create(
            tmp_path / name,
            sample_ids=[f"{name}/{row}" for row in rows],
            dim=1,
            latent_dim=1,
            stamp={"settings": {}},
        )
        values = torch.zeros(len(rows), 1)
        made.write(range(len(rows)), values, values, [{"path": str(paths[row])} for row in rows])
        return FeatureStore.open(tmp_path / name)

    return of("t", [0, 1, 2]), of("q", [1])


def test_loudness_is_likeness_of_one_number(recordings, monkeypatch):
    [found] = score(*recordings, ScoreSettings(method="loudness")).tolist()
    assert found[1] == 0
    assert found[0] == pytest.approx(-20 * math.log10(0.8 / 0.05), abs=0.05)
    monkeypatch.setattr(baselines, "_heard", lambda *_: pytest.fail("listened again"))
    assert score(*recordings, ScoreSettings(method="loudness")).tolist() == [found]


def test_clap_is_cosine_of_embeddings(recordings, tiny_clap_folder):
    settings = ScoreSettings(method="clap", clap_model=str(tiny_clap_folder))
    [found] = score(*recordings, settings).tolist()
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert found[2] < found[1]
