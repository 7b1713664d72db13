"""What every training stage is given, and what it hands back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.demo.pretraining.fitting import FitSettings, History
from stable_audio_tools.demo.pretraining.world import World
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.seeds import derive_seed, generator


@dataclass(frozen=True)
class Stage:
    """One model to train.

    Attributes:
        name: of the model, and of its folder under ``out``.
        out: the folder of all assets.
        train, held_out: music to learn from, and music to be judged on.
        steps_scale: factor on the steps a stage would take; ``smoke`` shrinks the batches too.
        limit_seconds: when the stage must come to its end.
    """

    name: str
    out: Path
    train: World
    held_out: World
    device: torch.device
    seed: int
    steps_scale: float = 1.0
    smoke: bool = False
    limit_seconds: float | None = None

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def batch(self, size: int) -> int:
        """The batch size to use where ``size`` is meant."""
        return min(size, 4) if self.smoke else size

    def fit_settings(self, steps: int, **changes: Any) -> FitSettings:
        """Settings of a run that would take ``steps``."""
        return FitSettings(
            max(4, round(steps * self.steps_scale)), limit_seconds=self.limit_seconds, **changes
        )

    def draw(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose of this stage."""
        return generator("demo assets", self.seed, self.name, purpose)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Weights drawn inside the block depend on the seed alone; the global generator is left as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed("demo assets", self.seed, self.name, "weights"))
            yield

    def record(self, history: History, model: torch.nn.Module, results: dict[str, Any]) -> dict[str, Any]:
        """Write and return what the model card needs."""
        card = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seed": self.seed,
            "pieces": len(self.train.pieces),
            "hours": round(self.train.hours, 2),
            "device": self.device.type,
            **asdict(history),
            "results": results,
        }
        write_json(self.out / "cards" / f"{self.name}.json", card)
        return card


def save_half(model: Any, folder: Path) -> None:
    """Save a Hugging Face model with float16 weights that load as float32: half the file."""
    import copy

    copy.deepcopy(model).half().cpu().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    for part in (config, *(config[key] for key in ("text_config", "audio_config") if key in config)):
        part["dtype"] = "float32"
    write_json(path, config)
