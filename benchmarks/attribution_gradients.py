"""Time per track and timestep of attribution gradients, beside the forward and backward pass they ride on.

The network has the shape of a shipped config and random weights; latents and conditioning are random.
A job is what a batch takes: five timesteps, each a forward pass and a backward pass for each of the two
measurements. ``bare`` goes down to the latents, without parameter gradients; ``training`` makes those too;
``hooked`` makes projected gradients per sample. Each runs eagerly and with compiled blocks, and is printed
beside the bare job of its own kind and the arithmetic limit: the operations of the bare job, counted, at what
the GPU multiplies at best.

    python benchmarks/attribution_gradients.py --precision bfloat16 --batch-size 16
    python benchmarks/attribution_gradients.py --precision bfloat16 --batch-size 16 --profile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from random_models import OPEN_1_0
from timing import seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stable_audio_tools.attribution.gradients.numerics import exact_float32, repeatable
from stable_audio_tools.attribution.gradients.rows import HookedGradients
from stable_audio_tools.attribution.gradients.taps import keeping_buffers
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.nn.transformer import TransformerBlock
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.schema.model import DiffusionCondModelConfig
from stable_audio_tools.schema.reader import read_model_config

TRACKS, TIMESTEPS = 5000, FeatureSettings().K
PEAK = {"bfloat16": 790.0, "float32": 60.0}
"""TFLOP/s of one H100 or H200: dense bfloat16 as measured, and float32 without TF32."""


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
    parser.add_argument("--measurements", type=int, default=2, help="backward passes of a forward pass")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", type=float, default=None, help="TFLOP/s of the limit.")
    parser.add_argument("--eager-only", action="store_true", help="Compile nothing.")
    parser.add_argument("--backend", default="inductor", help="Of torch.compile.")
    parser.add_argument("--unrepeatable", action="store_true", help="Let attention add in any order.")
    parser.add_argument("--profile", action="store_true", help="Also list the kernels that take longest.")
    options = parser.parse_args()

    device = resolve_device(options.device)
    exactly = ExitStack()
    exactly.enter_context(exact_float32())
    if not options.unrepeatable:
        exactly.enter_context(repeatable(device))
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

    def hooked(compiled_batch: int | None = None) -> HookedGradients:
        return HookedGradients(
            network,
            rank=options.proj_rank,
            measurements=options.measurements,
            param_regex=options.param_regex,
            compiled_batch=compiled_batch,
            backend=options.backend,
        )

    def several(inputs: Latents) -> Tensor:
        number = measured(inputs)
        return torch.stack([number ** (1 + m) for m in range(options.measurements)], dim=1)

    passes = [several] * TIMESTEPS

    def backward() -> None:
        for measure in passes:
            numbers = measure(batch).sum(0)
            for m, number in enumerate(numbers):
                number.backward(retain_graph=m + 1 < len(numbers))

    def bare() -> None:
        network.requires_grad_(False)
        batch.x.requires_grad_(True)
        backward()
        batch.x.requires_grad_(False)
        batch.x.grad = None

    def training() -> None:
        network.requires_grad_(True)
        backward()
        network.zero_grad(set_to_none=True)
        network.requires_grad_(False)

    eager, compiled = hooked(), hooked(size)
    print(f"{len(eager.layers)} layers, {eager.dim} numbers a row, {len(eager.left_out)} parameters left out")
    print(f"batch {size}, {options.precision}, {device_name(device)}, torch {torch.__version__}")
    with FlopCounterMode(display=False) as counter:
        bare()
    limit = counter.get_total_flops() / TIMESTEPS / size / ((options.peak or PEAK[options.precision]) * 1e9)
    print(f"arithmetic limit {limit:.2f} ms a track and timestep")

    report = Report(device, size, options.repeats, limit)
    report.add("bare", bare)
    report.add("training", training)
    report.add("hooked", lambda: eager(batch, passes))
    if options.profile:
        profile("hooked", lambda: eager(batch, passes), device)
    if options.eager_only:
        return
    rows = eager(batch, passes)
    with compiled_blocks(network, options.backend):
        report.base = 0.0
        report.add("bare, compiled", bare)
        report.add("training, compiled", training)
    report.add("hooked, compiled", lambda: compiled(batch, passes))
    if options.profile:
        profile("hooked, compiled", lambda: compiled(batch, passes), device)
    difference = (compiled(batch, passes) - rows).norm() / rows.norm()
    print(f"rows of hooked and compiled differ by {difference:.1e} of their length")


class Report:
    """Times jobs and prints each beside the first of its kind and the limit in ms."""

    def __init__(self, device: torch.device, size: int, repeats: int, limit: float) -> None:
        self.device, self.size, self.repeats, self.limit = device, size, repeats, limit
        self.base = 0.0

    def add(self, name: str, run: Callable[[], object]) -> None:
        """Time ``run`` and print a line."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        each = seconds(run, self.device, self.repeats) / TIMESTEPS / self.size * 1000
        self.base = self.base or each
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
        print(
            f"{name:18s} {each:8.2f} ms a track and timestep, {each / self.base:5.3f} x bare,"
            f" {each / self.limit:5.2f} x the limit{memory};"
            f" {TRACKS} tracks at K = {TIMESTEPS}: {each * TRACKS * TIMESTEPS / 60000:.1f} minutes",
            flush=True,
        )


@contextmanager
def compiled_blocks(network: nn.Module, backend: str) -> Iterator[None]:
    """The blocks compiled as they are, which is what a compiled training step would pay."""
    blocks = [module for module in network.modules() if isinstance(module, TransformerBlock)]
    for block in blocks:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, dynamic=False)
    try:
        with keeping_buffers():
            yield
    finally:
        for block in blocks:
            del block._compiled_call_impl


def profile(name: str, run: Callable[[], object], device: torch.device, count: int = 30) -> None:
    """Print the kernels that take longest."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as record:
        run()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(name)
    print(record.key_averages().table(sort_by=key, row_limit=count, max_name_column_width=70))


def device_name(device: torch.device) -> str:
    """What the device is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
