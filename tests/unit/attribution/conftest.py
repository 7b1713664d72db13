"""A tiny model with random weights on disk, and its training set and clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_datasets import write_dataset

from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.files import ModelFiles


@pytest.fixture
def tiny_files(tmp_path: Path, tiny_diffusion_config: dict[str, Any]) -> ModelFiles:
    """Config and checkpoint of the tiny model; no layer is zero, as after some training."""
    config_path = tmp_path / "model.json"
    config_path.write_text(json.dumps(tiny_diffusion_config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = create_model_from_config(tiny_diffusion_config)
        for parameter in model.model.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    path = save_checkpoint(tmp_path / "tiny.ckpt", model.state_dict(), tiny_diffusion_config)
    return ModelFiles(config_path, path)


@pytest.fixture
def train_config(tmp_path: Path, tiny_audio_folder: Path) -> Path:
    return write_dataset(tmp_path / "data", tiny_audio_folder / "audio")


@pytest.fixture
def clips(tmp_path: Path, tiny_audio_folder: Path) -> Path:
    """Copies of two training tracks, with their training prompts in ``prompts.csv``."""
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = ["file,prompt,seconds_start,seconds_total"]
    for position, number in ((2, 1000203), (7, 1000408)):
        [source] = (tiny_audio_folder / "audio").rglob(f"{number}.wav")
        shutil.copy(source, folder / f"clip_{position}.wav")
        lines.append(f"clip_{position}.wav,rock {number % 5} guitar,0,2")
    (folder / "prompts.csv").write_text("\n".join(lines) + "\n")
    return folder
