"""What makes a step fast or small changes no numbers, and no names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.nn.transformer import TransformerBlock
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.speed import make_fast, set_checkpointing

CPU = Hardware("cpu", 1, 1, "32-true", "auto")


@pytest.fixture
def model(tiny_diffusion_config) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = create_model_from_config(tiny_diffusion_config)
        for parameter in model.model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def compiled(monkeypatch) -> list[nn.Module]:
    """What was asked to be compiled."""
    asked: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(self))
    return asked


def trainer(model: Any, config: dict[str, Any], **options: Any) -> Any:
    return create_training_wrapper_from_config(parse_model_config(config), model, **options)


def gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    draw = torch.Generator().manual_seed(2)
    dit = model.config.model.diffusion.config
    x = torch.randn(2, model.io_channels, 16, generator=draw)
    inputs = {"cross_attn_cond": torch.randn(2, 5, dit.cond_token_dim, generator=draw)}
    if dit.global_cond_dim:
        inputs["global_cond"] = torch.randn(2, dit.global_cond_dim, generator=draw)
    model.model.train()(x, torch.tensor([0.2, 0.7]), **inputs).square().sum().backward()
    return [parameter.grad for parameter in model.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("policy", ["half", "full"])
def test_computing_again_changes_no_gradient(model, policy):
    expected = gradients(model)
    assert set_checkpointing(model, policy) == 1
    for found, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, want)


def test_half_computes_every_second_block_again(model, monkeypatch):
    calls = []
    from stable_audio_tools.nn import transformer

    real = transformer.checkpoint
    monkeypatch.setattr(
        transformer, "checkpoint", lambda layer, *args, **kw: calls.append(layer) or real(layer, *args, **kw)
    )
    layers = model.model.model.transformer.layers
    for policy, expected in (("none", 0), ("half", -(-len(layers) // 2)), ("full", len(layers))):
        calls.clear()
        set_checkpointing(model, policy)
        gradients(model)
        assert len(calls) == expected, policy


def test_a_model_without_blocks_cannot_compute_them_again(model, tiny_diffusion_config, make_settings):
    module = trainer(model, tiny_diffusion_config)
    model.model = nn.Linear(1, 1)
    with pytest.raises(UsageError, match="no transformer blocks"):
        make_fast(module, make_settings(activation_checkpointing="full"), CPU)


def test_compiling_is_for_gpus_unless_told(model, tiny_diffusion_config, make_settings, compiled):
    module = trainer(model, tiny_diffusion_config)
    blocks = [each for each in model.modules() if isinstance(each, TransformerBlock)]
    names = list(model.state_dict())
    make_fast(module, make_settings(), CPU)
    assert not compiled
    make_fast(module, make_settings(compile=True), CPU)
    assert [each for each in compiled if isinstance(each, TransformerBlock)] == blocks
    assert model.pretransform.model.encoder in compiled, "the frozen encoder hears every batch"
    compiled.clear()
    threads = torch.get_num_threads()
    make_fast(module, make_settings(), replace(CPU, accelerator="gpu"))
    torch.set_num_threads(threads)
    assert blocks[0] in compiled
    assert list(model.state_dict()) == names


def test_adapters_that_sit_steps_out_are_not_compiled(model, tiny_diffusion_config, make_settings, compiled):
    from stable_audio_tools.models.adapters.lora import apply_lora

    config = {**tiny_diffusion_config, "lora": {"rank": 2, "module_dropout": 0.5}}
    apply_lora(model, parse_model_config(config).lora)
    make_fast(trainer(model, config, lora=True), make_settings(compile=True), CPU)
    assert not compiled


def test_a_flag_of_the_same_name_elsewhere_is_left_alone(model):
    """Layers of transformers, such as those of a text encoder that is trained, have one."""
    model.conditioner.other = nn.Linear(1, 1)
    model.conditioner.other.gradient_checkpointing = False
    set_checkpointing(model, "full")
    assert model.conditioner.other.gradient_checkpointing is False
