"""Optimizers and learning-rate schedules by the names that configs use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.schema.base import nearest
from stable_audio_tools.schema.training import (
    AnyTrainingConfig,
    OptimizerConfig,
    OptimizerPair,
    SchedulerConfig,
)


class InverseLR(LRScheduler):
    """Inverse decay with an exponential warm-up.

    At step s the rate is ``lr * (1 - warmup^(s + 1)) * (1 + s / inv_gamma)^-power``, at least ``final_lr``.

    Args:
        inv_gamma: steps after which the rate has fallen to ``2^-power`` of its start.
        power: exponent of the decay.
        warmup: in [0, 1); 0 is no warm-up, 0.99 takes some hundred steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inv_gamma: float = 1.0,
        power: float = 1.0,
        warmup: float = 0.0,
        final_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"warmup must be in [0, 1), found {warmup}")
        self.inv_gamma = inv_gamma
        self.power = power
        self.warmup = warmup
        self.final_lr = final_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at the present step."""
        step = self.last_epoch
        factor = (1 - self.warmup ** (step + 1)) * (1 + step / self.inv_gamma) ** -self.power
        return [max(self.final_lr, base * factor) for base in self.base_lrs]


def _fused_adam(parameters: Iterable[nn.Parameter], **config: Any) -> Optimizer:
    """DeepSpeed's FusedAdam by torch's fused kernel; ``adam_w_mode`` (default on) decouples weight decay."""
    decoupled = config.pop("adam_w_mode", True)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(parameters, fused=True, **config)


def _adamw_8bit(parameters: Iterable[nn.Parameter], **config: Any) -> Optimizer:
    """AdamW with 8-bit states (Dettmers et al. 2022)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UsageError(
            "optimizer AdamW8bit needs bitsandbytes: pip install bitsandbytes, or use AdamW"
        ) from error
    return AdamW8bit(parameters, **config)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"FusedAdam": _fused_adam, "AdamW8bit": _adamw_8bit}
"""Names that are not those of ``torch.optim``."""

SCHEDULERS: dict[str, Callable[..., LRScheduler]] = {"InverseLR": InverseLR}
"""Names that are not those of ``torch.optim.lr_scheduler``."""


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    role: str = "diffusion",
    fused: bool = True,
) -> Optimizer:
    """The optimizer called ``config.type``, over ``parameters``; ``role`` is its entry of the config.

    Args:
        fused: on a GPU, update all parameters in one kernel where the optimizer has one and the config does
            not say otherwise.

    Raises:
        ConfigError: the name is unknown, or the arguments do not fit it.
    """
    where = f"training.optimizer_configs.{role}.optimizer"
    maker = _find(config.type, OPTIMIZERS, torch.optim, Optimizer, where)
    trained, arguments = list(parameters), dict(config.config)
    if fused and _can_fuse(maker, trained) and not {"fused", "foreach", "capturable"} & set(arguments):
        arguments["fused"] = True
    try:
        return maker(trained, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}.config: does not fit {config.type}: {error}") from error


def build_scheduler(config: SchedulerConfig, optimizer: Optimizer, role: str = "diffusion") -> LRScheduler:
    """The schedule called ``config.type``, stepped once per optimizer step.

    Raises:
        ConfigError: the name is unknown, its arguments do not fit, or it waits for a metric.
    """
    where = f"training.optimizer_configs.{role}.scheduler"
    maker = _find(config.type, SCHEDULERS, torch.optim.lr_scheduler, LRScheduler, where)
    if maker is ReduceLROnPlateau:
        raise ConfigError(
            f"{where}.type: ReduceLROnPlateau waits for a metric; use a schedule of steps, such as InverseLR"
        )
    try:
        return maker(optimizer, **config.config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.config: does not fit {config.type}: {error}") from error


def optimizer_pair(
    config: AnyTrainingConfig, learning_rate: float | None = None, role: str = "diffusion"
) -> OptimizerPair:
    """The optimizer and schedule that a training block asks for; ``learning_rate`` wins over its rate.

    Args:
        role: the entry of ``optimizer_configs``.

    Raises:
        ConfigError: the block names no optimizer for ``role`` and no rate.
    """
    pair = config.optimizer_configs.get(role)
    if pair is None and config.optimizer_configs:
        found = ", ".join(config.optimizer_configs)
        raise ConfigError(f"training.optimizer_configs: expected an entry {role!r}, found {found}")
    if pair is None:
        rate = learning_rate or config.learning_rate
        if rate is None:
            raise ConfigError(f"training: no optimizer: give optimizer_configs.{role} or learning_rate")
        arguments = {"lr": rate, **config.default_arguments}
        return OptimizerPair(optimizer=OptimizerConfig(type="AdamW", config=arguments))
    if learning_rate is None:
        return pair
    optimizer = OptimizerConfig(
        type=pair.optimizer.type, config={**pair.optimizer.config, "lr": learning_rate}
    )
    return OptimizerPair(optimizer=optimizer, scheduler=pair.scheduler)


def _can_fuse(maker: Any, parameters: list[nn.Parameter]) -> bool:
    on_gpu = all(parameter.is_cuda and parameter.is_floating_point() for parameter in parameters)
    return on_gpu and "fused" in inspect.signature(maker).parameters


def _find(name: str, ours: dict[str, Any], library: Any, base: type, where: str) -> Any:
    """What ``name`` stands for: an entry of ``ours``, or a subclass of ``base`` in ``library``."""
    if name in ours:
        return ours[name]
    known = [
        key for key, value in vars(library).items() if isinstance(value, type) and issubclass(value, base)
    ]
    known = sorted({*ours, *known} - {base.__name__, f"_{base.__name__}"})
    if name in known:
        return getattr(library, name)
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}"
    raise ConfigError(f"{where}.type: unknown name {name!r}; {hint}")
