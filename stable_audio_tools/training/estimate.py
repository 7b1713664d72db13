"""What a run will take of a card's memory, before it is started.

Parameters, gradients, optimizer and average are counted. Activations are counted too, on tensors without
content: the network runs once on fake tensors of one crop, and what autograd keeps of it is added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.adapters.frozen import hold_base
from stable_audio_tools.models.adapters.lora import apply_lora
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.nn.transformer import ContinuousTransformer
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.model import (
    DiffusionCondModelConfig,
    DiffusionUncondModelConfig,
    ModelConfig,
)
from stable_audio_tools.schema.training import LoraConfig, OptimizerConfig
from stable_audio_tools.training.module import NOT_AVERAGED
from stable_audio_tools.training.optimizers import build_optimizer, optimizer_pair
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.speed import CHECKPOINTING

GIB = 2**30
CARDS = (16, 24, 40, 48, 80, 141)
"""Memory of common cards in GB, for machines without one."""
CONTEXT = int(1.5 * GIB)
"""CUDA's own, workspaces and fragments, measured: what is left when everything counted is taken away."""
COMPILED_SHARE = 0.88
"""Of the activations of a crop, where blocks are compiled: measured at the Stable Audio Open shape."""
TEXT_ENCODER_MILLIONS = {"t5-small": 35, "t5-base": 110, "t5-large": 335, "t5-3b": 1241, "t5-11b": 4763}


@dataclass(frozen=True)
class Estimate:
    """Bytes on the card, by what they are for."""

    parameters: int
    frozen: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    average_on_cpu: int = 0
    trained_parameters: int = 0

    @property
    def total(self) -> int:
        """On the card, with what CUDA takes for itself."""
        kinds = (self.parameters, self.frozen, self.gradients, self.optimizer, self.average, self.activations)
        return sum(kinds) + CONTEXT

    def lines(self) -> Iterator[str]:
        """One line for each kind, then the sum."""
        yield f"trained parameters  {self.parameters / GIB:7.2f} GiB  ({self.trained_parameters / 1e6:.1f} M)"
        yield f"frozen parameters   {self.frozen / GIB:7.2f} GiB"
        yield f"gradients           {self.gradients / GIB:7.2f} GiB"
        yield f"optimizer           {self.optimizer / GIB:7.2f} GiB"
        where = f"  (and {self.average_on_cpu / GIB:.2f} GiB of main memory)" if self.average_on_cpu else ""
        yield f"average (EMA)       {self.average / GIB:7.2f} GiB{where}"
        yield f"activations         {self.activations / GIB:7.2f} GiB"
        yield f"CUDA itself         {CONTEXT / GIB:7.2f} GiB"
        yield f"together            {self.total / GIB:7.2f} GiB"


class Activations(NamedTuple):
    """Bytes that autograd keeps of a forward pass: of each crop, and whatever the batch."""

    each: int
    fixed: int


def count_activations(config: ModelConfig) -> Activations:
    """Count them on fake tensors, which takes seconds and no memory.

    Adapters keep what the layers that they adapt would have kept.

    Raises:
        UsageError: the model is of a type whose activations are not counted.
    """
    if not isinstance(config, DiffusionCondModelConfig | DiffusionUncondModelConfig):
        raise UsageError(
            f"--estimate: counts diffusion models, not {config.model_type!r}; try a few steps with"
            " --max-steps 3 and read the memory in the progress line"
        )
    one, two = (_kept(config, crops) for crops in (1, 2))
    # what does not grow with the batch is weights, cast to the precision of the products
    return Activations(two - one, max(0, 2 * one - two))


def estimate(
    config: ModelConfig, settings: TrainSettings, lora: bool = False, activations: Activations | None = None
) -> Estimate:
    """The memory of one GPU of a run.

    Args:
        activations: of this config, where they have been counted already.

    Raises:
        UsageError: the model is of a type whose activations are not counted.
        ConfigError: the training block names no optimizer.
    """
    activations = activations or count_activations(config)
    with torch.device("meta"):
        model = create_model_from_config(config)
        if lora:
            block = getattr(config, "lora", None) or LoraConfig()
            apply_lora(model, block, settings.seed)
            if _holds_half(block, settings):
                hold_base(model.model, torch.bfloat16)
                activations = Activations(activations.each, 0)  # nothing is cast any more
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    width = 2 if settings.precision == "bf16-true" else 4
    assert config.training is not None  # as in any run
    rate = getattr(config, "lora", None) if lora else None
    pair = optimizer_pair(config.training, None if rate is None else rate.lr)
    averaged = 0
    if config.training.use_ema and not lora:
        parts = [part for name, part in model.named_children() if name not in NOT_AVERAGED]
        averaged = 4 * sum(parameter.numel() for part in parts for parameter in part.parameters())
    return Estimate(
        parameters=width * count,
        frozen=_frozen_bytes(model, config, width),
        gradients=width * count,
        optimizer=int(count * state_bytes(pair.optimizer)),
        average=0 if settings.ema_on_cpu else averaged,
        activations=_activation_bytes(model, config, settings, activations),
        average_on_cpu=averaged if settings.ema_on_cpu else 0,
        trained_parameters=count,
    )


def state_bytes(config: OptimizerConfig) -> float:
    """Bytes of state that an optimizer keeps for each parameter: found by a step on a small tensor."""
    if config.type == "AdamW8bit":
        return 2.03  # two bytes, and two float32 scales for each block of 256
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(config, [parameter])
    optimizer.step()
    kept = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in kept if value.ndim) / parameter.numel()


def ways(
    config: ModelConfig, settings: TrainSettings, lora: bool, activations: Activations
) -> list[tuple[str, Estimate]]:
    """Sets of flags, the mildest first, and what the run takes with them. The first set is empty."""
    together = settings.batch_size * settings.accum_batches
    changes: dict[str, dict[str, Any]] = {
        "": {},
        "--activation-checkpointing half": {"activation_checkpointing": "half"},
        "--activation-checkpointing full": {"activation_checkpointing": "full"},
        "--activation-checkpointing full --ema-on-cpu": {
            "activation_checkpointing": "full",
            "ema_on_cpu": True,
        },
        f"--activation-checkpointing full --ema-on-cpu --batch-size 1 --accum-batches {together}": {
            "activation_checkpointing": "full",
            "ema_on_cpu": True,
            "batch_size": 1,
        },
    }
    return [
        (flags, estimate(config, replace(settings, **change), lora, activations))
        for flags, change in changes.items()
    ]


def advise(found: list[tuple[str, Estimate]], card: int) -> tuple[str, Estimate] | None:
    """The mildest of :func:`ways` that fits ``card`` bytes; None if none does."""
    return next(((flags, way) for flags, way in found if way.total <= card), None)


def report(config: ModelConfig, settings: TrainSettings, lora: bool = False) -> None:
    """Say what a run takes, whether that fits this machine's card or common ones, and which flags help."""
    found = ways(config, settings, lora, count_activations(config))
    say(f"batch {settings.batch_size}, {settings.precision}:")
    for line in found[0][1].lines():
        say(line)
    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(0).total_memory]
        names = [f"{torch.cuda.get_device_name(0)} ({sizes[0] / GIB:.0f} GiB)"]
    else:
        sizes = [card * 10**9 for card in CARDS]
        names = [f"{card} GB" for card in CARDS]
    for name, size in zip(names, sizes, strict=True):
        way = advise(found, size)
        if way is None:
            advice = "does not fit; an optimizer of type AdamW8bit, --strategy fsdp or adapters take less"
        elif way[0]:
            advice = f"fits with {way[0]}: {way[1].total / GIB:.1f} GiB"
        else:
            advice = "fits"
        say(f"{name:8s} {advice}")


def _holds_half(block: LoraConfig, settings: TrainSettings) -> bool:
    """Whether the frozen network of a LoRA run is held in half precision; see ``hold_frozen_base``."""
    mixed = settings.precision in ("bf16-mixed", "16-mixed") and settings.device != "cpu"
    return mixed and block.base_precision != "fp32"


def _frozen_bytes(model: Any, config: Any, width: int) -> int:
    parameters = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    total = sum(parameter.numel() * min(width, parameter.element_size()) for parameter in parameters)
    conditioning = getattr(getattr(config, "model", None), "conditioning", None)
    for conditioner in conditioning.configs if conditioning is not None else ():
        name = getattr(conditioner.config, "t5_model_name", None)
        total += int(2e6 * TEXT_ENCODER_MILLIONS.get(str(name), 0))
    return total


def _activation_bytes(model: Any, config: Any, settings: TrainSettings, counted: Activations) -> int:
    """What stays of the counted activations with the settings of a run."""
    transformer = next((m for m in model.model.modules() if isinstance(m, ContinuousTransformer)), None)
    depth = 1 if transformer is None else len(transformer.layers)
    each, fixed = counted
    if settings.compile is not False and settings.device != "cpu":
        each = int(each * COMPILED_SHARE)
    every = CHECKPOINTING[settings.activation_checkpointing]
    if every and transformer is not None:
        # of a block that is computed again only its input stays, and one block is whole at a time
        inputs = _tokens(config) * transformer.options.block.dim * 2
        recomputed = -(-depth // every)
        each = each * (depth - recomputed) // depth + inputs * recomputed + each // depth
        fixed = fixed * (depth - recomputed) // depth
    return each * settings.batch_size + fixed


def _tokens(config: Any) -> int:
    pretransform = config.model.pretransform
    ratio = pretransform.config.downsampling_ratio if pretransform is not None else 1
    return int(config.sample_size // ratio)


def _kept(config: Any, crops: int) -> int:
    """Bytes that autograd keeps of a forward pass of the network on ``crops`` crops."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = create_model_from_config(config)
        network = model.model.train()
        inputs = {name: value.expand(crops, *value.shape[1:]) for name, value in _inputs(config).items()}
        # what a GPU does: attention that keeps its inputs and its result, not its map
        flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        with torch.autocast("cpu", torch.bfloat16), flash, _counting(network) as kept:
            network(torch.randn(crops, model.io_channels, _tokens(config)), torch.rand(crops), **inputs)
    return sum(kept.values())


def _inputs(config: Any) -> dict[str, Tensor]:
    """Conditioning of one crop, of the sizes that the network's config gives."""
    dit = getattr(getattr(config.model, "diffusion", None), "config", None)
    if dit is None:
        return {}
    widths = {
        "cross_attn_cond": (1, 130, getattr(dit, "cond_token_dim", 0)),
        "global_cond": (1, getattr(dit, "global_cond_dim", 0)),
        "prepend_cond": (1, 1, getattr(dit, "prepend_cond_dim", 0)),
        "input_concat_cond": (1, getattr(dit, "input_concat_dim", 0), _tokens(config)),
        "local_add_cond": (1, getattr(dit, "local_add_cond_dim", 0), _tokens(config)),
    }
    return {name: torch.randn(shape) for name, shape in widths.items() if 0 not in shape}


@contextmanager
def _counting(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage of what is kept for the backward pass while the block lasts, parameters aside."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # an address is not used again while its tensor is here
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
