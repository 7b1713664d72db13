"""Inner products by the fast ways are those of the shipped gradients and scores."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.attribution.features.extract import gradient_features
from stable_audio_tools.attribution.gradients.rows import DenseGradients
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.proof.kernels import (
    FeaturePlan,
    Kernels,
    kernels_of,
    taken,
    whole_gradients,
)
from stable_audio_tools.attribution.proof.methods import Method, Scorer
from stable_audio_tools.attribution.proof.similarity import aligned_cosine, covariance_cosine, frame_cosine
from stable_audio_tools.attribution.scoring.scores import regularised_scores
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.errors import StoreError, UsageError


@pytest.mark.parametrize("f", ["loss", "mean-squared-l2-norm"])
def test_whole_gradients_are_those_taken_one_by_one(model, tracks, f):
    settings = FeatureSettings(f=f, K=2)
    batch = tracks(model, 5, "t", 0)
    found = whole_gradients(model, batch, FeaturePlan("whole", settings, whole=True), 3)
    expected = DenseGradients(model.model, dim=0)(batch, DiffusionTask(model, settings).passes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_whole_gradients_refuse_noise_of_each_track(model, tracks):
    plan = FeaturePlan("whole", FeatureSettings(noise="per-track"), whole=True)
    with pytest.raises(UsageError, match="shared noise"):
        whole_gradients(model, tracks(model, 2, "t", 0), plan, 2)


def test_kernels_are_products_of_shipped_rows_summed_over_noises(model, tracks):
    settings = FeatureSettings(f="loss", K=2)
    rows, clips = tracks(model, 6, "t", 0), tracks(model, 3, "q", 1)
    found = kernels_of(model, rows, clips, FeaturePlan("loss", settings, (0, 1)), 4)
    phi = []
    for batch in (rows, clips):
        sums = 0
        for e_seed in (0, 1):
            task = DiffusionTask(model, FeatureSettings(f="loss", K=2, e_seed=e_seed))
            sums = sums + gradient_features(model, settings)(batch, task.passes).double()
        phi.append(sums)
    torch.testing.assert_close(found.tracks, phi[0] @ phi[0].T, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.cross, phi[1] @ phi[0].T, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.own, (phi[1] ** 2).sum(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("whole", [False, True])
def test_several_measurements_are_their_kernels_over_their_spread(model, tracks, whole):
    rows, clips = tracks(model, 6, "t", 0), tracks(model, 3, "q", 1)
    plans = {
        f: FeaturePlan(f, FeatureSettings(f=f, K=2), whole=whole)
        for f in ("mean-squared-l2-norm", "loss", "mean-squared-l2-norm+loss")
    }
    held = {f: kernels_of(model, rows, clips, plan) for f, plan in plans.items()}
    names = tuple(held)
    together = Scorer(held).scores(Method("beside", names[:2], beside=True))
    torch.testing.assert_close(Scorer(held).scores(Method("both", names[2:])), together, rtol=1e-4, atol=1e-7)
    assert [plans[f].passes for f in names] == [2 + 2 * whole, 2 + 2 * whole, 4 + 4 * whole]


def kernel(seed=0, tracks=9, queries=4):
    draw = torch.Generator().manual_seed(seed)
    return Kernels.of(torch.randn(tracks, 30, generator=draw), torch.randn(queries, 30, generator=draw))


def test_scores_are_the_shipped_ones():
    held = kernel()
    scorer = Scorer({"a": held})
    for scale in (0.01, 0.1, 3.0):
        torch.testing.assert_close(
            scorer.scores(Method("m", ("a",), lambda_scale=scale)),
            regularised_scores(held.tracks, held.cross, lambda_scale=scale),
        )
    squared = scorer.scores(Method("m", ("a",), square=True))
    torch.testing.assert_close(squared, regularised_scores(held.tracks, held.cross) ** 2)
    cosines = scorer.scores(Method("m", ("a",), "gradcos"))
    assert cosines.abs().max() <= 1


def test_a_mean_weighs_its_parts_alike():
    one, other = kernel(0), kernel(1)
    scaled = Kernels(other.tracks * 1e6, other.cross * 1e6, other.own * 1e6)
    mean = Method("mean", ("a", "b"), "graddot")
    torch.testing.assert_close(
        Scorer({"a": one, "b": other}).scores(mean), Scorer({"a": one, "b": scaled}).scores(mean)
    )
    parts = Method("parts", parts=(Method("a", ("a",), "graddot"), Method("b", ("b",), "graddot")))
    torch.testing.assert_close(
        Scorer({"a": one, "b": other}).scores(mean), Scorer({"a": one, "b": other}).scores(parts)
    )
    assert parts.needs() == {"a", "b"}
    assert not Scorer({"a": one}).can(parts)


def test_a_saved_kernel_is_itself_to_float32(tmp_path):
    held = kernel()
    held.save(tmp_path / "k.npz")
    found = Kernels.load(tmp_path / "k.npz")
    torch.testing.assert_close(found.tracks, held.tracks, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.cross, held.cross, rtol=1e-6, atol=1e-5)
    assert torch.equal(found.tracks, found.tracks.T)


def test_a_kernel_that_does_not_fit_is_refused(tmp_path):
    import numpy as np

    one = {"scale": np.array(1.0), "upper": np.zeros(5, np.float32), "cross": np.zeros((2, 4), np.float32)}
    np.savez(tmp_path / "k.npz", own=np.zeros(2, np.float32), **one)
    with pytest.raises(StoreError, match="cut off or of another run"):
        Kernels.load(tmp_path / "k.npz")


def test_a_shifted_copy_is_found_by_the_aligned_cosine(model, tracks):
    rows = tracks(model, 8, "t", 0)
    rows = LatentBatch(rows.sample_ids, rows.latents, torch.ones_like(rows.mask), rows.conditioning)
    shifted = torch.zeros_like(rows.latents)
    shifted[..., 3:] = rows.latents[..., :-3]
    query = taken(LatentBatch(rows.sample_ids, shifted, rows.mask, rows.conditioning), [5])
    assert aligned_cosine(rows, query).argmax().item() == 5
    same = taken(rows, [5])
    for score in (aligned_cosine, frame_cosine, covariance_cosine):
        assert score(rows, same)[0, 5].item() == pytest.approx(1.0, abs=1e-5)
        assert score(rows, same).max() <= 1 + 1e-5
