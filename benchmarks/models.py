"""What the caches and windows of the models are worth, each against the plain way in the same run.

    python benchmarks/models.py --device cuda

Prints seconds and the ratio to the plain way: tokens of a language model with and without its key-value
cache, windowed attention in chunks against one whole mask, and decoding with the weight norm fused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from timing import seconds
from torch import Tensor

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import remove_weight_norm_from_model
from stable_audio_tools.nn.attention import local_attention

CONFIGS = Path(__file__).parents[1] / "stable_audio_tools/configs/model_configs"


def report(what: str, plain: float, ours: float) -> None:
    print(f"{what:60s} {plain:9.4f} s plain {ours:9.4f} s ours {plain / ours:7.2f} x")


def language_model(device: torch.device, frames: int) -> None:
    """Codes of the shipped language model at full size, random weights."""
    config = json.loads((CONFIGS / "language_models/dac_rvq_lm.json").read_text())
    model = create_model_from_config(config).to(device).eval()
    width = config["model"]["conditioning"]["cond_dim"]
    ids = config["model"]["lm"]["cross_attention_cond_ids"] + config["model"]["lm"].get(
        "prepend_cond_ids", []
    )
    tensors = {key: (torch.randn(1, 8, width, device=device), None) for key in ids}

    def generate(use_cache: bool) -> Tensor:
        return model.generate(
            max_gen_len=frames, conditioning_tensors=tensors, cfg_scale=3.0, seed=1, use_cache=use_cache
        )

    plain = seconds(lambda: generate(False), device, 1)
    ours = seconds(lambda: generate(True), device, 1)
    report(f"language model: {frames} frames of 9 codes, cfg 3, batch 1", plain, ours)


def window(device: torch.device, length: int) -> None:
    """Attention of 24 heads of 64 channels, 128 tokens wide."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = torch.randn(3, 1, 24, length, 64, device=device, dtype=dtype)
    distance = torch.arange(length, device=device) - torch.arange(length, device=device)[:, None]
    mask = (distance >= -63) & (distance <= 64)

    def whole() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    plain = seconds(whole, device, 5)
    ours = seconds(lambda: local_attention(q, k, v, (63, 64)), device, 5)
    report(f"attention in a window of 128, {length} tokens, {dtype}", plain, ours)


@torch.no_grad()
def fused_decoder(device: torch.device, latents: int) -> None:
    """The decoder of Stable Audio 2.0 at full size."""
    model = create_model_from_config(
        json.loads((CONFIGS / "autoencoders/stable_audio_2_0_vae.json").read_text())
    )
    model = model.to(device).eval()
    z = torch.randn(1, 64, latents, device=device)
    plain = seconds(lambda: model.decode(z), device, 3)
    remove_weight_norm_from_model(model)
    report(
        f"decoding {latents} latents, norm fused, float32", plain, seconds(lambda: model.decode(z), device, 3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=256, help="frames of the language model")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of the window")
    parser.add_argument("--latents", type=int, default=1024, help="latents to decode")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    language_model(device, options.frames)
    window(device, options.tokens)
    fused_decoder(device, options.latents)


if __name__ == "__main__":
    main()
