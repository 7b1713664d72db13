"""What every trainer does: keyed draws, counting, numbers for the log, the average, checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, TypeAlias

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from stable_audio_tools.errors import ConfigError, TrainingError
from stable_audio_tools.models.adapters.lora import dropped_adapters
from stable_audio_tools.models.bottlenecks.rvq import RVQBottleneck
from stable_audio_tools.runtime import seeds
from stable_audio_tools.runtime.compiling import eager
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.optimizers import build_optimizer, build_scheduler, optimizer_pair
from stable_audio_tools.training.watch import LossWatch

Batch: TypeAlias = "tuple[Tensor, Sequence[dict[str, Any]]]"

NOT_AVERAGED = ("pretransform", "conditioner")
"""Parts of a model that are exported as trained: frozen as a rule, and large."""


class ModelTrainer(pl.LightningModule, ABC):
    """Trains a model on batches ``(audio (B, C, T), infos)``.

    Every draw for an item of a batch (crop aside, which the loader keys) comes from ``(seed, step, slot)``,
    see :class:`Key`; what layers draw for a whole batch from its first slot, for which the global generator
    is set aside during the forward pass. A run that goes on from a checkpoint therefore draws what the
    unbroken run would have drawn, and one on more GPUs, at the same global batch, what one GPU would have.

    A subclass names the attribute that holds the model, which is the public prefix of its keys, and the
    entry of ``optimizer_configs`` that trains it.

    Args:
        model: what is trained.
        config: the whole config that it was built from, with a ``training`` block.
        seed: of every draw.
        accum_batches: batches per optimizer step.
        gradient_clip_val: largest norm of the gradient, which Lightning sees to where one optimizer trains;
            0 does not clip.
        lora: the model has adapters, and nothing else is trained.
        ema_on_cpu: keep the average in main memory; see :class:`EMA`.

    Attributes:
        steps_done: optimizer steps so far.
        micro_batch: batches since the last optimizer step.
        batches_done: batches so far on each rank: the position in the data.
        watch: notices a loss that is not finite.
        run_facts: what each checkpoint records about the run besides its model config.
    """

    holder: ClassVar[str]
    role: ClassVar[str]
    average_beta: ClassVar[float] = 0.9999

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        *,
        seed: int = 42,
        accum_batches: int = 1,
        gradient_clip_val: float = 0.0,
        lora: bool = False,
        ema_on_cpu: bool = False,
    ) -> None:
        super().__init__()
        if config.training is None:
            raise ConfigError(
                f"training: missing; expected a block with optimizer_configs.{self.role} or learning_rate"
            )
        self.config = config
        self.options = config.training
        self.lora = lora
        self.seed = seed
        self.accum_batches = accum_batches
        self.gradient_clip_val = gradient_clip_val
        self.steps_done = 0
        self.micro_batch = 0
        self.batches_done = 0
        self.watch = LossWatch()
        self.run_facts: dict[str, Any] = {}
        self._noted: dict[str, list[Tensor]] = {}
        self._visit = ExitStack()
        self._validation: list[tuple[dict[str, Tensor], int]] = []
        # a LoRA checkpoint holds the adapters only; a run checks first that none of them is missing
        self.strict_loading = not lora
        setattr(self, self.holder, model)
        # adapters are few and trained for few steps: an average of them would only lag behind
        averages = self.options.use_ema and not lora
        source = self._averaged_source()
        average = EMA(source, self.average_beta, on_cpu=ema_on_cpu) if averages else None
        setattr(self, f"{self.holder}_ema", average)
        self._keep_average_from_ddp()

    def _keep_average_from_ddp(self) -> None:
        """Let DDP pass over the average: ranks have the same anyway, and it may be on another device."""
        if self.average is not None:
            state = [*self.average.named_parameters(), *self.average.named_buffers()]
            names = [f"{self.holder}_ema.{name}" for name, _ in state]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    @property
    def wrapped(self) -> Any:
        """The model that is trained."""
        return getattr(self, self.holder)

    @property
    def average(self) -> EMA | None:
        """The average, or None where the config or LoRA turns it off."""
        average: EMA | None = getattr(self, f"{self.holder}_ema")
        return average

    def averaged_parts(self) -> dict[str, nn.Module]:
        """The averaged modules by the attribute of the model that they stand in for; empty without EMA."""
        return {} if self.average is None else dict(self.average.ema_model.named_children())

    def _averaged_source(self) -> nn.Module:
        """What the average follows: a module whose keys are the public ones below ``ema_model``."""
        parts = self.wrapped.named_children()
        return nn.ModuleDict({name: part for name, part in parts if name not in NOT_AVERAGED})

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """The model with the averaged parts in it, in evaluation mode, for as long as the block lasts."""
        model = self.wrapped
        averaged, training = self.averaged_parts(), model.training
        online = {name: getattr(model, name) for name in averaged}
        _put(model, averaged)
        model.eval()
        try:
            with self._average_here(), eager():
                yield model
        finally:
            _put(model, online)
            model.train(training)

    def _average_here(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.on(self.device)

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule of the config over everything that is trained."""
        return self.optimizer_of(self.role, self.wrapped.parameters())

    def optimizer_of(self, role: str, parameters: Iterable[nn.Parameter]) -> Any:
        """The optimizer of the entry ``role`` over what is trained of ``parameters``, in Lightning's form.

        Raises:
            ConfigError: the entry is missing or wrong, or nothing is trained.
        """
        lora = getattr(self.config, "lora", None) if self.lora else None
        pair = optimizer_pair(self.options, None if lora is None else lora.lr, role)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            raise ConfigError(f"training: every parameter for optimizer_configs.{role} is frozen")
        optimizer = build_optimizer(pair.optimizer, trained, role, fused=self._may_fuse())
        if pair.scheduler is None:
            return optimizer
        scheduler = build_scheduler(pair.scheduler, optimizer, role)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _may_fuse(self) -> bool:
        """Whether one kernel may unscale and step; what clips scaled gradients must see them in between."""
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        return not scaled or (self.automatic_optimization and not self.gradient_clip_val)

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of one batch; what it counts goes through :meth:`note` and :meth:`count`."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip; what nothing scales too, which Lightning refuses where one kernel both unscales and steps."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            clip_grad_norm_(plugin.main_params(optimizer), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then take the new weights into the average."""
        super().optimizer_step(*args, **kwargs)
        self.update_average()

    def update_average(self) -> None:
        """Take the present weights into the average, where there is one."""
        if self.average is not None:
            self.average.update(self._averaged_source())

    def key(self) -> Key:
        """What the draws of the present batch are keyed by."""
        return Key(
            self.seed,
            self.steps_done,
            self.micro_batch,
            self.global_rank,
            self._world_size,
            self.accum_batches,
        )

    def validation_key(self, batch_idx: int) -> Key:
        """What the draws of a validation batch are keyed by: the same in every validation."""
        return Key(self.seed, f"validation {batch_idx}", 0, self.global_rank, self._world_size)

    @property
    def _world_size(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def count(self) -> None:
        """A batch is done: one more, and where it completes a step that too."""
        self.batches_done += 1
        self.micro_batch += 1
        if self.micro_batch == self.accum_batches:
            self.micro_batch = 0
            self.steps_done += 1

    def note(self, name: str, value: Tensor) -> None:
        """Keep a scalar for the log, where the mean since the last report goes; it stays on the device."""
        self._noted.setdefault(name, []).append(value.detach())

    def take_metrics(self) -> dict[str, float]:
        """What was noted, and the learning rate, over all ranks and the steps since the last call."""
        strategy = self.trainer.strategy
        metrics = {
            name: float(strategy.reduce(torch.stack(values).mean())) for name, values in self._noted.items()
        }
        self._noted.clear()
        metrics["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        return metrics

    def note_validation(self, losses: Mapping[str, Tensor], items: int) -> None:
        """Keep the means of a validation batch of ``items``, by name; the names are those of every batch."""
        self._validation.append((dict(losses), items))

    def take_validation(self) -> dict[str, float]:
        """What validation found, over all items and ranks; empty if nothing was run."""
        if not self._validation:
            return {}
        names = list(self._validation[0][0])
        rows = [torch.stack([losses[name] for name in names]) * items for losses, items in self._validation]
        sums = torch.stack(rows).sum(dim=0)
        count = sums.new_tensor([float(sum(items for _, items in self._validation))])
        self._validation.clear()
        *totals, items = self.trainer.strategy.reduce(torch.cat([sums, count]), reduce_op="sum").tolist()
        return {name: total / items for name, total in zip(names, totals, strict=True)}

    def on_train_start(self) -> None:
        """Train in training mode: a published model comes in evaluation mode, and Lightning leaves it so."""
        self.wrapped.train()
        for module in self.wrapped.modules() if self._world_size > 1 else ():
            if isinstance(module, RVQBottleneck):
                module.follow_all_ranks()

    def on_validation_start(self) -> None:
        """Have the average where the batches are."""
        self._visit.enter_context(self._average_here())

    def on_validation_end(self) -> None:
        """Let it go home."""
        self._visit.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the config, the position in the data and the facts of the run; leave out the base of a LoRA."""
        self._require_sound_weights()
        checkpoint["model_config"] = self.config.model_dump(mode="json")
        checkpoint["position"] = {"steps": self.steps_done, "batches": self.batches_done - self.micro_batch}
        checkpoint.update(self.run_facts)
        if self.lora:
            checkpoint["state_dict"] = self.saved_state()

    def _require_sound_weights(self) -> None:
        """Never save what a loss or a gradient has spoiled, nor on the other ranks what came from one.

        Raises:
            TrainingError: on all ranks, if the last loss or a weight of one of them is no finite number.
        """
        error = self.watch.judge() or self._broken_weights()
        spoiled = torch.tensor(float(error is not None), device=self.device)
        if self._world_size > 1:
            spoiled = self.trainer.strategy.reduce(spoiled, reduce_op="max")
        if spoiled:
            raise error or TrainingError(
                f"step {self.steps_done}: not saved, since the loss of another rank is no finite number;"
                " that rank says which tracks it had"
            )

    def _broken_weights(self) -> TrainingError | None:
        trained: list[Any] = [each for each in self.parameters() if each.requires_grad]
        pieces = [each.to_local() if hasattr(each, "to_local") else each for each in trained]
        if total_norm(pieces).isfinite():
            return None
        return TrainingError(
            f"step {self.steps_done}: not saved, since weights are no finite numbers any more; lower the"
            " learning rate or set --gradient-clip-val"
        )

    def saved_state(self) -> dict[str, Tensor]:
        """The weights that a checkpoint of this run holds: all of them, or the adapters of a LoRA run."""
        state: dict[str, Tensor] = self.state_dict()
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if not self.lora or name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the position in the data. A checkpoint of the public package has only its step."""
        position = checkpoint.get("position") or {"steps": checkpoint["global_step"], "batches": 0}
        self.steps_done, self.batches_done, self.micro_batch = position["steps"], position["batches"], 0

    @property
    def drops_adapters(self) -> bool:
        """Whether some adapters sit out each step."""
        return self._adapter_dropout > 0

    @property
    def _adapter_dropout(self) -> float:
        lora = getattr(self.config, "lora", None) if self.lora else None
        return 0.0 if lora is None else lora.module_dropout

    @contextmanager
    def keyed_dropout(self, key: Key) -> Iterator[None]:
        """Key what layers draw from the global generator, and which adapters sit this step out."""
        devices = [self.device] if self.device.type == "cuda" else []
        chance = self._adapter_dropout
        # adapters sit out a whole step, on every rank
        step = ("module dropout", key.seed, key.step)
        adapters = dropped_adapters(self.wrapped, chance, *step) if chance else nullcontext()
        with torch.random.fork_rng(devices=devices), adapters:
            first = key.slots(1).start
            torch.manual_seed(seeds.derive_seed("layer dropout", key.seed, key.step, first))
            yield

    def require_finite(
        self, loss: Tensor, infos: Sequence[dict[str, Any]], per_item: Tensor | None = None
    ) -> None:
        """Stop a run whose loss is no number; see :class:`LossWatch` for when.

        Args:
            per_item: losses ``(B,)`` of the items, where they can be told apart.

        Raises:
            TrainingError: a loss is not finite; ``bad_batch`` then holds what is known.
        """
        self.watch.look(loss, infos, per_item, step=self.steps_done + 1, rank=self.global_rank)


def ours(module: pl.LightningModule) -> ModelTrainer:
    """``module`` by its class: Lightning hands callbacks any."""
    assert isinstance(module, ModelTrainer)
    return module


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all ``tensors`` together, a float32 scalar on their device."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))


def _put(model: nn.Module, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        setattr(model, name, part)
