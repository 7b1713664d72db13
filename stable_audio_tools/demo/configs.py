"""The configs of the demo's autoencoder and base model, in the public JSON format."""

from __future__ import annotations

from typing import Any

from stable_audio_tools.demo.synth import SAMPLE_RATE

LATENT_DIM = 32
RATIO = 512
SAMPLE_SIZE = 192 * RATIO
"""Training window: 6.144 s, 192 latents."""
TEXT_WIDTH = 128


def autoencoder_block() -> dict[str, Any]:
    """A VAE with a light encoder, since every batch is encoded, and a wider decoder, since it is heard."""
    shape = {"c_mults": [4, 8, 16], "strides": [8, 8, 8], "use_snake": True}
    return {
        "encoder": {
            "type": "oobleck",
            "config": {"in_channels": 2, "channels": 8, "latent_dim": 2 * LATENT_DIM, **shape},
        },
        "decoder": {
            "type": "oobleck",
            "config": {
                "out_channels": 2,
                "channels": 16,
                "latent_dim": LATENT_DIM,
                "final_tanh": False,
                **shape,
            },
        },
        "bottleneck": {"type": "vae"},
        "latent_dim": LATENT_DIM,
        "downsampling_ratio": RATIO,
        "io_channels": 2,
    }


def vae_config() -> dict[str, Any]:
    """The autoencoder on its own."""
    return {
        "model_type": "autoencoder",
        "sample_size": SAMPLE_SIZE,
        "sample_rate": SAMPLE_RATE,
        "audio_channels": 2,
        "model": autoencoder_block(),
    }


def base_config(t5_model_name: str, scale: float) -> dict[str, Any]:
    """The text-to-music model; ``scale`` is the standard deviation of the autoencoder's latents."""
    seconds = {"min_val": 0, "max_val": 64}
    return {
        "model_type": "diffusion_cond",
        "sample_size": SAMPLE_SIZE,
        "sample_rate": SAMPLE_RATE,
        "audio_channels": 2,
        "model": {
            "pretransform": {"type": "autoencoder", "config": autoencoder_block(), "scale": scale},
            "conditioning": {
                "configs": [
                    {
                        "id": "prompt",
                        "type": "t5",
                        "config": {"t5_model_name": t5_model_name, "max_length": 48},
                    },
                    {"id": "seconds_start", "type": "number", "config": seconds},
                    {"id": "seconds_total", "type": "number", "config": seconds},
                ],
                "cond_dim": TEXT_WIDTH,
            },
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "v",
                "cross_attention_cond_ids": ["prompt", "seconds_start", "seconds_total"],
                "global_cond_ids": ["seconds_start", "seconds_total"],
                "config": {
                    "io_channels": LATENT_DIM,
                    "embed_dim": 192,
                    "depth": 6,
                    "num_heads": 6,
                    "cond_token_dim": TEXT_WIDTH,
                    "global_cond_dim": 2 * TEXT_WIDTH,
                    "project_cond_tokens": True,
                    "transformer_type": "continuous_transformer",
                    "ff_kwargs": {"mult": 2},
                },
            },
            "io_channels": LATENT_DIM,
        },
        "training": {
            "use_ema": True,
            "cfg_dropout_prob": 0.1,
            "timestep_sampler": "uniform",
            "optimizer_configs": {
                "diffusion": {
                    "optimizer": {
                        "type": "AdamW",
                        "config": {"lr": 2e-4, "betas": [0.9, 0.98], "weight_decay": 1e-3},
                    },
                    "scheduler": {
                        "type": "InverseLR",
                        "config": {"inv_gamma": 1000, "power": 0.5, "warmup": 0.9},
                    },
                }
            },
        },
    }
