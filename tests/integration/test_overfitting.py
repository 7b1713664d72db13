"""Training learns what it is shown: eight clips come back by their names, and an autoencoder gets better.

The long version, on music, and with adapters too, is ``benchmarks/overfit.py``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.data.latent_files import Crop, write_latents
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.checkpoints import load_checkpoint, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.reconstruction import ReconstructionLoss
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings

NAMES = ["north", "eastern bells", "a south wind", "west", "red drums", "the green line", "blue", "gold rush"]
CHANNELS, FRAMES = 4, 32


def clips() -> Tensor:
    """Eight latents ``(8, C, L)``: in each channel a wave of its own speed and phase."""
    draws = torch.Generator().manual_seed(7)
    turns = torch.rand(len(NAMES), CHANNELS, 1, generator=draws) * 6
    phases = torch.rand(len(NAMES), CHANNELS, 1, generator=draws)
    return 1.4 * torch.sin(2 * torch.pi * (turns * torch.arange(FRAMES) / FRAMES + phases))


@pytest.fixture
def lesson(tmp_path: Path, tiny_diffusion_config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that trains on the eight, stored in ``latents``; writes ``data.json`` too."""
    config = tiny_diffusion_config
    config["sample_size"] = FRAMES * 128
    config["model"]["conditioning"]["configs"][0] = {
        "id": "prompt",
        "type": "list",
        "config": {"options": NAMES},
    }
    config["training"] = {"learning_rate": 4e-3, "use_ema": True, "pre_encoded": True}
    for row, (name, latent) in enumerate(zip(NAMES, clips(), strict=True)):
        info = {
            "prompt": name,
            "seconds_start": 0,
            "seconds_total": 1,
            "padding_mask": [1] * FRAMES,
            "sample_id": name,
        }
        write_latents(tmp_path / "latents", 0, Crop(row, 0), latent.numpy().astype(np.float32), info)
    details = {"sample_size": config["sample_size"], "args": {}}
    (tmp_path / "latents" / "details.json").write_text(json.dumps(details))
    entry = {"id": "latents", "path": str(tmp_path / "latents")}
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "pre_encoded", "datasets": [entry]}))
    return config


def found(made: Tensor) -> int:
    """How many of the made latents ``(8, C, L)`` are nearer to their own clip than to any other."""
    distances = torch.cdist(made.flatten(1), clips().flatten(1))
    return int((distances.argmin(dim=1) == torch.arange(len(NAMES))).sum())


def ask(model: Any) -> Tensor:
    conditioning = [{"prompt": name, "seconds_start": 0, "seconds_total": 1} for name in NAMES]
    return generate_diffusion_cond(
        model.eval(),
        steps=30,
        cfg_scale=1.0,
        conditioning=conditioning,
        batch_size=len(NAMES),
        sample_size=FRAMES * 128,
        seed=1,
        device="cpu",
        return_latents=True,
        sigma_min=0.03,
        sigma_max=80.0,
    )


def test_eight_clips_come_back_by_name(lesson: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(lesson))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model_from_config(copy.deepcopy(lesson))
    base = tmp_path / "base.ckpt"
    save_checkpoint(base, model.state_dict(), lesson)
    assert found(ask(model)) <= 4, "before training it knows nothing; chance is 1"
    run = train(
        TrainSettings(
            model_config=str(tmp_path / "model.json"),
            dataset_config=str(tmp_path / "data.json"),
            pretrained_ckpt_path=str(base),
            save_dir=str(tmp_path / "runs"),
            max_steps=300,
            log_every=300,
            batch_size=8,
            num_workers=0,
            precision="32",
            device="cpu",
            gradient_clip_val=1.0,
        )
    )
    learned = unwrap_checkpoint(run / "checkpoints/step=00000300.ckpt", None, tmp_path / "learned")
    load_checkpoint(model, learned)
    assert found(ask(model)) >= 7


def test_an_autoencoder_trained_briefly_beats_what_it_was(tmp_path: Path, tiny_audio_folder: Path) -> None:
    """In 120 steps the spectral distance of what it decodes is less than half of what it was."""
    oobleck = {"channels": 8, "c_mults": [1, 2], "strides": [4, 4]}
    config = {
        "model_type": "autoencoder",
        "sample_size": 4096,
        "sample_rate": 16000,
        "audio_channels": 2,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 16, **oobleck}},
            "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 8, **oobleck}},
            "bottleneck": {"type": "vae"},
            "latent_dim": 8,
            "downsampling_ratio": 16,
            "io_channels": 2,
        },
        "training": {
            "learning_rate": 2e-3,
            "use_ema": True,
            "loss_configs": {
                "spectral": {
                    "config": {"fft_sizes": [512, 128], "hop_sizes": [128, 32], "win_lengths": [512, 128]}
                },
                "time": {"type": "l1", "weights": {"l1": 10.0}},
            },
        },
    }
    (tmp_path / "model.json").write_text(json.dumps(config))
    entry = {"id": "tiny", "path": str(tiny_audio_folder / "audio")}
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model_from_config(copy.deepcopy(config))
    save_checkpoint(tmp_path / "base.ckpt", model.state_dict(), config)
    files = sorted((tiny_audio_folder / "audio").rglob("*.wav"))
    audio = torch.stack([read_audio(path)[0][:, :4096] for path in files])
    measure = ReconstructionLoss(parse_model_config(config).training.loss_configs, 16000, 4096)

    @torch.no_grad()
    def distances() -> dict[str, float]:
        draws = torch.Generator().manual_seed(0)
        made = model.eval().decode(model.encode(audio, generator=draws))
        return {name: float(value) for name, value in measure(made, audio).items()}

    before = distances()
    run = train(
        TrainSettings(
            model_config=str(tmp_path / "model.json"),
            dataset_config=str(tmp_path / "data.json"),
            pretrained_ckpt_path=str(tmp_path / "base.ckpt"),
            save_dir=str(tmp_path / "runs"),
            max_steps=120,
            log_every=120,
            batch_size=8,
            num_workers=0,
            precision="32",
            device="cpu",
        )
    )
    load_checkpoint(model, unwrap_checkpoint(run / "checkpoints/step=00000120.ckpt", None, tmp_path / "vae"))
    after = distances()
    for side in ("left", "right"):  # measured: 0.37 times what it was
        name = f"stft_loss_{side}"
        assert after[name] < 0.5 * before[name], (before[name], after[name])
