"""Time and memory of a training step at the Stable Audio Open 1.0 shape, beside the public recipe.

Random weights, latents and prompts; everything else is what ``sat train`` does: the Lightning trainer, T5,
guidance dropout, keyed draws, the optimizer and the average. The first variant, ``public``, is how the public
package trains: every block computed again in the backward pass, nothing compiled, an optimizer and an average
that go from parameter to parameter.

    python benchmarks/training.py --batch-size 8 32
    python benchmarks/training.py --batch-size 4 --variants bf16 lora --precision bf16-mixed
    python benchmarks/training.py --audio --batch-size 8
    python benchmarks/training.py --devices 2 --batch-size 32 --variants bf16

Utilisation is the arithmetic of forward and backward, without what is computed again, over time and peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from random_models import OPEN_1_0, with_random_text_encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from stable_audio_tools.models.adapters.frozen import hold_base
from stable_audio_tools.models.adapters.lora import apply_lora
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training import ema, speed
from stable_audio_tools.training import module as trainers
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.stopping import leave_signals_to_us

PEAK = 790e12
"""Dense bfloat16 products per second that torch reaches on an H100 or H200, measured."""
WARMUP = 6


@dataclass(frozen=True)
class Variant:
    """How a step is taken."""

    precision: str = "bf16-mixed"
    compile: bool = True
    checkpointing: str = "none"
    optimizer: str = "AdamW"
    loops: bool = False
    ema_on_cpu: bool = False
    lora: bool = False


VARIANTS = {
    "public": Variant("16-mixed", compile=False, checkpointing="full", loops=True),
    "eager": Variant("bf16-mixed", compile=False),
    "fp16": Variant("16-mixed"),
    "bf16": Variant(),
    "half": Variant(checkpointing="half"),
    "full": Variant(checkpointing="full"),
    "adam8bit": Variant(optimizer="AdamW8bit"),
    "ema-on-cpu": Variant(ema_on_cpu=True),
    "small": Variant(checkpointing="full", optimizer="AdamW8bit", ema_on_cpu=True),
    "lora": Variant(lora=True),
    "lora-full": Variant(lora=True, checkpointing="full"),
}


class Crops(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Random stored latents, or random audio, with prompts."""

    def __init__(self, shape: tuple[int, int], count: int) -> None:
        self.crops = torch.randn(16, *shape) * 0.3
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Any]]:
        prompt = f"a steady house track with warm chords, bright hats and a rolling bass, take {i}"
        info = {"prompt": prompt, "seconds_start": i % 30, "seconds_total": 47 + i % 200, "sample_id": str(i)}
        return self.crops[i % len(self.crops)], info


class Clock(pl.Callback):
    """Time of the steps after the warm-up, and how much of it goes to the optimizer and the average."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = 0.0
        self.elapsed = 0.0
        self.steps = 0
        self.marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self.marks.append((start, end))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.marks:
            self.marks[-1][1].record()
        done = trainer.global_step
        if done in (WARMUP, trainer.max_steps):
            _synchronize(self.device)
            now = time.perf_counter()
            self.steps, self.elapsed, self.started = done - WARMUP, now - self.started, now

    @property
    def milliseconds(self) -> float:
        return self.elapsed / self.steps * 1000

    @property
    def optimizer_milliseconds(self) -> float:
        times = [start.elapsed_time(end) for start, end in self.marks[WARMUP:]]
        return sum(times) / len(times) if times else 0.0


class LoopedAverage(ema.EMA):
    """An average that goes from parameter to parameter, as the public one does."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        kept = self.decay(int(self.step))
        for old, new in zip(self.ema_model.parameters(), model.parameters(), strict=True):
            old.lerp_(new, 1 - kept)
        self.step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step.")
    parser.add_argument("--model-config", type=Path, default=OPEN_1_0)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["public", "bf16"])
    parser.add_argument("--precision", default=None, help="of every variant but the first")
    parser.add_argument("--audio", action="store_true", help="train on audio, not on stored latents")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = resolve_device(options.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = _config(options.model_config, Path(folder), options.audio)
        for batch_size in options.batch_size:
            base = None
            for name in options.variants:
                variant = VARIANTS[name]
                if options.precision and name != "public":
                    variant = replace(variant, precision=options.precision)
                try:
                    row = _measure(name, variant, config, batch_size, options, device)
                except torch.cuda.OutOfMemoryError:
                    row = {"variant": name, "batch_size": batch_size, "out_of_memory": True}
                base = base or row.get("milliseconds")
                rows.append(row)
                _say(row, base)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                torch.compiler.reset()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _measure(
    name: str,
    variant: Variant,
    config: dict[str, Any],
    batch_size: int,
    options: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    arguments = {"lr": 5e-5, "betas": [0.9, 0.999], "weight_decay": 1e-3}
    if variant.loops:
        arguments["foreach"] = False
    config["training"]["optimizer_configs"]["diffusion"]["optimizer"] = {
        "type": variant.optimizer,
        "config": arguments,
    }
    parsed = parse_model_config(config)
    with torch.random.fork_rng(), device:
        model = create_model_from_config(parsed)
    if variant.lora:
        apply_lora(model, parsed.lora)
        if variant.precision == "bf16-mixed":
            hold_base(model.model, torch.bfloat16)
    with patch.object(trainers, "EMA", LoopedAverage if variant.loops else ema.EMA):
        module = create_training_wrapper_from_config(
            parsed, model, lora=variant.lora, ema_on_cpu=variant.ema_on_cpu
        )
    settings = TrainSettings(
        model_config="-",
        dataset_config="-",
        compile=variant.compile,
        activation_checkpointing=variant.checkpointing,
    )
    strategy = "auto" if options.devices == 1 else "ddp"
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    hardware = Hardware(accelerator, options.devices, 1, variant.precision, strategy)
    speed.make_fast(module, settings, hardware)
    clock = Clock(device)
    trainer = pl.Trainer(
        **hardware.trainer_options(),
        max_steps=WARMUP + options.steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    leave_signals_to_us(trainer)
    ratio = parsed.model.pretransform.config.downsampling_ratio
    length = parsed.sample_size // ratio
    shape = (
        (parsed.audio_channels, parsed.sample_size) if options.audio else (parsed.model.io_channels, length)
    )
    crops = Crops(shape, batch_size * (WARMUP + options.steps))
    loader = DataLoader(
        crops, batch_size, collate_fn=_collate, num_workers=2, pin_memory=device.type == "cuda"
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, loader)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    products = 3 * _products(parsed, length) * batch_size if not variant.lora else 0
    return {
        "variant": name,
        "batch_size": batch_size,
        "devices": options.devices,
        "milliseconds": clock.milliseconds,
        "optimizer_milliseconds": clock.optimizer_milliseconds,
        "gib": memory / 2**30,
        "utilisation": products / (clock.milliseconds / 1000) / PEAK,
        **vars(variant),
    }


def _collate(items: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, tuple[dict[str, Any], ...]]:
    crops, infos = zip(*items, strict=True)
    return torch.stack(crops), tuple(infos)


def _products(config: Any, length: int) -> float:
    """Floating-point operations of the network's forward pass on one crop."""
    dit = config.model.diffusion.config
    with torch.device("meta"):
        network = create_model_from_config(config).model
        inputs = {
            "cross_attn_cond": torch.randn(1, 130, dit.cond_token_dim),
            "global_cond": torch.randn(1, dit.global_cond_dim),
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(1, dit.io_channels, length), torch.rand(1), **inputs)
    return float(counter.get_total_flops())


def _config(path: Path, folder: Path, audio: bool) -> dict[str, Any]:
    config = with_random_text_encoder(json.loads(path.read_text()), folder)
    config["model"]["pretransform"]["model_half"] = True
    config["training"] |= {"pre_encoded": not audio, "use_ema": True}
    config["training"].pop("demo", None)
    config.setdefault("lora", {"component_whitelist": ["transformer"], "rank": 16})
    return config


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _say(row: dict[str, Any], base: float | None) -> None:
    head = f"batch {row['batch_size']:3d}  {row['variant']:11s}"
    if "out_of_memory" in row:
        print(f"{head} out of memory", flush=True)
        return
    each, share = row["milliseconds"], row["optimizer_milliseconds"] / row["milliseconds"]
    ratio = f"{base / each:5.2f} x" if base else ""
    rate = row["batch_size"] * row["devices"] / each * 1000
    print(
        f"{head} {each:8.1f} ms a step {ratio}  {rate:7.1f} clips/s"
        f"  {row['gib']:5.1f} GiB  utilisation {row['utilisation']:.2f}"
        f"  optimizer and average {row['optimizer_milliseconds']:.1f} ms ({share:.1%})",
        flush=True,
    )


if __name__ == "__main__":
    main()
