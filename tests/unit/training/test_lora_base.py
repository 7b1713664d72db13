"""What lies under an adapter: never trained, and held in half precision where the run computes so."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.adapters.frozen import hold_base
from stable_audio_tools.models.adapters.lora import adapter_state_dict, apply_lora
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.schema.training import LoraConfig
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.run import train
from stable_audio_tools.training.start import hold_frozen_base

GPU = Hardware("gpu", 1, 1, "bf16-mixed", "auto")
LORA = {"rank": 4, "lr": 1e-2}


@pytest.fixture
def model(tiny_diffusion_config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = create_model_from_config(tiny_diffusion_config)
        for parameter in model.model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def adapted(model: nn.Module, kind: str = "lora") -> nn.Module:
    tuned = copy.deepcopy(model)
    apply_lora(tuned, LoraConfig(rank=4, type=kind))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in adapter_state_dict(tuned).values():
            value += 0.05 * torch.randn(value.shape, generator=draws)
    return tuned


def gradients(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output under bf16 autocast, and the gradient of each trained weight."""
    draws = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 4, 16, generator=draws), torch.randn(2, 5, 32, generator=draws)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(
            x, torch.tensor([0.2, 0.8]), cross_attn_cond=tokens, global_cond=tokens[:, :2].flatten(1)
        )
    out.float().square().mean().backward()
    return out, [value.grad for value in model.parameters() if value.requires_grad]


def test_a_base_held_in_bf16_gives_the_very_gradients_of_one_cast_in_every_step(model):
    cast, held = adapted(model), adapted(model)
    saved = hold_base(held.model, torch.bfloat16)
    layers = [module for module in held.model.modules() if type(module) is nn.Linear]
    frozen = [layer.weight for layer in layers if not layer.weight.requires_grad]
    assert all(weight.dtype == torch.bfloat16 for weight in frozen)
    assert saved > sum(weight.numel() for weight in frozen)
    assert all(value.dtype == torch.float32 for value in held.parameters() if value.requires_grad)
    (first, expected), (second, found) = gradients(cast), gradients(held)
    assert torch.equal(first, second)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_dora_on_a_base_in_bf16_is_close_to_that(model):
    cast, held = adapted(model, "dora"), adapted(model, "dora")
    hold_base(held.model, torch.bfloat16)
    (first, _), (second, _) = gradients(cast), gradients(held)
    assert (first - second).abs().max() < 0.05 * first.abs().max()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_recomputed_blocks_give_the_same_gradients(model, kind):
    plain, recomputed = adapted(model, kind).train(), adapted(model, kind).train()
    recomputed.model.model.transformer.gradient_checkpointing = True
    (first, expected), (second, found) = gradients(plain), gradients(recomputed)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


HELD = {
    "bf16 on a gpu": (GPU, None, torch.bfloat16),
    "fp16 on a gpu": (replace(GPU, precision="16-mixed"), None, torch.float16),
    "float32 on a gpu": (replace(GPU, precision="32-true"), None, torch.float32),
    "a cpu": (replace(GPU, accelerator="cpu"), None, torch.float32),
    "a cpu, asked for": (replace(GPU, accelerator="cpu"), "bf16", torch.bfloat16),
    "refused by the config": (GPU, "fp32", torch.float32),
}


@pytest.mark.parametrize("case", HELD)
def test_the_precision_of_the_base_is_that_of_the_run(model, tiny_diffusion_config, case):
    hardware, asked, expected = HELD[case]
    tuned = adapted(model)
    config = parse_model_config({**tiny_diffusion_config, "lora": {**LORA, "base_precision": asked}})
    hold_frozen_base(tuned, config, hardware)
    assert tuned.model.model.transformer.layers[0].self_attn.to_qkv.weight.dtype == expected


def test_a_precision_that_the_run_does_not_compute_in_is_refused(model, tiny_diffusion_config):
    config = parse_model_config({**tiny_diffusion_config, "lora": {**LORA, "base_precision": "fp16"}})
    with pytest.raises(UsageError, match=r"is 'fp16', but the run computes in bf16-mixed; expected 'bf16'"):
        hold_frozen_base(model, config, GPU)


def test_the_base_is_bit_for_bit_what_it_was(make_settings, tiny_diffusion_config, tmp_path, monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = create_model_from_config(tiny_diffusion_config)
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": base.state_dict()}, path)
    before, held = sha256_file(path), {}
    ends = ModelTrainer.on_save_checkpoint

    def watched(self, checkpoint):
        held.update({name: value.clone() for name, value in self.wrapped.state_dict().items()})
        ends(self, checkpoint)

    monkeypatch.setattr(ModelTrainer, "on_save_checkpoint", watched)
    config = {**copy.deepcopy(tiny_diffusion_config), "lora": LORA}
    train(make_settings(model=config, pretrained_ckpt_path=str(path)), lora=True)
    assert sha256_file(path) == before
    found = {name.replace(".base_layer", ""): value for name, value in held.items() if ".lora_" not in name}
    expected = base.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_in_bf16_holds_its_base_and_says_so(make_settings, tiny_diffusion_config, tmp_path, capsys):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": create_model_from_config(tiny_diffusion_config).state_dict()}, path)
    config = {**copy.deepcopy(tiny_diffusion_config), "lora": {**LORA, "base_precision": "bf16"}}
    condition = {"prompt": "x", "seconds_start": 0, "seconds_total": 1}
    demo = {
        "demo_every": 2,
        "demo_steps": 2,
        "num_demos": 1,
        "demo_cond": [condition],
        "demo_cfg_scales": [2],
    }
    config["training"]["demo"] = demo
    settings = make_settings(
        model=config, pretrained_ckpt_path=str(path), precision="bf16-mixed", max_steps=2
    )
    folder = train(settings, lora=True)
    said = capsys.readouterr().err
    assert "the frozen network is held in bf16" in said
    assert "failed" not in said, "demos play a held base too"
    assert list((folder / "demos").rglob("*.wav"))
