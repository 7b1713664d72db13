"""What the recipes of ``docs/training.md`` start from: music, tiny trained models, a config for each way.

::

    <folder>/catalogue/            the built-in catalogue and its evaluation set
    <folder>/data.json             training set; held_out.json for validation; latents.json for stored latents
    <folder>/base.ckpt, vae.ckpt   the trained text-to-music model, and its autoencoder alone
    <folder>/song_describer.npz    the evaluation set, embedded
    <folder>/full.json ...         model configs, one for each recipe
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from stable_audio_tools.demo.assets import asset, base_model_config, write_starting_point
from stable_audio_tools.demo.catalogue import CatalogueSettings, write_catalogue
from stable_audio_tools.demo.configs import LATENT_DIM, RATIO, vae_config
from stable_audio_tools.demo.result import METADATA_MODULE
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say

SHORT_WINDOW = 32 * RATIO
"""About a second: an autoencoder learns from short windows."""
_SCALES = {"fft_sizes": [1024, 256, 64], "hop_sizes": [256, 64, 16], "win_lengths": [1024, 256, 64]}
_ADVERSARY = {"n_ffts": [512, 128], "hop_lengths": [128, 32], "win_lengths": [512, 128], "filters": 8}
_PROMPTS = ("A calm ambient track with slow pads", "Fast rock with drums and electric guitar")


def write_materials(folder: str | Path) -> Path:
    """Write everything into ``folder``, keeping what is there; returns it."""
    folder = Path(folder).resolve()
    catalogue = write_catalogue(folder / "catalogue", CatalogueSettings(planted=0))
    write_starting_point(folder)
    (folder / "model_config.json").unlink()  # full.json is the same, with demos and an evaluation
    _write_datasets(folder, catalogue)
    reference = folder / "song_describer.npz"
    if not reference.exists():
        from stable_audio_tools.evaluation.song_describer import precompute

        heard = catalogue / "song_describer"
        precompute(heard / "song_describer.csv", heard / "audio", reference, clap=asset("clap"), device="cpu")
    for name, config in recipe_configs(reference).items():
        write_json(folder / f"{name}.json", config)
    say(f"{folder} is ready; docs/training.md has the recipes")
    return folder


def recipe_configs(reference: Path) -> dict[str, dict[str, Any]]:
    """The model configs by the name of their recipe.

    Args:
        reference: embeddings that an evaluation while training holds clips against.
    """
    return {
        "full": _full(reference),
        "freeze_vae": _frozen(reference),
        "lora": _lora(reference),
        "inpaint": _inpaint(),
        "small": _small(),
        "vae": _vae(),
        "codec": _codec(),
        "lm": _language_model(),
    }


def _write_datasets(folder: Path, catalogue: Path) -> None:
    def audio(entry: dict[str, Any], **keys: Any) -> dict[str, Any]:
        return {"dataset_type": "audio_dir", "datasets": [entry], **keys}

    music = {
        "id": "catalogue",
        "path": str(catalogue / "audio"),
        "custom_metadata_module": str(METADATA_MODULE),
    }
    held_out = {
        "id": "held_out",
        "path": str(catalogue / "song_describer" / "audio"),
        "metadata_sources": ["song_describer"],
    }
    write_json(folder / "data.json", audio(music))
    write_json(folder / "held_out.json", audio(held_out, random_crop=False))
    stored = {"id": "latents", "path": str(folder / "latents")}
    write_json(folder / "latents.json", {"dataset_type": "pre_encoded", "datasets": [stored]})


def _full(reference: Path) -> dict[str, Any]:
    config = base_model_config()
    seconds = {"seconds_start": 0, "seconds_total": 6}
    config["training"] |= {
        "demo": {
            "demo_every": 40,
            "demo_steps": 20,
            "num_demos": 2,
            "demo_cond": [{"prompt": prompt, **seconds} for prompt in _PROMPTS],
            "demo_cfg_scales": [3],
        },
        "song_describer_eval": {
            "eval_every": 40,
            "num_prompts": 8,
            "eval_steps": 20,
            "eval_cfg_scale": 3.0,
            "clap_model_name": str(asset("clap")),
            "precomputed_embeddings_path": str(reference),
        },
    }
    return config


def _frozen(reference: Path) -> dict[str, Any]:
    config = _full(reference)
    config["model"]["pretransform"]["model_half"] = True
    return config


def _lora(reference: Path) -> dict[str, Any]:
    return _full(reference) | {
        "lora": {"component_whitelist": ["transformer"], "rank": 16, "alpha": 16, "lr": 1e-3}
    }


def _inpaint() -> dict[str, Any]:
    config = base_model_config()
    config["model_type"] = "diffusion_cond_inpaint"
    diffusion = config["model"]["diffusion"]
    diffusion["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["input_concat_dim"] = 1 + LATENT_DIM
    config["training"]["inpainting"] = {"mask_kwargs": {"mask_type_probabilities": [0.4, 0.2, 0.4]}}
    config["training"]["demo"] = {"demo_every": 40, "demo_steps": 20, "num_demos": 2, "demo_cfg_scales": [3]}
    return config


def _small() -> dict[str, Any]:
    """A network of half the width, from nothing, on stored latents."""
    config = base_model_config()
    config["model"]["diffusion"]["config"] |= {"embed_dim": 96, "depth": 4, "num_heads": 3}
    config["training"] = {"learning_rate": 1e-3, "use_ema": True, "pre_encoded": True}
    return config


def _autoencoder(block: dict[str, Any], **training: Any) -> dict[str, Any]:
    config = vae_config() | {"sample_size": SHORT_WINDOW, "model": copy.deepcopy(block)}
    config["training"] = {
        "use_ema": True,
        "optimizer_configs": {
            side: {"optimizer": {"type": "AdamW", "config": {"lr": 1e-3, "betas": [0.8, 0.99]}}}
            for side in ("autoencoder", "discriminator")
        },
        "demo": {"demo_every": 60, "num_demos": 2},
        **training,
    }
    return config


def _vae() -> dict[str, Any]:
    losses = {
        "spectral": {"type": "mrstft", "config": _SCALES, "weights": {"mrstft": 1.0}},
        "time": {"type": "l1", "weights": {"l1": 0.5}},
        "bottleneck": {"type": "kl", "weights": {"kl": 1e-4}},
        "discriminator": {
            "type": "encodec",
            "config": _ADVERSARY,
            "weights": {"adversarial": 0.1, "feature_matching": 1.0},
        },
    }
    return _autoencoder(
        vae_config()["model"],
        loss_configs=losses,
        warmup_steps=40,
        warmup_mode="full",
        eval_loss_configs={"stft": {}, "sisdr": {}},
    )


def _codec_block() -> dict[str, Any]:
    block: dict[str, Any] = copy.deepcopy(vae_config()["model"])
    block["encoder"]["config"]["latent_dim"] = LATENT_DIM
    quantizer = {"input_dim": LATENT_DIM, "n_codebooks": 4, "codebook_size": 64, "codebook_dim": 8}
    block["bottleneck"] = {"type": "dac_rvq", "config": quantizer}
    return block


def _codec() -> dict[str, Any]:
    losses = {
        "spectral": {"type": "mrstft", "config": _SCALES, "weights": {"mrstft": 1.0}},
        "time": {"type": "l1", "weights": {"l1": 0.5}},
    }
    config = _autoencoder(_codec_block(), loss_configs=losses)
    del config["training"]["optimizer_configs"]["discriminator"]
    return config


def _language_model() -> dict[str, Any]:
    base = base_model_config()
    conditioning = copy.deepcopy(base["model"]["conditioning"])
    width = conditioning["cond_dim"]
    return {
        "model_type": "lm",
        "sample_size": base["sample_size"] // 2,
        "sample_rate": base["sample_rate"],
        "audio_channels": 2,
        "model": {
            "pretransform": {"type": "autoencoder", "config": _codec_block()},
            "conditioning": conditioning,
            "lm": {
                "type": "continuous_transformer",
                "codebook_pattern": "delay",
                "config": {"embed_dim": 128, "depth": 4, "dim_heads": 32, "cross_attn_cond_dim": width},
                "cross_attention_cond_ids": ["prompt", "seconds_total"],
            },
        },
        "training": {
            "learning_rate": 1e-3,
            "use_ema": True,
            "demo": {
                "demo_every": 60,
                "num_demos": 2,
                "demo_cond": [
                    {"prompt": prompt, "seconds_start": 0, "seconds_total": 3} for prompt in _PROMPTS
                ],
                "demo_cfg_scales": [3],
            },
        },
    }
