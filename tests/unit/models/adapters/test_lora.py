"""Adapters change nothing at first, merge exactly, and are files that PEFT itself reads."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_adapters import run, train_a_little
from torch import nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.attach import load_adapter
from stable_audio_tools.models.adapters.lora import (
    adapted_layers,
    adapter_state_dict,
    apply_lora,
    dropped_adapters,
    merge_adapters,
)
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.training import LoraConfig

CONFIGS = [
    LoraConfig(rank=4, alpha=8, multiplier=0.5),
    LoraConfig(rank=4, type="dora"),
    LoraConfig(rank=2, alpha=0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["lora", "dora", "no-alpha"])
def test_fresh_adapters_change_nothing_and_alone_are_trained(model, config):
    before = run(model)
    targets = apply_lora(model, config)
    torch.testing.assert_close(run(model), before, rtol=0, atol=1e-5)
    assert targets
    assert all("transformer" in path.split(".") for path in targets)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("config", CONFIGS, ids=["lora", "dora", "no-alpha"])
def test_merged_equals_unmerged_under_the_public_keys(model, config):
    keys, before = list(model.state_dict()), run(model)
    apply_lora(model, config)
    train_a_little(model)
    adapted = run(model)
    assert (adapted - before).abs().max() > 1e-3
    merge_adapters(model)
    torch.testing.assert_close(run(model), adapted, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == keys
    assert not adapted_layers(model)


def test_the_update_is_alpha_over_rank_times_multiplier_times_b_a(model):
    before = copy.deepcopy(model.state_dict())
    path = apply_lora(model, LoraConfig(rank=4, alpha=2, multiplier=3.0))[0]
    train_a_little(model)
    weights = copy.deepcopy(adapter_state_dict(model))
    merge_adapters(model)
    expected = 2 / 4 * 3.0 * weights[f"{path}.lora_B.weight"] @ weights[f"{path}.lora_A.weight"]
    torch.testing.assert_close(
        model.state_dict()[f"{path}.weight"] - before[f"{path}.weight"], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("config", CONFIGS, ids=["lora", "dora", "no-alpha"])
def test_a_saved_adapter_loads_here_and_in_peft(tmp_path, model, config):
    from peft import PeftModel

    base = copy.deepcopy(model)
    apply_lora(model, config)
    train_a_little(model)
    save_adapter(model, tmp_path, base_sha256="abc", base_name="base.ckpt")
    ours, peft = copy.deepcopy(base), PeftModel.from_pretrained(nn.ModuleDict({"m": base})["m"], tmp_path)
    load_adapter(ours, tmp_path)
    assert torch.equal(run(ours), run(model))
    torch.testing.assert_close(run(peft.base_model.model), run(model), rtol=0, atol=1e-6)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["revision"], written["base_model_name_or_path"]) == ("sha256:abc", "base.ckpt")


def test_another_base_is_said(tmp_path, model, capsys):
    apply_lora(model, LoraConfig())
    save_adapter(model, tmp_path, base_sha256="a" * 64)
    load_adapter(model, tmp_path, base_sha256="b" * 64)
    assert "trained on base aaaaaaaaaaaa, but the base here is bbbbbbbbbbbb" in capsys.readouterr().err
    load_adapter(model, tmp_path, base_sha256="a" * 64)
    assert capsys.readouterr().err == ""


def test_fresh_adapters_follow_the_seed_and_leave_the_global_generator_alone(model):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        fresh = copy.deepcopy(model)
        apply_lora(fresh, LoraConfig(), seed)
        states.append(adapter_state_dict(fresh))
        after = torch.rand(())
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(()))
    name = next(key for key in states[0] if "lora_A" in key)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_module_dropout_leaves_out_keyed_adapters_for_the_block_only(model):
    before = run(model)
    apply_lora(model, LoraConfig())
    train_a_little(model)
    whole = run(model)
    outputs = []
    for key in (1, 1, 2):
        with dropped_adapters(model, 0.5, "module dropout", key):
            outputs.append(run(model))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], whole)
    assert not torch.equal(outputs[0], before)
    assert torch.equal(run(model), whole)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(adapter_state_dict(model))


def test_weight_normed_convolutions_are_refused_by_name(model):
    with pytest.raises(UsageError, match=r"weight-normalised convolution 'pretransform\.model\."):
        apply_lora(model, LoraConfig(component_whitelist=["pretransform"]))


def test_a_whitelist_that_meets_nothing_is_an_error(model):
    with pytest.raises(UsageError, match=r"no linear layer has \['transfomer'\] in its path"):
        apply_lora(model, LoraConfig(component_whitelist=["transfomer"]))


def test_adapters_of_another_shape_or_place_are_refused(tmp_path, model, tiny_diffusion_config):
    apply_lora(model, LoraConfig(rank=4))
    save_adapter(model, tmp_path / "four")
    tiny_diffusion_config["model"]["diffusion"]["config"]["depth"] = 1
    with pytest.raises(CheckpointError, match=r"layers\.1\..*does not have"):
        load_adapter(create_model_from_config(tiny_diffusion_config), tmp_path / "four")
    merge_adapters(model)
    apply_lora(model, LoraConfig(rank=4, component_whitelist=["self_attn"]))
    with pytest.raises(CheckpointError, match="unexpected adapter weights"):
        load_adapter(model, tmp_path / "four")
    merge_adapters(model)
    apply_lora(model, LoraConfig(rank=2))
    with pytest.raises(CheckpointError, match="found rank 4, expected 2; check the rank"):
        load_adapter(model, tmp_path / "four")
    with pytest.raises(CheckpointError, match="absent: no such adapter; expected a PEFT folder"):
        load_adapter(model, tmp_path / "absent")
