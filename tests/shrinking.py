"""Public configs at toy size: the same parts in the same places, with little width, depth and length."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "stable_audio_tools/configs/model_configs"
TINY_CLAP = ROOT / "stable_audio_tools/demo/assets/clap"
COND_DIM = 32
EMBED_DIM = 64
FRAMES = 16
"""Latent frames in one training window."""
LEAST_SAMPLES = 4096
"""Audio samples in one window at least: the longest spectrogram frame of the losses, twice."""


def read_shipped(name: str) -> dict[str, Any]:
    """The JSON value of a shipped config, by its path under ``model_configs``."""
    value: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text())
    return value


def shrink(config: dict[str, Any], text_encoder: str | Path) -> dict[str, Any]:
    """A config of the same types and options whose model has some hundred thousand parameters.

    Widths, depths, codebooks and the window are cut. Kernels, strides, ratios, latent channels, objectives,
    conditioning ids, losses and optimizers stay.

    Args:
        text_encoder: folder of a tiny T5, in place of the published one.
    """
    config = copy.deepcopy(config)
    model = config["model"]
    for block in _typed_blocks(config):
        if block["type"] in _SHRINKING:
            _SHRINKING[block["type"]](block.setdefault("config", {}))
        elif block["type"] == "t5":
            block["config"]["t5_model_name"] = str(text_encoder)
    if "conditioning" in model:
        model["conditioning"]["cond_dim"] = COND_DIM
    if "diffusion" in model:
        _fit_conditioning(model["diffusion"])
    config["sample_size"] = _window(model)
    return config


def _typed_blocks(value: Any) -> Iterator[dict[str, Any]]:
    """Every object with a type, in whatever depth; optimizers and losses too."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _typed_blocks(item)


def _oobleck(options: dict[str, Any]) -> None:
    options["channels"] = 4


def _dac(options: dict[str, Any]) -> None:
    if "rates" in options:
        options["channels"] = 32
    else:
        options["d_model"] = 2


def _seanet(options: dict[str, Any]) -> None:
    options["n_filters"] = 2


def _residual_quantizer(options: dict[str, Any]) -> None:
    options["codebook_size"] = 16


def _dac_quantizer(options: dict[str, Any]) -> None:
    options.update(codebook_size=16, n_codebooks=3)


def _unet(options: dict[str, Any]) -> None:
    if "channels" in options:
        options["channels"] = [width // 16 for width in options["channels"]]
    else:  # attention takes heads of 32 channels
        options.update(depth=4, channels=[32, 32, 64, 64], strides=[2, 2, 2], n_attn_layers=2)


def _dit(options: dict[str, Any]) -> None:
    options.update(embed_dim=EMBED_DIM, depth=2, num_heads=2)


def _lm(options: dict[str, Any]) -> None:
    options.update(embed_dim=EMBED_DIM, depth=2, dim_heads=16)
    if options.get("cross_attn_cond_dim"):
        options["cross_attn_cond_dim"] = COND_DIM


def _clap(options: dict[str, Any]) -> None:
    options["clap_ckpt_path"] = str(TINY_CLAP)


def _discriminator(options: dict[str, Any]) -> None:
    options["filters"] = 2


_SHRINKING = {
    "oobleck": _oobleck,
    "dac": _dac,
    "seanet": _seanet,
    "rvq": _residual_quantizer,
    "dac_rvq": _dac_quantizer,
    "DAU1d": _unet,
    "dit": _dit,
    "continuous_transformer": _lm,
    "clap_text": _clap,
    "encodec": _discriminator,
}


def _fit_conditioning(diffusion: dict[str, Any]) -> None:
    """Widths that follow from ``COND_DIM`` and the conditioning ids."""
    options = diffusion["config"]
    if options.get("cond_token_dim"):
        options["cond_token_dim"] = COND_DIM
    if options.get("global_cond_dim"):
        options["global_cond_dim"] = COND_DIM * len(diffusion["global_cond_ids"])


def _window(model: dict[str, Any]) -> int:
    """Samples in a whole number of latents that every network of the model can take."""
    inner = model.get("pretransform", {}).get("config", {})
    ratio = inner.get("downsampling_ratio", 1) * model.get("downsampling_ratio", 1)
    unet = model.get("diffusion", model).get("config", {})
    step = math.lcm(ratio, math.prod(unet.get("strides", [])))
    return step * max(math.ceil(LEAST_SAMPLES / step), FRAMES if ratio > 1 and step == ratio else 1)
