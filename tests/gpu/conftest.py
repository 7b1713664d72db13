"""What the tests of training on GPUs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_runs import STEPS


@pytest.fixture
def flags(tmp_path: Path, tiny_diffusion_config: dict[str, Any], tiny_audio_folder: Path) -> dict[str, Any]:
    module = tmp_path / "metadata.py"
    module.write_text("def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n")
    entry = {"id": "a", "path": str(tiny_audio_folder / "audio"), "custom_metadata_module": str(module)}
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))
    tiny_diffusion_config["training"]["demo"] = {
        "demo_every": 5,
        "demo_steps": 2,
        "num_demos": 1,
        "demo_cond": [{"prompt": "rock", "seconds_start": 0, "seconds_total": 1}],
        "demo_cfg_scales": [2],
    }
    (tmp_path / "model.json").write_text(json.dumps(tiny_diffusion_config))
    (tmp_path / "defaults.ini").write_text("[DEFAULTS]\ncompile = false\n")
    return {
        "config-file": tmp_path / "defaults.ini",
        "model-config": tmp_path / "model.json",
        "dataset-config": tmp_path / "data.json",
        "val-dataset-config": tmp_path / "data.json",
        "val-every": 4,
        "save-dir": tmp_path / "runs",
        "num-workers": 1,
        "precision": "32",
        "max-steps": STEPS,
        "checkpoint-every": 2,
        "log-every": 1,
        "gradient-clip-val": 1.0,
    }
