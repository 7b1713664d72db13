"""Time per track and timestep of attribution gradients, beside the forward and backward pass they ride on.

The network has the shape of a shipped config and random weights; latents and conditioning are random.
``bare`` is forward and backward down to the latents, without parameter gradients; ``training`` makes those
too.

    python benchmarks/attribution_gradients.py --precision bfloat16 --batch-size 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timing import seconds
from torch import Tensor

import stable_audio_tools
from stable_audio_tools.attribution.gradients import HookedGradients
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.schema.model import DiffusionCondModelConfig
from stable_audio_tools.schema.reader import read_model_config

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs" / "model_configs"
OPEN_1_0 = CONFIGS / "txt2audio" / "stable_audio_open_1_0.json"


class Latents:
    """A batch of random inputs."""

    def __init__(self, x: Tensor, t: Tensor, **conditioning: Tensor) -> None:
        self.x, self.t, self.conditioning = x, t, conditioning

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice) -> Latents:
        conditioning = {key: value[index] for key, value in self.conditioning.items()}
        return Latents(self.x[index], self.t[index], **conditioning)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of attribution gradients.")
    parser.add_argument("--model-config", type=Path, default=OPEN_1_0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--proj-rank", type=int, default=16)
    parser.add_argument("--param-regex", default=None)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    device = resolve_device(options.device)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    config = read_model_config(options.model_config)
    if not isinstance(config, DiffusionCondModelConfig) or config.model.pretransform is None:
        parser.error(f"{options.model_config}: not a latent diffusion_cond config")
    dit = config.model.diffusion.config
    with device:
        network = DiffusionTransformer(dit)
        length = config.sample_size // config.model.pretransform.config.downsampling_ratio
        size = options.batch_size
        batch = Latents(
            torch.randn(size, dit.io_channels, length),
            torch.rand(size),
            cross_attn_cond=torch.randn(size, 130, dit.cond_token_dim),
            global_embed=torch.randn(size, dit.global_cond_dim),
        )
    network.eval()

    def measured(inputs: Latents) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            output = network(inputs.x, inputs.t, **inputs.conditioning)
        return (output.float() ** 2).flatten(1).mean(1)

    gradients = HookedGradients(network, rank=options.proj_rank, param_regex=options.param_regex)

    def bare() -> None:
        network.requires_grad_(False)
        batch.x.requires_grad_(True)
        measured(batch).sum().backward()
        batch.x.requires_grad_(False)
        batch.x.grad = None

    def training() -> None:
        network.requires_grad_(True)
        measured(batch).sum().backward()
        network.zero_grad(set_to_none=True)

    print(f"{len(gradients.layers)} layers, {gradients.dim} numbers a row")
    print(f"batch {size}, {options.precision}, {device}")
    base = 0.0
    jobs = {"bare": bare, "training": training, "hooked": lambda: gradients(batch, [measured])}
    for name, run in jobs.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = seconds(run, device, options.repeats) / size * 1000
        base = base or each
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""
        print(f"{name:9s} {each:8.2f} ms a track and timestep, {each / base:5.2f} x bare{memory}")


if __name__ == "__main__":
    main()
