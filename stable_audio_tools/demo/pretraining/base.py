"""The tiny text-to-music model, pretrained on the generic artists' music as latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.demo.configs import LATENT_DIM, RATIO, SAMPLE_SIZE, base_config, vae_config
from stable_audio_tools.demo.pretraining.fitting import fit
from stable_audio_tools.demo.pretraining.stage import Stage
from stable_audio_tools.demo.pretraining.t5 import captions_of
from stable_audio_tools.demo.pretraining.world import World
from stable_audio_tools.demo.synth import SAMPLE_RATE
from stable_audio_tools.diffusion.objectives import Objective, get_objective
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import track

_WINDOW = SAMPLE_SIZE // RATIO


def train(stage: Stage) -> dict[str, Any]:
    """Train on the latents of ``vae`` and the text of ``t5``, both in ``stage.out``; save the whole model."""
    from stable_audio_tools.models.checkpoints import load_checkpoint, save_checkpoint
    from stable_audio_tools.models.factory import create_model_from_config

    autoencoder = create_model_from_config(vae_config())
    load_checkpoint(autoencoder, stage.out / "vae" / "model.safetensors")
    latents, lengths = _encode(autoencoder.to(stage.device).eval(), stage.train, stage)
    scale = round(
        float(torch.cat([latents[i, :, :n].flatten() for i, n in enumerate(lengths.tolist())]).std()), 4
    )
    t5 = str((stage.out / "t5").resolve())
    with stage.seeded():
        model = create_model_from_config(base_config(t5, scale))
    model.pretransform.model.load_state_dict(autoencoder.state_dict())
    model = model.to(stage.device)
    objective = get_objective(model.diffusion_objective)
    texts, windows = captions_of(stage.train, 6), _Windows(latents / scale, lengths, stage)

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        clean, metadata = windows.draw(stage.batch(64), texts)
        return _loss(model, objective, clean, metadata, windows.generator, 0.1), {}

    settings = stage.fit_settings(5000, learning_rate=1e-3, ema_decay=0.9985)
    history = fit("base", model.train(), step, settings)
    model.eval()
    results = {"held-out loss": _judge(model, objective, autoencoder, scale, stage), "latent std": scale}
    published = base_config("../t5", scale)
    state = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    stage.folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(stage.folder / "model.safetensors", state, published)
    write_json(stage.folder / "model_config.json", published)
    return stage.record(history, model, results)


@torch.no_grad()
def _encode(autoencoder: Any, world: World, stage: Stage) -> tuple[Tensor, Tensor]:
    """Latents of every piece, padded to the longest ``(N, D, L)``, and their lengths ``(N,)``."""
    lengths = world.lengths // RATIO
    latents = torch.zeros(len(lengths), LATENT_DIM, max(_WINDOW, int(lengths.max())), device=stage.device)
    noise = torch.Generator(stage.device).manual_seed(stage.seed)
    # Every piece has another length: to measure kernels for each would take longer than all the rest.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=True):
        for index in track(range(len(lengths)), "encoding the pretraining music"):
            count = int(lengths[index])
            audio = world.whole(index)[None, :, : count * RATIO]
            latents[index, :, :count] = autoencoder.encode(audio, generator=noise)[0]
    return latents, lengths


class _Windows:
    """Draws training windows and what the model is told about them."""

    def __init__(self, latents: Tensor, lengths: Tensor, stage: Stage) -> None:
        self.latents, self.lengths, self.world = latents, lengths, stage.train
        self.generator = stage.draw("windows")

    def draw(self, batch_size: int, texts: list[list[str]]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Latents ``(B, D, window)`` and one metadata dict each."""
        indices = torch.randint(len(self.lengths), (batch_size,), generator=self.generator)
        room = (self.lengths[indices] - _WINDOW).clamp(min=0)
        starts = (torch.rand(batch_size, generator=self.generator) * (room + 1)).long()
        wording = torch.randint(len(texts[0]), (batch_size,), generator=self.generator)
        spans = (starts[:, None] + torch.arange(_WINDOW)).to(self.latents.device)
        rows = indices.to(self.latents.device)
        clean = self.latents.transpose(1, 2)[rows[:, None], spans].transpose(1, 2)
        metadata = [
            {
                "prompt": texts[index][which],
                "seconds_start": int(start * RATIO / SAMPLE_RATE),
                "seconds_total": -(-int(self.world.lengths[index]) // SAMPLE_RATE),
            }
            for index, which, start in zip(indices.tolist(), wording.tolist(), starts.tolist(), strict=True)
        ]
        return clean, metadata


def _loss(
    model: Any,
    objective: Objective,
    clean: Tensor,
    metadata: list[dict[str, Any]],
    draw: torch.Generator,
    dropout: float,
) -> Tensor:
    """Mean squared error against the objective's target at random times."""
    times = torch.rand(len(clean), generator=draw).to(clean.device)
    noise = torch.randn(clean.shape, generator=draw).to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.device.type == "cuda"):
        condition = model.conditioner(metadata, clean.device)
        output = model(
            objective.add_noise(clean, noise, times), times, cond=condition, cfg_dropout_prob=dropout
        )
    return F.mse_loss(output.float(), objective.target(clean, noise, times))


@torch.no_grad()
def _judge(
    model: Any, objective: Objective, autoencoder: Any, scale: float, stage: Stage
) -> dict[str, float]:
    """The loss on the demo artists' music with the right prompts, and with prompts of other pieces."""
    world = stage.held_out
    latents, lengths = _encode(autoencoder, world, stage)
    texts = captions_of(world, 1)
    losses = {}
    for name, shift in (("own prompts", 0), ("prompts of others", len(texts) // 2)):
        generator, total = stage.draw("test"), 0.0
        for _ in range(8):
            rows = torch.randint(len(lengths), (16,), generator=generator)
            metadata = [
                {
                    "prompt": texts[(i + shift) % len(texts)][0],
                    "seconds_start": 0,
                    "seconds_total": -(-int(world.lengths[i]) // SAMPLE_RATE),
                }
                for i in rows.tolist()
            ]
            clean = latents[rows.to(latents.device), :, :_WINDOW] / scale
            total += float(_loss(model, objective, clean, metadata, generator, 0.0)) / 8
        losses[name] = round(total, 4)
    return losses
