"""The tiny autoencoder: the Oobleck VAE with a spectral loss and a light prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.demo.configs import RATIO, vae_config
from stable_audio_tools.demo.pretraining.fitting import fit
from stable_audio_tools.demo.pretraining.losses import log_spectral_distance, reconstruction_loss, si_sdr
from stable_audio_tools.demo.pretraining.stage import Stage
from stable_audio_tools.demo.pretraining.world import World

_KL_WEIGHT = 1e-4


def train(stage: Stage) -> dict[str, Any]:
    """Train and save the autoencoder with its config."""
    from stable_audio_tools.models.checkpoints import save_checkpoint
    from stable_audio_tools.models.factory import create_model_from_config

    config = vae_config()
    with stage.seeded():
        model = create_model_from_config(config).to(stage.device).train()
    draw = stage.draw("crops")
    noise = torch.Generator(stage.device).manual_seed(int(torch.randint(2**31, (), generator=draw)))

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        audio, _pieces = stage.train.crops(stage.batch(32), 36 * RATIO, draw)
        latents, info = model.encode(audio, return_info=True, generator=noise)
        loss, values = reconstruction_loss(model.decode(latents), audio)
        return loss + _KL_WEIGHT * info["kl"], {**values, "kl": info["kl"].detach()}

    with torch.no_grad():
        before = judge(model, stage.held_out)
    history = fit("vae", model, step, stage.fit_settings(9000, learning_rate=1e-3, weight_decay=1e-3))
    model.eval()
    with torch.no_grad():
        after = judge(model, stage.held_out)
    state = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    stage.folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(stage.folder / "model.safetensors", state, config)
    from stable_audio_tools.runtime.files import write_json

    write_json(stage.folder / "model_config.json", config)
    return stage.record(history, model, {"untrained": before, "trained": after})


def judge(model: Any, world: World) -> dict[str, float]:
    """Distances of whole pieces from their reconstructions."""
    ratios, distances = [], []
    for index in range(len(world.pieces)):
        audio = world.whole(index)[None]
        audio = audio[..., : audio.shape[-1] // RATIO * RATIO]
        found = model.decode(model.encode(audio, generator=torch.Generator(audio.device).manual_seed(index)))
        ratios.append(float(si_sdr(found, audio)))
        distances.append(float(log_spectral_distance(found, audio)))
    if not all(math.isfinite(value) for value in (*ratios, *distances)):
        return {}
    return {
        "SI-SDR dB": round(sum(ratios) / len(ratios), 2),
        "log-spectral distance dB": round(sum(distances) / len(distances), 2),
    }
