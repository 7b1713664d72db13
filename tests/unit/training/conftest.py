"""A short CPU run on the tiny folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.training.settings import TrainSettings


@pytest.fixture
def make_settings(
    tmp_path: Path, tiny_diffusion_config: dict[str, Any], tiny_audio_folder: Path
) -> Callable[..., TrainSettings]:
    """Settings of four steps in float32; keywords replace some of them, ``model`` the model config."""
    module = tmp_path / "metadata.py"
    module.write_text(
        "def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n", encoding="utf-8"
    )
    entry = {"id": "tiny", "path": str(tiny_audio_folder / "audio"), "custom_metadata_module": str(module)}
    dataset = {"dataset_type": "audio_dir", "datasets": [entry]}
    (tmp_path / "data.json").write_text(json.dumps(dataset), encoding="utf-8")

    def make(model: dict[str, Any] | None = None, **changes: Any) -> TrainSettings:
        (tmp_path / "model.json").write_text(json.dumps(model or tiny_diffusion_config), encoding="utf-8")
        values = {
            "model_config": str(tmp_path / "model.json"),
            "dataset_config": str(tmp_path / "data.json"),
            "save_dir": str(tmp_path / "runs"),
            "name": "tiny",
            "batch_size": 4,
            "num_workers": 0,
            "precision": "32",
            "max_steps": 4,
            "checkpoint_every": 2,
            "log_every": 1,
            "device": "cpu",
        }
        return TrainSettings(**{**values, **changes})

    return make
