"""The loss, its mask, guidance dropout and bands, against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.data.latent_files import latent_mask
from stable_audio_tools.training.loss import BandedLoss, diffusion_loss


class Scale(nn.Module):
    """A network that answers with a multiple of its input."""

    def forward(self, x: Tensor, t: Tensor, factor: float = 0.3) -> Tensor:
        return factor * x


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.fixture
def case(draws):
    return (
        torch.randn(3, 4, 10, generator=draws),
        torch.randn(3, 4, 10, generator=draws),
        torch.rand(3, generator=draws),
    )


def reference(latents: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None) -> float:
    """The v loss by its definition, in float64 and in loops."""
    total, count = 0.0, 0
    for b in range(latents.shape[0]):
        alpha, sigma = math.cos(float(t[b]) * math.pi / 2), math.sin(float(t[b]) * math.pi / 2)
        for step in range(latents.shape[2]):
            if mask is not None and not mask[b, step]:
                continue
            for c in range(latents.shape[1]):
                x, n = float(latents[b, c, step]), float(noise[b, c, step])
                total += (0.3 * (alpha * x + sigma * n) - (alpha * n - sigma * x)) ** 2
                count += 1
    return total / count


def test_the_loss_is_its_definition(case):
    latents, noise, t = case
    loss = diffusion_loss(Scale(), latents, noise, t, {}, "v")
    assert float(loss.mean) == pytest.approx(reference(latents, noise, t, None), rel=1e-5)
    assert float(loss.per_item.mean()) == pytest.approx(float(loss.mean), rel=1e-5)


def test_the_masked_loss_is_a_masked_mean(case):
    latents, noise, t = case
    mask = (torch.arange(10) < torch.tensor([[10], [6], [1]])).float()
    loss = diffusion_loss(Scale(), latents, noise, t, {}, "v", mask)
    assert float(loss.mean) == pytest.approx(reference(latents, noise, t, mask), rel=1e-5)
    alone = diffusion_loss(Scale(), latents[1:2], noise[1:2], t[1:2], {}, "v", mask[1:2])
    assert float(loss.per_item[1]) == pytest.approx(float(alone.mean), rel=1e-5)


def test_what_is_padded_does_not_matter(case):
    latents, noise, t = case
    mask = (torch.arange(10) < 5).float().expand(3, 10)
    changed = torch.where(mask[:, None].bool(), latents, 1e3)
    assert torch.equal(
        diffusion_loss(Scale(), latents, noise, t, {}, "v", mask).mean,
        diffusion_loss(Scale(), changed, noise, t, {}, "v", mask).mean,
    )


def test_a_latent_counts_as_its_first_sample():
    samples = torch.zeros(2, 16)
    samples[0, :9] = 1
    samples[1, :16] = 1
    assert latent_mask(samples, 4).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_bands_hold_the_mean_of_their_timesteps():
    bands = BandedLoss(4)
    bands.add(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    bands.add(torch.tensor([7.0]), torch.tensor([0.5]))
    sums = bands.take()
    assert sums is not None
    assert sums.tolist() == [[4.0, 0.0, 7.0, 5.0], [2.0, 0.0, 1.0, 1.0]]
    assert bands.take() is None
    assert bands.name(3) == "train/loss_t0.75-1.00"
