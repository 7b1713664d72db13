"""Inpainting: masks from regions, and sampling that leaves the kept parts as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.diffusion.inpainting import latent_mask, region_mask
from stable_audio_tools.diffusion.noise import PerClipNoise
from stable_audio_tools.diffusion.samplers import SAMPLERS, sample
from stable_audio_tools.errors import UsageError

LENGTH = 20
EVERY_SAMPLER = [(family, name) for family, samplers in SAMPLERS.items() for name in samplers]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor, return_info: bool = False, **_: Any) -> Any:
    """Looks at the neighbours too, so that what is kept matters to what is not."""
    mixed = torch.tanh(x + 0.5 * x.roll(1, -1) - 0.3 * x.roll(-1, -1)) * (1 + t.view(-1, 1, 1))
    return (mixed, {"uncond_output": mixed * 0.5}) if return_info else mixed


def run(
    family: str, sampler: str, mask: Tensor | None, known: Tensor | None = None, **options: Any
) -> Tensor:
    torch.manual_seed(0)
    return sample(
        network,
        randn(2, 3, LENGTH),
        **{"objective": family, "sampler": sampler, "steps": 6, "sigma_min": 0.1, "sigma_max": None}
        | options,
        known=randn(2, 3, LENGTH, seed=9) if known is None else known,
        known_mask=mask,
    )


def hard_mask() -> Tensor:
    mask = torch.ones(2, 1, LENGTH)
    mask[0, :, 3:7] = 0
    mask[0, :, 12:15] = 0
    mask[1, :, 10:] = 0
    return mask


@pytest.mark.parametrize(("family", "sampler"), EVERY_SAMPLER)
def test_kept_parts_come_back_and_the_rest_is_new(family: str, sampler: str) -> None:
    known, mask = randn(2, 3, LENGTH, seed=9), hard_mask()
    seen: list[Tensor] = []
    found = run(family, sampler, mask, callback=lambda info: seen.append(info["denoised"]))
    kept = mask.expand_as(found) == 1
    assert torch.equal(found[kept], known[kept])
    assert float((found - known)[~kept].abs().mean()) > 0.1
    assert torch.isfinite(found).all()
    for denoised in seen:  # not only at the end: the sampler was led there at every step
        torch.testing.assert_close(denoised[kept], known[kept], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("family", "sampler"), EVERY_SAMPLER)
def test_a_mask_of_zeros_is_plain_sampling(family: str, sampler: str) -> None:
    torch.testing.assert_close(run(family, sampler, torch.zeros(2, 1, LENGTH)), run(family, sampler, None))


@pytest.mark.parametrize(("family", "sampler"), EVERY_SAMPLER)
def test_what_is_kept_shapes_what_is_not(family: str, sampler: str) -> None:
    mask = hard_mask()
    new = mask.expand(2, 3, LENGTH) == 0
    found = run(family, sampler, mask)
    assert not torch.allclose(found[new], run(family, sampler, mask, known=randn(2, 3, LENGTH, seed=8))[new])


@pytest.mark.parametrize(
    ("family", "sampler"), [("v", "dpmpp-2m-sde"), ("v", "k-heun"), ("rectified_flow", "rk4")]
)
def test_soft_values_are_between_kept_and_new(family: str, sampler: str) -> None:
    known = randn(2, 3, LENGTH, seed=9)
    distances = [
        float((run(family, sampler, torch.full((2, 1, LENGTH), value), steps=40) - known).abs().mean())
        for value in (0.0, 0.5, 0.8, 1.0)
    ]
    assert distances[-1] == 0
    assert distances == sorted(distances, reverse=True)
    assert len(set(distances)) == 4


@pytest.mark.parametrize(
    ("family", "sampler"), [("v", "k-heun"), ("v", "dpmpp-3m-sde"), ("rectified_flow", "euler")]
)
def test_init_data_varies_only_what_is_not_kept(family: str, sampler: str) -> None:
    known, mask = randn(2, 3, LENGTH, seed=9), hard_mask()
    found = run(family, sampler, mask, init_data=randn(2, 3, LENGTH, seed=4), sigma_max=0.5)
    kept = mask.expand_as(found) == 1
    assert torch.equal(found[kept], known[kept])
    assert not torch.allclose(found[~kept], run(family, sampler, mask, sigma_max=0.5)[~kept])


def test_a_clip_does_not_depend_on_the_mask_beside_it() -> None:
    mask, known = hard_mask(), randn(2, 3, LENGTH, seed=9)
    options: dict[str, Any] = {"objective": "v", "sampler": "dpmpp-2m-sde", "steps": 5}

    def clips(which: list[int]) -> Tensor:
        source = PerClipNoise(which)
        noise = source.initial((3, LENGTH))
        return sample(
            network, noise, **options, known=known[which], known_mask=mask[which], noise_source=source
        )

    torch.testing.assert_close(clips([0, 1])[1:], clips([1]))


def test_regions_are_regenerated_wherever_they_are() -> None:
    mask = region_mask([(0.5, 1.0), (0.8, 1.2), (2.5, 9.0)], length=30, rate=10.0)
    assert mask.tolist() == [1] * 5 + [0] * 7 + [1] * 13 + [0] * 5


def test_a_fade_falls_from_kept_to_new_within_the_region() -> None:
    mask = region_mask([(1.0, 3.0)], length=400, rate=100.0, fade_seconds=0.5)
    assert mask[:100].eq(1).all()
    assert mask[300:].eq(1).all()
    assert mask[150:250].abs().max() < 1e-6
    assert torch.equal(mask, mask.flip(0))
    assert (mask[100:150].diff() < 0).all()
    assert float(mask[124:126].mean()) == pytest.approx(0.5, abs=1e-6)
    short = region_mask([(1.0, 1.2)], length=400, rate=100.0, fade_seconds=0.5)
    assert float(short.min()) < 0.01
    ends = region_mask([(0, 1.0), (3.0, 4.0)], length=400, rate=100.0, fade_seconds=0.5)
    assert ends[:50].abs().max() < 1e-6
    assert ends[350:].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("regions", "fade"), [([(1.0, 1.0)], 0.0), ([(-1.0, 1.0)], 0.0), ([(2, 1)], 0.0), ([], -1.0)]
)
def test_regions_that_make_no_sense_are_refused(regions: list[tuple[float, float]], fade: float) -> None:
    with pytest.raises(UsageError, match="expected"):
        region_mask(regions, 100, 10.0, fade)


def test_masks_over_samples_become_masks_over_frames() -> None:
    rows = torch.zeros(2, 80)
    rows[1, 40:] = 0.5
    assert torch.equal(latent_mask(rows, 2, 8)[:, 0], rows[:, ::10])
    assert latent_mask(torch.ones(80), 3, 8).shape == (3, 1, 8)
    assert latent_mask(torch.ones(1, 80, dtype=torch.bool), 3, 8).shape == (3, 1, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(2, 80), r"found shape \(2, 80\), expected \(T,\) or \(1 or 3, T\)"),
        (lambda: torch.ones(1, 1, 80), "found shape"),
        (lambda: torch.ones(0), "found shape"),
        (lambda: torch.full((80,), 1.5), "found values from 1.5 to 1.5, expected 0"),
        (lambda: torch.full((80,), float("nan")), "found values from nan"),
    ],
)
def test_masks_that_make_no_sense_are_refused(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        latent_mask(make(), 3, 8)
