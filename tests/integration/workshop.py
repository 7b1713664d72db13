"""A folder with one of everything that works: configs, checkpoints of every kind, an adapter, music."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.cli.main import main
from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config

METADATA = "def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n"


def run_sat(arguments: list[str]) -> int:
    """Run ``sat`` in this process; returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


def flags(named: dict[str, str], changes: dict[str, str]) -> list[str]:
    """``--flag value`` for every item, those of ``changes`` (with ``_`` for ``-``) over ``named``."""
    merged = {**named, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return [word for key, value in merged.items() for word in (f"--{key}", value)]


@dataclass(frozen=True)
class Workshop:
    """The folder, and the arguments of commands that work in it; a test changes one thing at a time."""

    root: Path
    music: Path
    model_config: dict[str, Any]

    def __truediv__(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: str | bytes) -> str:
        """A file with this content; returns its path."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def config(self, name: str, change: Callable[[dict[str, Any]], object]) -> str:
        """The model config with one change, as a file."""
        config = copy.deepcopy(self.model_config)
        change(config)
        return self.write(name, json.dumps(config))

    def dataset(self, name: str, folder: str | Path, module: str | None = None, **keys: Any) -> str:
        """A dataset config of one folder, as a file."""
        module = module or self / "metadata.py"
        entry = {"id": "music", "path": str(folder), "custom_metadata_module": module}
        return self.write(name, json.dumps({"dataset_type": "audio_dir", "datasets": [entry], **keys}))

    def train(self, script: str = "train", **changes: str) -> list[str]:
        """A training run of one step."""
        named = {
            "model-config": self / "model.json",
            "dataset-config": self / "data.json",
            "pretrained-ckpt-path": self / "base.ckpt",
            "name": "run",
            "save-dir": self / "runs",
            "max-steps": "1",
            "batch-size": "2",
            "num-workers": "0",
            "device": "cpu",
        }
        return [script, *flags(named, changes)]

    def generate(self, **changes: str) -> list[str]:
        """One clip in two steps."""
        named = {
            "model-config": self / "model.json",
            "ckpt-path": self / "base.ckpt",
            "prompt": "a calm song",
            "steps": "2",
            "output-dir": self / "new-clips",
            "device": "cpu",
        }
        return ["generate", *flags(named, changes)]

    def attribute(self, **changes: str) -> list[str]:
        """Attribution with one timestep."""
        named = {
            "model-config": self / "model.json",
            "ckpt-path": self / "base.ckpt",
            "train-dataset-config": self / "data.json",
            "queries": self / "clips",
            "output-dir": self / "attribution",
            "num-workers": "0",
            "K": "1",
            "device": "cpu",
        }
        return ["attribute", "run", *flags(named, changes)]

    def files(self) -> set[Path]:
        """Every file under the folder."""
        return {path for path in self.root.rglob("*") if path.is_file()}


def build_workshop(root: Path, music: Path, model_config: dict[str, Any]) -> Workshop:
    """Fill ``root``. Two runs of one step make the wrapped checkpoint and the adapter."""
    shop = Workshop(root, music, model_config)
    shop.config("model.json", lambda config: config)
    shop.write("metadata.py", METADATA)
    shop.dataset("data.json", music)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model_from_config(model_config)
    state = model.state_dict()
    save_checkpoint(root / "base.ckpt", state, model_config)
    save_checkpoint(root / "vae.ckpt", model.pretransform.model.state_dict())
    save_checkpoint(
        root / "nan.ckpt", {key: torch.full_like(value, torch.nan) for key, value in state.items()}
    )
    shop.write("truncated.ckpt", (root / "base.ckpt").read_bytes()[:50_000])
    assert run_sat(shop.train(name="whole", save_dir=shop / "made")) == 0
    assert run_sat(shop.train("train-lora", name="adapter", save_dir=shop / "made")) == 0
    next(root.glob("made/whole/*/checkpoints/*.ckpt")).rename(root / "wrapped.ckpt")
    next(root.glob("made/adapter/*/checkpoints/*.adapter")).rename(root / "adapter")
    next(root.glob("made/adapter/*/checkpoints/*.ckpt")).rename(root / "adapter.ckpt")
    assert run_sat(shop.generate(output_dir=shop / "clips")) == 0
    shop.write("empty/readme.txt", "no music here")
    shop.write("a-file", "where a folder should be")
    return shop
