"""Training without conditioning: unconditional diffusion and diffusion autoencoders."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.loss import diffusion_loss
from stable_audio_tools.training.module import ModelTrainer

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [4, 4]}
U_NET = {"depth": 2, "n_attn_layers": 0, "channels": [8, 8], "strides": [2], "io_channels": 2}
UNCOND = {"type": "DAU1d", "config": U_NET}
AUTOENCODING = {
    "encoder": {"type": "oobleck", "config": {"latent_dim": 8, **OOBLECK}},
    "bottleneck": {"type": "vae"},
    "diffusion": {"type": "DAU1d", "config": {**U_NET, "cond_dim": 4}},
    "latent_dim": 4,
    "downsampling_ratio": 16,
    "io_channels": 2,
}
MODELS = {"diffusion_uncond": UNCOND, "diffusion_autoencoder": AUTOENCODING}


def build(model_type: str, **training: Any) -> Any:
    config = {
        "model_type": model_type,
        "sample_size": 2048,
        "sample_rate": 16000,
        "model": copy.deepcopy(MODELS[model_type]),
        "training": {"learning_rate": 3e-3, **training},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config)
    return create_training_wrapper_from_config(config, model)


def batch() -> tuple[torch.Tensor, list[dict[str, Any]]]:
    time = torch.arange(2048) / 16000
    audio = torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (220, 440)])[:, None].repeat(1, 2, 1)
    return audio, [{"sample_id": str(i)} for i in range(2)]


def average_loss(module: ModelTrainer) -> float:
    """Over validation's fixed timesteps and noise."""
    with torch.no_grad():
        module.validation_step(batch(), 0)
    ((losses, _),) = module._validation
    module._validation.clear()
    return float(torch.stack(list(losses.values())).mean())


@pytest.mark.parametrize("model_type", MODELS)
def test_it_learns(model_type: str) -> None:
    module = build(model_type, use_ema=False)
    before = average_loss(module)
    loader: Any = DataLoader([batch()] * 60, batch_size=None)
    trainer = pl.Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, loader)
    assert average_loss(module) < 0.7 * before


def test_the_loss_without_conditioning_is_the_diffusion_loss() -> None:
    module = build("diffusion_uncond")
    key = module.key()
    timesteps = module._timesteps(batch()[0], key)
    noise = key.normal("noise", batch()[0].shape, "cpu")
    with torch.no_grad():
        expected = diffusion_loss(module.diffusion.model, batch()[0], noise, timesteps, {}, "v").mean
        assert torch.equal(module.training_step(batch(), 0), expected)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_step_follows_its_key_alone(model_type: str) -> None:
    losses = []
    for seed in (1, 2):
        module = build(model_type)
        torch.manual_seed(seed)
        losses.append(module.training_step(batch(), 0).item())
        after = torch.rand(())
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(()))
    assert losses[0] == losses[1]


def test_an_autoencoder_s_terms_add_up_and_every_part_is_trained() -> None:
    module = build("diffusion_autoencoder", use_reconstruction_loss=True, bottleneck={"kl": 0.01})
    total = module.training_step(batch(), 0)
    noted = {name: values[0] for name, values in module._noted.items()}
    assert set(noted) == {"train/loss", "train/mse_loss", "train/kl_loss", "train/mrstft_loss"}
    parts = [value for name, value in noted.items() if name != "train/loss"]
    torch.testing.assert_close(torch.stack(parts).sum(), total.detach())
    assert all(float(part) > 0 for part in parts)
    total.backward()
    for name in ("encoder", "diffusion"):
        grads = [parameter.grad for parameter in getattr(module.diffae, name).parameters()]
        assert any(grad is not None and bool(grad.any()) for grad in grads), name


def test_validation_of_an_autoencoder_uses_the_average_of_all_its_parts() -> None:
    module = build("diffusion_autoencoder")
    before = average_loss(module)
    with torch.no_grad():
        for parameter in module.diffae.parameters():
            parameter.add_(0.1)
    assert average_loss(module) == before
    online = module.diffae.encoder
    with module.averaged() as model:
        assert model.encoder is module.diffae_ema.ema_model["encoder"]
    assert module.diffae.encoder is online
