"""The running average against its definition in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stable_audio_tools.training.ema import EMA


@pytest.fixture
def layer() -> nn.Module:
    return nn.BatchNorm1d(3)  # has parameters and buffers


def test_the_decay_follows_the_law_up_to_its_cap():
    ema = EMA(nn.Linear(1, 1))
    assert ema.decay(0) == 0.0
    assert ema.decay(1) == pytest.approx(1 - 2**-0.75)
    assert ema.decay(99) == pytest.approx(1 - 100**-0.75)
    assert ema.decay(10**9) == 0.9999


def test_updates_equal_the_average_computed_by_hand(layer):
    ema = EMA(layer)
    draws = torch.Generator().manual_seed(0)
    expected = None
    for step in range(6):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, generator=draws))
            layer.running_mean.copy_(torch.randn(3, generator=draws))
        ema.update(layer)
        online = layer.weight.detach().double()
        decay = ema.decay(step)
        expected = online if expected is None else decay * expected + (1 - decay) * online
    torch.testing.assert_close(ema.ema_model.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(ema.ema_model.running_mean, layer.running_mean), "buffers are copied"
    assert int(ema.step) == 6
    assert bool(ema.initted)


def test_state_keys_are_the_public_ones_and_restore_the_average(layer):
    ema = EMA(layer)
    ema.update(layer)
    state = copy.deepcopy(ema.state_dict())
    assert set(state) == {"initted", "step", *(f"ema_model.{key}" for key in layer.state_dict())}
    other = EMA(nn.BatchNorm1d(3))
    other.load_state_dict(state)
    assert int(other.step) == 1


def test_the_average_is_not_trained(layer):
    assert not any(parameter.requires_grad for parameter in EMA(layer).parameters())
