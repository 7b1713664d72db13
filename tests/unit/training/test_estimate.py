"""What a run takes of a card, against counts and properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.schema.training import OptimizerConfig
from stable_audio_tools.training import estimate as estimating
from stable_audio_tools.training.estimate import advise, count_activations, estimate, state_bytes, ways


@pytest.fixture
def config(tiny_diffusion_config):
    return parse_model_config(tiny_diffusion_config)


def test_what_can_be_counted_is_counted(config, make_settings):
    model = create_model_from_config(config)
    sizes = {trained: 0 for trained in (True, False)}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    found = estimate(config, make_settings())
    assert found.trained_parameters == sizes[True]
    assert found.parameters == found.gradients == 4 * sizes[True]
    assert found.optimizer == 8 * sizes[True], "two float32 moments"
    assert found.frozen == 4 * sizes[False], "the text encoder is a folder of unknown size"
    assert found.average == 4 * sum(parameter.numel() for parameter in model.model.parameters())


def test_activations_are_what_autograd_keeps(config):
    """Counted without content, and with it, by the storages that are kept alive."""
    counted = count_activations(config)
    model = create_model_from_config(config)
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = {name: value.expand(2, *value.shape[1:]) for name, value in estimating._inputs(config).items()}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.model.train()(
            torch.randn(2, model.io_channels, estimating._tokens(config)), torch.rand(2), **inputs
        )
    real = sum(size for address, size in kept.items() if address not in own)
    assert 2 * counted.each + counted.fixed == pytest.approx(real, rel=0.1)


def test_memory_grows_with_the_batch_and_shrinks_by_policy(config, make_settings):
    settings = make_settings(compile=False)
    counted = count_activations(config)

    def activations(**changes):
        return estimate(config, replace(settings, **changes), activations=counted).activations

    assert activations(batch_size=8) - activations(batch_size=4) == 4 * counted.each
    assert activations() > activations(activation_checkpointing="full")
    moved = estimate(config, replace(settings, ema_on_cpu=True), activations=counted)
    assert moved.average == 0
    assert moved.average_on_cpu > 0


def test_advice_fits_the_card_and_says_when_none_does(config, make_settings):
    settings = make_settings(batch_size=8, compile=False)
    counted = count_activations(config)
    whole = estimate(config, settings, activations=counted).total
    found_ways = ways(config, settings, False, counted)
    assert advise(found_ways, whole) == (
        "",
        estimate(config, settings, activations=counted),
    )
    flags, found = advise(found_ways, whole - 1)
    assert "--activation-checkpointing" in flags
    assert found.total < whole
    assert advise(found_ways, 10**6) is None


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [("AdamW", {}, 8), ("SGD", {"lr": 0.1}, 0), ("SGD", {"lr": 0.1, "momentum": 0.9}, 4)],
)
def test_an_optimizer_keeps_what_it_keeps(kind, arguments, expected):
    assert state_bytes(OptimizerConfig(type=kind, config=arguments)) == expected


def test_other_models_are_refused_with_a_way_out(make_settings):
    class Other:
        model_type = "lm"

    with pytest.raises(UsageError, match="max-steps 3"):
        count_activations(Other())  # type: ignore[arg-type]
