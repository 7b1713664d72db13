"""The running average against its definition in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.factory import create_training_wrapper_from_config


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


def test_an_average_off_the_device_follows_in_strides_with_the_same_decay():
    layer = nn.Linear(2, 2)
    near, far = EMA(layer), EMA(layer, on_cpu=True)
    for step in range(40):
        with torch.no_grad():
            layer.weight.fill_(1.0 if step else 0.0)
        near.update(layer)
        far.update(layer)
    # online weights stood still after the first step, so strides lose nothing
    torch.testing.assert_close(far.ema_model.weight, near.ema_model.weight)
    assert int(far.step) == int(near.step) == 40


def test_an_average_off_the_device_stays_there_but_for_visits():
    far = EMA(nn.Linear(2, 2), on_cpu=True).to("meta")
    assert far.ema_model.weight.device.type == "cpu"
    with far.on(torch.device("cpu")):
        assert far.ema_model.weight.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_an_average_off_the_device_of_a_model_that_was_made_there():
    assert EMA(nn.Linear(2, 2).cuda(), on_cpu=True).ema_model.weight.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_an_average_off_the_device_is_what_it_would_be_there():
    layer = nn.Linear(64, 64).cuda()
    far, slow = EMA(layer, on_cpu=True), EMA(layer, on_cpu=True)
    for _ in range(40):
        with torch.no_grad():
            layer.weight.normal_()
        far.update(layer)
        slow.update(copy.deepcopy(layer).cpu())
    torch.testing.assert_close(far.ema_model.weight, slow.ema_model.weight)
    before = far.ema_model.weight.clone()
    with far.on(torch.device("cuda")):
        assert far.ema_model.weight.is_cuda
    assert torch.equal(far.ema_model.weight, before)
    assert far.ema_model.weight.is_pinned()


def test_ddp_passes_over_an_average_on_another_device(tiny_diffusion_config, tmp_path):
    tiny_diffusion_config["training"]["use_ema"] = True
    config = parse_model_config(tiny_diffusion_config)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    module.average.ema_model.to("meta")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        DistributedDataParallel(module)
    finally:
        torch.distributed.destroy_process_group()


def test_an_update_goes_on_where_a_checkpoint_left_it(layer):
    first = EMA(layer)
    for _ in range(3):
        first.update(layer)
    second = EMA(layer)
    second.update(layer)
    second.load_state_dict(first.state_dict())
    for ema in (first, second):
        with torch.no_grad():
            layer.weight.fill_(5.0)
        ema.update(layer)
    assert int(second.step) == 4
    assert torch.equal(first.ema_model.weight, second.ema_model.weight)
