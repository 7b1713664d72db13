"""The masks that inpainting models are trained with: their kinds, their odds, their bounds, their keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.schema.training import InpaintMaskConfig
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.inpainting import DiffusionCondInpaintTrainer, random_masks

LENGTH = 40


def masks(odds: tuple[float, float, float], count: int = 300, real: int = LENGTH, **options: int) -> Tensor:
    config = InpaintMaskConfig(mask_type_probabilities=odds, **options)
    return random_masks([real] * count, LENGTH, config, Key(0, "test").each("mask", count))[:, 0]


def runs_of_zeros(mask: Tensor) -> int:
    padded = torch.cat([torch.ones(1), mask])
    return int(((padded[:-1] == 1) & (padded[1:] == 0)).sum())


def test_a_full_mask_leaves_nothing() -> None:
    assert masks((0, 1, 0)).sum() == 0


def test_a_causal_mask_keeps_the_beginning_of_any_length() -> None:
    found = masks((0, 0, 1))
    kept = found.sum(dim=1).long()
    assert torch.equal(found, (torch.arange(LENGTH) < kept[:, None]).float())
    assert int(kept.min()) == 0
    assert int(kept.max()) == LENGTH
    assert abs(float(kept.float().mean()) - LENGTH / 2) < 3


@pytest.mark.parametrize("most", [1, 4])
def test_segments_are_as_many_and_as_long_as_they_may_be(most: int) -> None:
    found = masks((1, 0, 0), max_mask_segments=most)
    counts = torch.tensor([runs_of_zeros(mask) for mask in found])
    assert int(counts.min()) >= 1
    assert int(counts.max()) <= most
    assert int(counts.max()) > most // 2
    assert int((found == 0).sum(dim=1).max()) <= LENGTH
    if most == 1:
        assert int((found == 0).sum(dim=1).max()) > 0.9 * LENGTH


@pytest.mark.parametrize("odds", [(1, 0, 0), (0, 0, 1)])
@pytest.mark.parametrize("real", [0, 1, 13])
def test_padding_is_left_alone(odds: tuple[float, float, float], real: int) -> None:
    found = masks(odds, real=real)
    assert bool((found[:, real:] == 1).all())
    assert real == 0 or bool((found[:, :real] == 0).any())


def test_the_odds_are_those_of_the_config() -> None:
    found = masks((0.1, 0.8, 0.1), count=2000)
    full = float((found.sum(dim=1) == 0).float().mean())
    assert full == pytest.approx(0.8, abs=0.04)


def test_a_mask_depends_on_its_key_and_place_alone() -> None:
    config = InpaintMaskConfig(mask_type_probabilities=(1, 0, 0))

    def drawn(step: int, count: int = 4) -> Tensor:
        return random_masks([LENGTH] * count, LENGTH, config, Key(42, step).each("mask", count))

    first = drawn(7)
    torch.manual_seed(3)
    assert torch.equal(first, drawn(7))
    assert torch.equal(first[:2], drawn(7, 2))
    assert not torch.equal(first, drawn(8))
    assert not torch.equal(first[0], first[1])


def inpainting(config):
    config = copy.deepcopy(config)
    config["model_type"] = "diffusion_cond_inpaint"
    diffusion = config["model"]["diffusion"]
    diffusion["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["input_concat_dim"] = 5
    return config


@pytest.fixture
def module(tiny_diffusion_config):
    config = inpainting(tiny_diffusion_config)
    config["training"]["inpainting"] = {"mask_kwargs": {"mask_type_probabilities": [0, 0, 1]}}
    return create_training_wrapper_from_config(config, create_model_from_config(config))


def infos(padded_from: int | None = None):
    mask = torch.ones(8192)
    if padded_from is not None:
        mask[padded_from:] = 0
    return [{"prompt": "rock", "seconds_start": 0, "seconds_total": 1, "padding_mask": mask}] * 2


def test_the_network_sees_the_mask_and_what_it_leaves(module) -> None:
    assert isinstance(module, DiffusionCondInpaintTrainer)
    latents = torch.randn(2, 4, 64)
    beside = module.conditioning(infos(padded_from=4096), latents, Key(1, 2))["input_concat_cond"]
    mask = beside[:, :1]
    assert beside.shape == (2, 5, 64)
    assert torch.equal(beside[:, 1:], latents * mask)
    assert bool((mask[..., 32:] == 1).all()), "what is padding is not to be regenerated"
    assert bool((mask[..., :32] == 0).any())
    assert torch.equal(beside, module.conditioning(infos(4096), latents, Key(1, 2))["input_concat_cond"])


def test_validation_of_an_inpainting_model_works(module) -> None:
    module.validation_step((0.1 * torch.randn(2, 2, 8192), infos()), 0)
    assert len(module._validation) == 1


def test_what_asks_for_masks_without_taking_them_is_refused(tiny_diffusion_config) -> None:
    tiny_diffusion_config["training"]["inpainting"] = {}
    model = create_model_from_config(tiny_diffusion_config)
    with pytest.raises(ConfigError, match="needs 'inpaint_mask' and 'inpaint_masked_input' there"):
        create_training_wrapper_from_config(tiny_diffusion_config, model)


@pytest.mark.parametrize("odds", [[0.5, 0.5, 0.5], [-0.5, 1.0, 0.5]])
def test_odds_that_do_not_add_up_are_refused(tiny_diffusion_config, odds) -> None:
    config = inpainting(tiny_diffusion_config)
    config["training"]["inpainting"] = {"mask_kwargs": {"mask_type_probabilities": odds}}
    with pytest.raises(ConfigError, match=r"inpainting\.mask_kwargs: mask_type_probabilities .* add up to 1"):
        parse_model_config(config)
