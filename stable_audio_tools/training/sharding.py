"""``--strategy fsdp``: weights, gradients, optimizer and average in pieces, one on each GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from stable_audio_tools.nn.transformer import TransformerBlock
from stable_audio_tools.training.module import ModelTrainer

try:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # before torch 2.6 it was not public yet
    from torch.distributed._composable.fsdp import fully_shard
    from torch.distributed._tensor import DTensor, distribute_tensor

MODEL_TYPES = ("diffusion_cond", "diffusion_cond_inpaint", "diffusion_uncond")
"""What can be trained in pieces: models whose network is called as one module."""


class ShardedStrategy(DDPStrategy):
    """Fully sharded data parallelism (Zhao et al. 2023), each tensor cut along its first dimension.

    A transformer block is gathered for as long as it computes. The average is cut like the network, so that
    an update touches the pieces only. What is frozen and runs without gradients, VAE and text encoder, stays
    whole on every GPU.

    Checkpoints are the files that any other run writes, put together on the first rank: they unwrap, and go
    on with another strategy or number of GPUs.
    """

    _cut: list[nn.Module]

    def configure_ddp(self) -> None:
        """Cut what is trained, and its average."""
        module = self.lightning_module
        assert isinstance(module, ModelTrainer)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        conditioner = getattr(module.wrapped, "conditioner", None)
        networks = [module.wrapped.model]
        if module.average is not None:
            networks.append(module.average.ema_model)
        for network in networks:
            for block in [each for each in network.modules() if isinstance(each, TransformerBlock)]:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        self._cut = networks
        if conditioner is not None and any(each.requires_grad for each in conditioner.parameters()):
            fully_shard(conditioner, mesh=mesh, reshard_after_forward=True)
            self._cut.append(conditioner)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole state, on the CPU of the first rank."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on the CPU of the first rank."""
        return self._whole(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its pieces of a whole state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            pieces = {
                place: {name: _cut_like(value, parameters[place]) for name, value in values.items()}
                for place, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": pieces})

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every rank has the whole network as long as the block lasts, so that one of them may use it alone.

        To be entered by all ranks together.
        """
        parts: list[Any] = [each for root in self._cut for each in root.modules() if hasattr(each, "unshard")]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            self.barrier()
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)

    def _whole(self, value: Any) -> Any:
        """``value`` with its tensors put together; on other ranks than the first they are left out."""
        if isinstance(value, DTensor):
            whole = value.full_tensor()  # all ranks take part
            return whole.cpu() if self.global_rank == 0 else None
        if isinstance(value, Tensor):
            return value.cpu() if value.is_cuda else value
        if isinstance(value, Mapping):
            return {key: self._whole(each) for key, each in value.items()}
        return [self._whole(each) for each in value] if isinstance(value, list) else value


def whole_networks(trainer: pl.Trainer) -> Any:
    """A block in which one rank may use the networks alone, whatever the strategy; all ranks enter it."""
    strategy = trainer.strategy
    return strategy.whole() if isinstance(strategy, ShardedStrategy) else nullcontext()


def _cut_like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    there = value.to(device=parameter.device, dtype=parameter.dtype)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements)
