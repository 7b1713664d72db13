"""Every model config in the repository builds, and shrunk to a toy it runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.models.factory import create_model_from_config, create_model_from_config_path
from stable_audio_tools.schema.reader import read_model_config

ROOT = Path(__file__).parents[3]
CONFIGS = [
    *sorted(ROOT.glob("model_config*.json")),
    *sorted((ROOT / "stable_audio_tools/configs/model_configs").rglob("*.json")),
]


def shrink(config: dict[str, Any], t5_folder: Path) -> dict[str, Any]:
    """The same config with 1/32 of the width and two layers."""
    config = copy.deepcopy(config)
    model = config["model"]
    for part in ("encoder", "decoder"):
        model["pretransform"]["config"][part]["config"]["channels"] = 4
    model["conditioning"]["cond_dim"] = 32
    for entry in model["conditioning"]["configs"]:
        if entry["type"] == "t5":
            entry["config"]["t5_model_name"] = str(t5_folder)
    model["diffusion"]["config"].update(
        embed_dim=64, depth=2, num_heads=2, cond_token_dim=32, global_cond_dim=64
    )
    return config


def test_the_documented_configs_are_there() -> None:
    names = {path.name for path in CONFIGS}
    assert {"model_config.json", "model_config_freeze_vae.json", "model_config_lora.json"} <= names
    assert "stable_audio_open_1_0.json" in names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_builds_at_full_size_without_a_warning(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        model = create_model_from_config_path(path)
    assert len(model.state_dict()) == 745
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_runs_when_shrunk(path: Path, tiny_t5_folder: Path) -> None:
    torch.manual_seed(0)
    model = create_model_from_config(shrink(json.loads(path.read_text()), tiny_t5_folder)).eval()
    audio = torch.randn(1, 2, 2048 * 4)
    metadata = [{"prompt": "calm piano", "seconds_start": 0, "seconds_total": 47}]
    with torch.no_grad():
        latents = model.pretransform.encode(audio)
        output = model(latents, torch.tensor([0.5]), model.conditioner(metadata, "cpu"))
        assert model.pretransform.decode(output).shape == audio.shape
    assert output.shape == (1, 64, 4)
    assert output.isfinite().all()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_demo_prompts_have_every_conditioning_key(path: Path) -> None:
    config = read_model_config(path)
    keys = {entry.id for entry in config.model.conditioning.configs}
    demo = config.training.demo
    assert demo is not None
    assert len(demo.demo_cond) == demo.num_demos
    assert all(set(cond) == keys for cond in demo.demo_cond)
