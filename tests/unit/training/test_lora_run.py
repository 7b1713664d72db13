"""Training adapters: only they are trained and saved, and a run of them can be continued."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from run_folders import load

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.attach import load_adapter
from stable_audio_tools.models.adapters.lora import adapter_state_dict
from stable_audio_tools.models.checkpoints import load_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.training.run import train

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2, "module_dropout": 0.2, "lr": 1e-2}


@pytest.fixture
def base(make_settings, tmp_path) -> Path:
    run = train(make_settings(name="base", max_steps=2))
    return unwrap_checkpoint(run / "checkpoints" / "step=00000002.ckpt", None, tmp_path / "base")


@pytest.fixture
def lora_config(tiny_diffusion_config):
    return {**copy.deepcopy(tiny_diffusion_config), "lora": LORA}


def test_adapters_alone_are_saved_and_resume_exactly(make_settings, base, lora_config):
    options = {"model": lora_config, "pretrained_ckpt_path": str(base)}
    whole = train(make_settings(**options), lora=True)
    half = train(make_settings(**options, max_steps=2), lora=True)
    again = train(make_settings(**options, ckpt_path=str(half / "checkpoints/step=00000002.ckpt")), lora=True)
    first, second = load(whole, 4)["state_dict"], load(again, 4)["state_dict"]
    assert first.keys() == second.keys()
    assert all(".lora_" in key for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(bool(value.abs().max() > 0) for key, value in first.items() if "lora_B" in key), (
        "they were trained"
    )


def test_the_adapter_folder_holds_the_checkpoint_s_weights_and_its_base(
    make_settings, base, lora_config, tiny_diffusion_config, capsys
):
    run = train(make_settings(model=lora_config, pretrained_ckpt_path=str(base)), lora=True)
    folder = run / "checkpoints" / "step=00000004.adapter"
    model = create_model_from_config(tiny_diffusion_config)
    load_checkpoint(model, base)
    capsys.readouterr()
    load_adapter(model, folder, base_sha256=sha256_file(base))
    assert capsys.readouterr().err == ""
    saved = load(run, 4)["state_dict"]
    own = adapter_state_dict(model)
    assert len(own) == len(saved)
    for key, value in saved.items():
        name = key.removeprefix("diffusion.").replace(".default", "")
        assert torch.equal(own[name], value)


def test_an_adapter_is_a_place_to_start_from(make_settings, base, lora_config):
    options = {"model": lora_config, "pretrained_ckpt_path": str(base)}
    first = train(make_settings(**options, max_steps=2), lora=True)
    adapter = first / "checkpoints" / "step=00000002.adapter"
    second = train(make_settings(**options, max_steps=1, lora_ckpt_path=str(adapter)), lora=True)
    before, after = load(first, 2)["state_dict"], load(second, 1)["state_dict"]
    key = next(key for key in before if "lora_A" in key)
    assert not torch.equal(before[key], after[key])
    assert (before[key] - after[key]).abs().max() < 0.05, "one step away, not a fresh draw"


def test_old_adapter_folders_go_with_their_checkpoints(make_settings, base, lora_config):
    options = {"pretrained_ckpt_path": str(base), "save_top_k": 1, "checkpoint_every": 1}
    run = train(make_settings(model=lora_config, **options), lora=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step=00000004.adapter",
        "step=00000004.ckpt",
    ]


def test_adapters_need_a_base(make_settings, lora_config):
    with pytest.raises(UsageError, match="adapters need the trained model"):
        train(make_settings(model=lora_config), lora=True)


def test_another_kind_of_adapter_does_not_continue(make_settings, base, lora_config):
    options = {"pretrained_ckpt_path": str(base)}
    run = train(make_settings(model=lora_config, max_steps=1, **options), lora=True)
    other = {**lora_config, "lora": {**LORA, "type": "dora"}}
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of this LoRA run"):
        train(
            make_settings(model=other, ckpt_path=str(run / "checkpoints/step=00000001.ckpt"), **options),
            lora=True,
        )
