"""Tiny language models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.language_model.network import AudioLanguageModel
from stable_audio_tools.models.language_model.wrapper import AudioLanguageModelWrapper
from stable_audio_tools.schema.language_model import TransformerLanguageModel

BOOKS, CARD, DIM = 3, 11, 16
CONDITIONS = {"cross_attn_cond_dim": 8, "prepend_cond_dim": 6, "global_cond_dim": 5}
"""Of the backbone; the tests condition on tensors of these widths."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conditioned": CONDITIONS,
    "projected context": {**CONDITIONS, "cross_attn_cond_dim": 7, "project_cross_attn_cond": True},
    "last cross-attention": {**CONDITIONS, "final_cross_attn_ix": 0},
    "memory": {"num_memory_tokens": 2, "prepend_cond_dim": 6},
    "absolute": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 40, "num_memory_tokens": 1},
    "sinusoidal": {"use_sinusoidal_emb": True, "rotary_pos_emb": False},
    "l2": {"attn_kwargs": {"qk_norm": "l2"}},
    "ln": {"attn_kwargs": {"qk_norm": "ln"}, **CONDITIONS},
    "differential": {"attn_kwargs": {"differential": True}, **CONDITIONS},
    "window": {"sliding_window": [2, 0], "num_memory_tokens": 1},
    "scaled": {"layer_scale": True, "norm_type": "rms_norm"},
    "tanh": {"remove_norms": True, "ff_kwargs": {"glu": False, "mult": 2}},
    "one head": {"dim_heads": 64},
}
"""Configs of the backbone, by what is special about them."""


def scramble(model: torch.nn.Module, seed: int = 0) -> Any:
    """Every weight random, in float64: fresh branches end in zeros, behind which mistakes would hide."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def tiny_lm(options: dict[str, Any] | None = None, **more: Any) -> AudioLanguageModel:
    """A scrambled network; ``options`` are of its backbone, ``more`` of the block around them."""
    config = {"embed_dim": DIM, "depth": 2, "dim_heads": 4, **(options or {})}
    block = TransformerLanguageModel(type="continuous_transformer", config=config, **more)
    return scramble(AudioLanguageModel(block, BOOKS, CARD))


def conditioning(options: dict[str, Any], batch: int = 2) -> dict[str, Tensor]:
    """Random conditioning of the widths in ``options``, by argument name."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn = {
        "cross_attn_cond": draw(4, 5, options.get("cross_attn_cond_dim", 0)),
        "prepend_cond": draw(4, 3, options.get("prepend_cond_dim", 0)),
        "global_cond": draw(4, options.get("global_cond_dim", 0)),
    }
    return {key: value[:batch] for key, value in drawn.items() if value.shape[-1]}


def random_codes(batch: int, frames: int, seed: int = 0, high: int = CARD) -> Tensor:
    return torch.randint(0, high, (batch, BOOKS, frames), generator=torch.Generator().manual_seed(seed))


def model_config(lm: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """A whole config: a tiny residual-quantised autoencoder, 8 samples a frame, and a language model."""
    codec = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6}
    quantizer = {"input_dim": 6, "n_codebooks": BOOKS, "codebook_dim": 3, "codebook_size": CARD}
    autoencoder = {
        "encoder": {"type": "oobleck", "config": codec},
        "decoder": {"type": "oobleck", "config": codec},
        "bottleneck": {"type": "dac_rvq", "config": quantizer},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }
    block = {"type": "continuous_transformer", "config": {"embed_dim": DIM, "depth": 2, "dim_heads": 4}}
    return {
        "model_type": "lm",
        "sample_size": 64,
        "sample_rate": 8000,
        "model": {
            "pretransform": {"type": "autoencoder", "config": autoencoder},
            "lm": {**block, **(lm or {})},
            **model,
        },
    }


def tiny_model(lm: dict[str, Any] | None = None, **model: Any) -> AudioLanguageModelWrapper:
    """The whole model, its network scrambled."""
    whole: AudioLanguageModelWrapper = create_model_from_config(model_config(lm, **model))
    scramble(whole.lm)
    return whole.eval()
