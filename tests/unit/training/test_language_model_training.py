"""Training a language model: its loss by definition, its padding, its stored tokens, and that it learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from stable_audio_tools.errors import DataError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.language_model import LanguageModelTrainer

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [4, 4]}
RVQ = {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 8}}
SECONDS = {"id": "seconds", "type": "number", "config": {"min_val": 0, "max_val": 8}}
CONFIG: dict[str, Any] = {
    "model_type": "lm",
    "sample_size": 256,
    "sample_rate": 16000,
    "audio_channels": 1,
    "model": {
        "pretransform": {
            "type": "autoencoder",
            "config": {
                "encoder": {"type": "oobleck", "config": {"in_channels": 1, "latent_dim": 4, **OOBLECK}},
                "decoder": {"type": "oobleck", "config": {"out_channels": 1, "latent_dim": 4, **OOBLECK}},
                "bottleneck": RVQ,
                "latent_dim": 4,
                "downsampling_ratio": 16,
                "io_channels": 1,
            },
        },
        "conditioning": {"cond_dim": 8, "configs": [SECONDS]},
        "lm": {
            "type": "continuous_transformer",
            "codebook_pattern": "delay",
            "config": {"embed_dim": 16, "depth": 1, "dim_heads": 8, "cross_attn_cond_dim": 8},
            "cross_attention_cond_ids": ["seconds"],
        },
    },
    "training": {"learning_rate": 1e-2},
}


def build(**training: Any) -> LanguageModelTrainer:
    config = copy.deepcopy(CONFIG)
    config["training"] |= training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config)
    module: LanguageModelTrainer = create_training_wrapper_from_config(config, model)
    return module


def codes(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 8, (2, 2, 16), generator=torch.Generator().manual_seed(seed))


def infos(real: int = 16) -> list[dict[str, Any]]:
    mask = (torch.arange(16) < real).float()
    return [{"seconds": 2.0, "padding_mask": mask, "sample_id": str(i)} for i in range(2)]


def test_the_loss_is_the_cross_entropy_of_each_codebook_where_there_is_audio() -> None:
    module = build(pre_encoded=True).eval()
    found, per_codebook = module._loss(module.model, (codes(), infos(real=9)), 0.0, Key(1, 0))
    output = module.model.compute_logits(codes(), module.model.conditioner(infos(), "cpu"))
    expected = []
    for book in range(2):
        kept = output.mask[:, book].clone()
        kept[:, 9:] = False
        assert bool(kept.any())
        expected.append(F.cross_entropy(output.logits[:, book][kept], codes()[:, book][kept]))
    torch.testing.assert_close(per_codebook, torch.stack(expected))
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_what_is_padded_does_not_matter() -> None:
    module = build(pre_encoded=True).eval()
    other = codes()
    other[..., 9:] = codes(1)[..., 9:]
    one, two = (
        module._loss(module.model, (each, infos(real=9)), 0.0, Key(1, 0))[0] for each in (codes(), other)
    )
    torch.testing.assert_close(one, two)


def test_audio_is_tokenised_by_the_frozen_codec() -> None:
    module = build()
    audio = torch.randn(2, 1, 256)
    assert torch.equal(module.tokenize(audio), module.model.pretransform.tokenize(audio))
    assert not any(parameter.requires_grad for parameter in module.model.pretransform.parameters())


def test_stored_codes_of_another_codec_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"stored codes have the shape \(2, 3, 16\), expected \(batch, 2, length\)"
    ):
        build(pre_encoded=True).tokenize(torch.zeros(2, 3, 16))


def test_guidance_dropout_is_keyed_and_hits_what_it_says() -> None:
    module = build(pre_encoded=True).eval()

    def loss(dropout: float, *key: int) -> float:
        return float(module._loss(module.model, (codes(), infos()), dropout, Key(1, *key))[0])

    with torch.no_grad():
        for parameter in module.model.parameters():  # fresh branches answer zero, whatever they are told
            torch.nn.init.normal_(parameter, std=0.3)
        assert loss(0.5, 1) == loss(0.5, 1)
        assert len({loss(0.5, key) for key in range(8)}) > 1
        assert loss(0.0, 1) == loss(0.0, 2)
        assert loss(1.0, 1) == loss(1.0, 2) != loss(0.0, 1)


def test_it_learns_and_the_average_leaves_the_codec_out() -> None:
    module = build(pre_encoded=True, use_ema=True)
    before = float(module._loss(module.model, (codes(), infos()), 0.0, Key(1, 0))[0])
    loader: Any = DataLoader([(codes(), infos())] * 60, batch_size=None)
    trainer = pl.Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, loader)
    assert float(module._loss(module.model, (codes(), infos()), 0.0, Key(1, 0))[0]) < 0.5 * before
    averaged = {key for key in module.state_dict() if key.startswith("model_ema.ema_model.")}
    assert averaged == {f"model_ema.ema_model.lm.{key}" for key in module.model.lm.state_dict()}


def test_the_short_form_of_the_optimizer_is_the_public_one() -> None:
    optimizer = build().configure_optimizers()
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-2, (0.9, 0.95), 0.1)
