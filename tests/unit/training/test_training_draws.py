"""What is drawn in training depends on seed, step and slot, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.factory import create_training_wrapper_from_config

KEY = Key(42, 7, 0, 0, 2, 2)
OTHERS = [
    KEY._replace(seed=43),
    KEY._replace(step=8),
    KEY._replace(micro_batch=1),
    KEY._replace(rank=1),
]


@pytest.fixture
def module(tiny_diffusion_config):
    model = create_model_from_config(tiny_diffusion_config)
    return create_training_wrapper_from_config(tiny_diffusion_config, model)


@pytest.fixture
def batch():
    infos = [
        {"prompt": "rock", "seconds_start": 0, "seconds_total": 2, "sample_id": str(i)} for i in range(4)
    ]
    return torch.randn(4, 2, 8192, generator=torch.Generator().manual_seed(0)), infos


def test_the_wrapper_holds_the_public_attributes(module):
    prefixes = {key.split(".")[0] for key in module.state_dict()}
    assert prefixes == {"diffusion", "diffusion_ema"}
    assert module.diffusion_ema.ema_model is not module.diffusion.model


def test_latents_and_timesteps_are_keyed(module, batch):
    audio, _ = batch
    latents, timesteps = module.encode(audio, KEY), module._timesteps(torch.zeros(4, 4, 64), KEY)
    torch.manual_seed(5)
    assert torch.equal(module.encode(audio, KEY), latents)
    assert torch.equal(module._timesteps(torch.zeros(4, 4, 64), KEY), timesteps)
    for other in OTHERS:
        assert not torch.equal(module.encode(audio, other), latents)
        assert not torch.equal(module._timesteps(torch.zeros(4, 4, 64), other), timesteps)


@pytest.mark.parametrize(("world_size", "accum_batches"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_a_global_batch_has_the_same_draws_however_it_is_split(module, batch, world_size, accum_batches):
    whole, parts = Key(42, 7), world_size * accum_batches
    audio = torch.cat([batch[0], batch[0]])
    pieces = audio.chunk(parts)
    keys = [
        Key(42, 7, micro, rank, world_size, accum_batches)
        for micro in range(accum_batches)
        for rank in range(world_size)
    ]

    def split(draw):
        return torch.cat([draw(piece, key) for piece, key in zip(pieces, keys, strict=True)])

    for draw in (
        lambda audio, key: key.normal("noise", audio.shape, "cpu"),
        lambda audio, key: module._timesteps(audio, key),
        lambda audio, key: torch.tensor([g.initial_seed() for g in key.each("cfg dropout", len(audio))]),
    ):
        assert torch.equal(draw(audio, whole), split(draw))
        assert len(draw(audio, whole).unique(dim=0)) == 8, "every item has draws of its own"
    latents = module.encode(audio, whole)
    torch.testing.assert_close(latents, split(module.encode), rtol=0, atol=1e-5)


def test_a_step_neither_follows_nor_moves_the_global_generator(module, batch):
    losses = []
    for seed in (1, 2):
        module.steps_done = 0
        torch.manual_seed(seed)
        losses.append(module.training_step(batch, 0).item())
        after = torch.rand(())
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(()))
    assert losses[0] == losses[1]


def test_steps_are_counted_by_accumulation(tiny_diffusion_config, batch):
    model = create_model_from_config(tiny_diffusion_config)
    module = create_training_wrapper_from_config(tiny_diffusion_config, model, accum_batches=2)
    seen = []
    for index in range(4):
        module.training_step(batch, index)
        seen.append((module.steps_done, module.micro_batch))
    assert seen == [(0, 1), (1, 0), (1, 1), (2, 0)]
    assert module.batches_done == 4


def test_stored_latents_are_divided_by_the_scale(tiny_diffusion_config):
    tiny_diffusion_config["model"]["pretransform"]["scale"] = 2.0
    tiny_diffusion_config["training"]["pre_encoded"] = True
    module = create_training_wrapper_from_config(
        tiny_diffusion_config, create_model_from_config(tiny_diffusion_config)
    )
    assert torch.equal(module.encode(torch.ones(1, 4, 8), KEY), torch.full((1, 4, 8), 0.5))


def test_the_averaged_network_is_lent_and_given_back(module):
    online = module.diffusion.model
    module.diffusion.train()

    def use() -> None:
        with module.averaged() as model:
            assert model.model is module.diffusion_ema.ema_model
            assert not model.training
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert module.diffusion.model is online
    assert module.diffusion.training


def test_a_config_without_a_training_block_is_refused(tiny_diffusion_config):
    autoencoder = {
        **{key: tiny_diffusion_config[key] for key in ("sample_size", "sample_rate", "audio_channels")},
        "model_type": "autoencoder",
        "model": tiny_diffusion_config["model"]["pretransform"]["config"],
    }
    with pytest.raises(ConfigError, match=r"training: missing; .*optimizer_configs\.autoencoder"):
        create_training_wrapper_from_config(autoencoder, create_model_from_config(autoencoder))
