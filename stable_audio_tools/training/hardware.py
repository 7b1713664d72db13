"""What a run computes on: devices, precision and strategy, in Lightning's terms."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.strategies import StrategyRegistry

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.base import nearest
from stable_audio_tools.training.checkpoints import AtomicCheckpointIO
from stable_audio_tools.training.precision import BFloat16Weights
from stable_audio_tools.training.settings import TrainSettings

_AUTOCAST = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}
"""DeepSpeed's names of what is computed in."""
_BUCKET_MIB = 250
"""Of gradients that DDP sends at once: with torch's 25 a step of two GPUs takes 3 % longer."""


@dataclass(frozen=True)
class Hardware:
    """The devices of a run, one process each."""

    accelerator: str
    devices: int
    num_nodes: int
    precision: str
    strategy: str

    @property
    def world_size(self) -> int:
        """Processes of the run, one a device."""
        return self.devices * self.num_nodes

    @property
    def rank(self) -> int:
        """This process's number; Lightning and the launchers put it into the environment."""
        if self.world_size == 1:
            return 0
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        node = int(
            os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", os.environ.get("SLURM_NODEID", 0)))
        )
        return node * self.devices + local

    @property
    def writes_single_files(self) -> bool:
        """Whether a checkpoint is one file, which our own writer writes; DeepSpeed writes folders."""
        return not self.strategy.startswith("deepspeed")

    def trainer_options(self) -> dict[str, Any]:
        """The arguments of Lightning's Trainer."""
        options: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "strategy": _made_here(self.strategy, self.precision),
            "plugins": [AtomicCheckpointIO()] if self.writes_single_files else [],
        }
        if self.strategy.startswith("deepspeed"):
            return options  # autocast is its own
        if self.precision == "bf16-true":
            device = "cuda" if self.accelerator == "gpu" else self.accelerator
            options["plugins"].append(BFloat16Weights(device))
            return options
        return {**options, "precision": self.precision}

    def describe(self) -> str:
        """In words, for the line at the start."""
        count = f"{self.world_size} x " if self.world_size > 1 else ""
        return f"{count}{self.accelerator}, {self.precision}"


def choose_hardware(settings: TrainSettings, idle_parameters: bool = False) -> Hardware:
    """The hardware that ``settings`` ask for, as far as this machine has it.

    Without a GPU a run computes on the CPU in float32, since float16 autocast needs a GPU, and says so.

    Args:
        idle_parameters: some parameters that are trained sit steps out: adapters, or an adversary.

    Raises:
        UsageError: there are fewer GPUs than asked for, or the strategy is unknown or does not fit them.
    """
    device = torch.device("cpu") if settings.num_gpus == 0 else resolve_device(settings.device)
    precision = settings.precision
    if device.type == "cpu":
        if settings.num_gpus > 1:
            raise UsageError(f"--num-gpus: {settings.num_gpus} were asked for, but this machine has no GPU")
        if precision.startswith("16"):
            say(f"precision {precision} needs a GPU; computing in float32 on the CPU")
            precision = "32-true"
    if device.type == "cuda" and settings.num_gpus > torch.cuda.device_count():
        raise UsageError(
            f"--num-gpus: found {settings.num_gpus}, but this machine has {torch.cuda.device_count()}"
        )
    devices = max(1, settings.num_gpus) if device.type == "cuda" else 1
    strategy = settings.strategy or _default_strategy(devices * settings.num_nodes, idle_parameters)
    _check_strategy(strategy, device)
    if strategy.startswith(("fsdp", "deepspeed")) and idle_parameters:
        raise UsageError(f"--strategy {strategy}: can cut neither adapters nor an adversary; use ddp")
    if strategy == "fsdp":
        _check_fsdp(precision, settings.ema_on_cpu)
    if strategy.startswith("deepspeed"):
        _check_deepspeed(strategy, precision, settings.gradient_clip_val)
    accelerator = "gpu" if device.type == "cuda" else device.type
    return Hardware(accelerator, devices, settings.num_nodes, precision, strategy)


def _check_strategy(strategy: str, device: torch.device) -> None:
    known = ["auto", *StrategyRegistry.available_strategies()]
    known.remove("fsdp_cpu_offload")
    if strategy not in known:
        guess = nearest(strategy, known)
        hint = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}"
        raise UsageError(f"--strategy: unknown value {strategy!r}; {hint}")
    if strategy.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise UsageError(f"--strategy {strategy}: pip install 'stable-audio-tools[deepspeed]'")
    if strategy.startswith(("deepspeed", "fsdp")) and device.type != "cuda":
        raise UsageError(f"--strategy {strategy}: shards a model over GPUs, but this run is on {device.type}")


def _check_fsdp(precision: str, ema_on_cpu: bool) -> None:
    if precision == "16-mixed":
        raise UsageError("--strategy fsdp: found --precision 16-mixed; expected bf16-mixed, bf16-true or 32")
    if ema_on_cpu:
        raise UsageError("--ema-on-cpu: with --strategy fsdp each GPU has only its piece of the average")


def _check_deepspeed(strategy: str, precision: str, gradient_clip_val: float) -> None:
    if strategy.startswith("deepspeed_stage_3"):
        raise UsageError(f"--strategy {strategy}: to cut weights too, use fsdp")
    if precision == "bf16-true":
        raise UsageError(
            f"--strategy {strategy}: found --precision bf16-true; expected bf16-mixed, 16-mixed or 32"
        )
    if precision == "16-mixed" and gradient_clip_val:  # it clips before it takes the loss scale out
        raise UsageError(
            f"--strategy {strategy}: cannot clip float16 gradients; use --precision bf16-mixed, or leave"
            " --gradient-clip-val out"
        )


def _made_here(strategy: str, precision: str) -> Any:
    """The strategy itself where Lightning's own of this name does not do."""
    if strategy == "fsdp":
        from stable_audio_tools.training.sharding import ShardedStrategy  # of use on several GPUs only

        return ShardedStrategy()
    if strategy.startswith("ddp"):
        # gradients are there once, in pieces so large that sending them takes little from the backward pass
        return _registered(strategy, gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MIB)
    if not strategy.startswith("deepspeed"):
        return strategy
    # at the start it sends all parameters from the first process, and the average's may be on the CPU
    made = _registered(strategy, process_group_backend="cpu:gloo,cuda:nccl")
    if precision in _AUTOCAST:
        # Lightning would turn everything to half precision: the VAE, and the average, which then stands still
        made.config["torch_autocast"] = {"enabled": True, "dtype": _AUTOCAST[precision]}
    return made


def _registered(strategy: str, **options: Any) -> Any:
    known = StrategyRegistry[strategy]
    return known["strategy"](**known["init_params"], **options)


def _default_strategy(processes: int, idle_parameters: bool) -> str:
    if processes == 1:
        return "auto"
    # what sits a step out has no gradient in it
    return "ddp_find_unused_parameters_true" if idle_parameters else "ddp"
