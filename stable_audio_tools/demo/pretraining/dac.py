"""The tiny codec in DAC's format (R. Kumar et al. 2023), trained without a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.demo.pretraining.fitting import fit
from stable_audio_tools.demo.pretraining.losses import log_spectral_distance, reconstruction_loss, si_sdr
from stable_audio_tools.demo.pretraining.stage import Stage, save_half
from stable_audio_tools.demo.pretraining.world import World
from stable_audio_tools.demo.synth import SAMPLE_RATE

_REVIVE_EVERY = 100


def train(stage: Stage) -> dict[str, Any]:
    """Train and save a Hugging Face ``DacModel`` on the mono mix."""
    from transformers import DacConfig, DacFeatureExtractor, DacModel

    config = DacConfig(
        encoder_hidden_size=16, downsampling_ratios=[4, 8, 10], decoder_hidden_size=160, n_codebooks=6,
        codebook_size=256, codebook_dim=8, sampling_rate=SAMPLE_RATE, commitment_loss_weight=0.25,
    )  # fmt: skip
    with stage.seeded():
        model: Any = DacModel(config)
    model.to(stage.device).train()
    draw, length = stage.draw("crops"), 320 * 52
    settings = stage.fit_settings(6000, learning_rate=8e-4)
    used = torch.zeros(config.n_codebooks, config.codebook_size, device=stage.device)

    def step(number: int) -> tuple[Tensor, dict[str, Tensor]]:
        audio, _ = stage.train.crops(stage.batch(32), length, draw)
        mono = audio.mean(1, keepdim=True) * _random_gain(len(audio), draw).to(stage.device)
        found = model(mono)
        loss, values = reconstruction_loss(found.audio_values.unsqueeze(1), mono)
        for book, codes in enumerate(found.audio_codes.unbind(1)):
            used[book] += torch.bincount(codes.flatten(), minlength=config.codebook_size)
        if number % _REVIVE_EVERY == _REVIVE_EVERY - 1:
            if number < 0.6 * settings.steps:
                _revive(model, used, found.projected_latents, draw)
            used.zero_()
        return loss + found.loss.mean(), {**values, "codes": found.loss.mean().detach()}

    with torch.no_grad():
        before = _judge(model, stage.held_out)
    history = fit("dac", model, step, settings)
    model.eval()
    with torch.no_grad():
        after = _judge(model, stage.held_out)
    save_half(model, stage.folder)
    DacFeatureExtractor(sampling_rate=SAMPLE_RATE, hop_length=config.hop_length).save_pretrained(stage.folder)
    return stage.record(history, model, {"untrained": before, "trained": after})


def _random_gain(count: int, draw: torch.Generator) -> Tensor:
    """Gains between -12 and +3 dB, so that a softer copy is as familiar as the track, ``(B, 1, 1)``."""
    return 10 ** ((torch.rand(count, 1, 1, generator=draw) * 15 - 12) / 20)


@torch.no_grad()
def _revive(model: Any, used: Tensor, projected: Tensor, draw: torch.Generator) -> None:
    """Move codes that nothing maps to onto latents of this batch (Dhariwal et al. 2020, section 3.1)."""
    for book, quantizer in enumerate(model.quantizer.quantizers):
        size = quantizer.codebook_dim
        latents = projected[:, book * size : (book + 1) * size].transpose(1, 2).reshape(-1, size)
        dead = torch.nonzero(used[book] == 0).squeeze(1)
        chosen = torch.randint(len(latents), (len(dead),), generator=draw).to(latents.device)
        quantizer.codebook.weight[dead] = latents[chosen].to(quantizer.codebook.weight.dtype)


def _judge(model: Any, world: World) -> dict[str, float]:
    """Distances on whole pieces, and the share of codes in use."""
    ratios, distances, codes = [], [], []
    for index in range(len(world.pieces)):
        mono = world.whole(index).mean(0)[None, None]
        mono = mono[..., : mono.shape[-1] // model.config.hop_length * model.config.hop_length]
        found = model(mono)
        ratios.append(float(si_sdr(found.audio_values.unsqueeze(1), mono)))
        distances.append(float(log_spectral_distance(found.audio_values.unsqueeze(1), mono)))
        codes.append(found.audio_codes)
    all_codes = torch.cat([c.flatten(2) for c in codes], dim=-1)[0]
    share = sum(len(book.unique()) for book in all_codes) / (len(all_codes) * model.config.codebook_size)
    return {
        "SI-SDR dB": round(sum(ratios) / len(ratios), 2),
        "log-spectral distance dB": round(sum(distances) / len(distances), 2),
        "codes in use": round(share, 3),
    }
