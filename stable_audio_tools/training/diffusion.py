"""The Lightning module that trains a conditional latent diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.diffusion.timesteps import sample_timesteps
from stable_audio_tools.errors import TrainingError
from stable_audio_tools.models.adapters.lora import dropped_adapters
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.runtime import seeds
from stable_audio_tools.schema.model import DiffusionCondModelConfig
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.loss import (
    BandedLoss,
    DiffusionLoss,
    diffusion_loss,
    latent_mask,
)
from stable_audio_tools.training.optimizers import build_optimizer, build_scheduler, optimizer_pair

Batch = tuple[Tensor, Sequence[dict[str, Any]]]


class DiffusionCondTrainer(pl.LightningModule):
    """Trains ``diffusion.model`` and its conditioners on batches ``(audio (B, C, T), infos)``.

    Every draw of a batch (crop aside, which the loader keys) comes from ``(seed, step, micro-batch, rank)``:
    VAE noise, timesteps, noise, guidance dropout, and the dropout of layers, for which the global generator
    is set aside during the forward pass. A run that goes on from a checkpoint therefore draws what the
    unbroken run would have drawn.

    Attributes:
        diffusion: the model, with conditioners and pretransform.
        diffusion_ema: the average of ``diffusion.model``, or None where the config or LoRA turns it off.
        steps_done: optimizer steps so far.
        micro_batch: batches since the last optimizer step.
        batches_done: batches so far on each rank: the position in the data.
        bad_batch: what is known about a batch whose loss was not finite.
        run_facts: what each checkpoint records about the run besides its model config.
    """

    def __init__(
        self,
        model: ConditionedDiffusionModelWrapper,
        config: DiffusionCondModelConfig,
        *,
        seed: int = 42,
        accum_batches: int = 1,
        lora: bool = False,
    ) -> None:
        super().__init__()
        self.diffusion = model
        self.config = config
        self.options = config.training
        self.lora = lora
        # adapters are few and trained for few steps: an average of them would only lag behind
        self.diffusion_ema = EMA(model.model) if self.options.use_ema and not lora else None
        self.seed = seed
        self.accum_batches = accum_batches
        self.steps_done = 0
        self.micro_batch = 0
        self.batches_done = 0
        self.bad_batch: dict[str, Any] | None = None
        self.run_facts: dict[str, Any] = {}
        self._losses: list[Tensor] = []
        self._bands = BandedLoss()
        self._validation: list[tuple[Tensor, int]] = []
        # a LoRA checkpoint holds the adapters only; a run checks first that none of them is missing
        self.strict_loading = not lora

    @property
    def averaged_network(self) -> nn.Module:
        """The network that is exported and sampled from: the average where there is one."""
        return self.diffusion.model if self.diffusion_ema is None else self.diffusion_ema.ema_model

    @contextmanager
    def averaged(self) -> Iterator[ConditionedDiffusionModelWrapper]:
        """The model with the averaged network in it, in evaluation mode, for as long as the block lasts."""
        online, training = self.diffusion.model, self.diffusion.training
        self.diffusion.model = self.averaged_network
        self.diffusion.eval()
        try:
            yield self.diffusion
        finally:
            self.diffusion.model = online
            self.diffusion.train(training)

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule of the config over everything that is trained."""
        rate = self.config.lora.lr if self.lora and self.config.lora else None
        pair = optimizer_pair(self.options, rate)
        trained = [parameter for parameter in self.diffusion.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(pair.optimizer, trained)
        if pair.scheduler is None:
            return optimizer
        scheduler = build_scheduler(pair.scheduler, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            TrainingError: the loss is not finite; no weight has been touched by this batch.
        """
        audio, infos = batch
        key = (self.seed, self.steps_done, self.micro_batch, self.global_rank)
        latents = self.encode(audio, key)
        timesteps = self._timesteps(latents, key)
        noise = keyed_noise(latents.shape, "noise", *key, device=latents.device, dtype=latents.dtype)
        with self._keyed_dropout(key):
            conditioning = self._conditioning(infos) | {
                "cfg_dropout_prob": self.options.cfg_dropout_prob,
                "generator": seeds.generator("cfg dropout", *key),
            }
            mask = None if self._ignores_padding(key) else self._mask(infos, latents)
            loss = self._loss(self.diffusion.model, latents, noise, timesteps, conditioning, mask)
        if not torch.isfinite(loss.mean):
            raise self._not_finite(loss, infos)
        self._bands.add(loss.per_item, timesteps)
        self._losses.append(loss.mean.detach())
        self._count()
        return loss.mean

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then take the new weights into the average."""
        super().optimizer_step(*args, **kwargs)
        if self.diffusion_ema is not None:
            self.diffusion_ema.update(self.diffusion.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of the averaged network at fixed timesteps, with the same noise every time."""
        audio, infos = batch
        key = (self.seed, "validation", batch_idx, self.global_rank)
        latents = self.encode(audio, key)
        noise = keyed_noise(latents.shape, "noise", *key, device=latents.device, dtype=latents.dtype)
        conditioning = self._conditioning(infos)
        mask = self._mask(infos, latents)
        losses = []
        for t in self.options.validation_timesteps:
            timesteps = torch.full((len(latents),), t, device=latents.device)
            losses.append(
                self._loss(self.averaged_network, latents, noise, timesteps, conditioning, mask).mean
            )
        self._validation.append((torch.stack(losses), len(latents)))

    def encode(self, audio: Tensor, key: tuple[int | str, ...]) -> Tensor:
        """Latents of a batch of audio; what comes in is taken as it is where it is latents already."""
        pretransform = self.diffusion.pretransform
        if pretransform is None:
            return audio
        if self.options.pre_encoded:
            return audio / pretransform.scale
        with torch.set_grad_enabled(pretransform.enable_grad and torch.is_grad_enabled()):
            return pretransform.encode(audio, generator=seeds.generator("vae", *key))

    def take_metrics(self) -> dict[str, float]:
        """Loss, loss by timestep band and learning rate, over all ranks and the steps since the last call."""
        strategy = self.trainer.strategy
        metrics: dict[str, float] = {}
        if self._losses:
            metrics["train/loss"] = float(strategy.reduce(torch.stack(self._losses).mean()))
            self._losses.clear()
        sums = self._bands.take()
        if sums is not None:
            for band, (total, count) in enumerate(strategy.reduce(sums, reduce_op="sum").T.tolist()):
                if count:
                    metrics[self._bands.name(band)] = total / count
        metrics["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        return metrics

    def take_validation(self) -> dict[str, float]:
        """Validation loss and that of each timestep, over all items and ranks; empty if nothing was run."""
        if not self._validation:
            return {}
        sums = torch.stack([losses * items for losses, items in self._validation]).sum(dim=0)
        count = sums.new_tensor([float(sum(items for _, items in self._validation))])
        self._validation.clear()
        *totals, items = self.trainer.strategy.reduce(torch.cat([sums, count]), reduce_op="sum").tolist()
        by_time = dict(
            zip(self.options.validation_timesteps, [total / items for total in totals], strict=True)
        )
        metrics = {"val/loss": sum(by_time.values()) / len(by_time)}
        return metrics | {f"val/loss_t{t:.2f}": value for t, value in by_time.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the config, the position in the data and the facts of the run; leave out the base of a LoRA."""
        checkpoint["model_config"] = self.config.model_dump(mode="json")
        checkpoint["position"] = {"steps": self.steps_done, "batches": self.batches_done}
        checkpoint.update(self.run_facts)
        if self.lora:
            checkpoint["state_dict"] = self.saved_state()

    def saved_state(self) -> dict[str, Tensor]:
        """The weights that a checkpoint of this run holds: all of them, or the adapters of a LoRA run."""
        state: dict[str, Tensor] = self.state_dict()
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if not self.lora or name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the position in the data. A checkpoint of the public package has only its step."""
        position = checkpoint.get("position") or {"steps": checkpoint["global_step"], "batches": 0}
        self.steps_done, self.batches_done, self.micro_batch = position["steps"], position["batches"], 0

    def _count(self) -> None:
        self.batches_done += 1
        self.micro_batch += 1
        if self.micro_batch == self.accum_batches:
            self.micro_batch = 0
            self.steps_done += 1

    def _timesteps(self, latents: Tensor, key: tuple[int | str, ...]) -> Tensor:
        """Timesteps ``(B,)`` by the config's law, shifted by length where the model asks for it."""
        timesteps = sample_timesteps(
            self.options.timestep_sampler,
            len(latents),
            generator=seeds.generator("timesteps", *key),
            device=latents.device,
            options=self.options.timestep_sampler_options,
        )
        shift = self.diffusion.dist_shift
        return timesteps if shift is None else shift.shift(timesteps, latents.shape[-1])

    def _conditioning(self, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The network's conditioning inputs for the metadata of a batch."""
        return self.diffusion.get_conditioning_inputs(self.diffusion.conditioner(infos, self.device))

    def _loss(
        self,
        network: nn.Module,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: dict[str, Any],
        mask: Tensor | None,
    ) -> DiffusionLoss:
        objective = self.diffusion.diffusion_objective
        return diffusion_loss(network, latents, noise, timesteps, conditioning, objective, mask)

    def _mask(self, infos: Sequence[dict[str, Any]], latents: Tensor) -> Tensor | None:
        """The padding mask ``(B, L)`` of latents, or None where the config does not ask for it."""
        if not self.options.mask_padding:
            return None
        masks = torch.stack([torch.as_tensor(info["padding_mask"]) for info in infos]).to(latents.device)
        return latent_mask(masks, latents.shape[-1])

    def _ignores_padding(self, key: tuple[int | str, ...]) -> bool:
        """Whether this is one of the steps that ``mask_padding_dropout`` trains without the mask."""
        chance = torch.rand((), generator=seeds.generator("mask dropout", *key)).item()
        return chance < self.options.mask_padding_dropout

    @contextmanager
    def _keyed_dropout(self, key: tuple[int | str, ...]) -> Iterator[None]:
        """Key what layers draw from the global generator, and which adapters sit this step out."""
        devices = [self.device] if self.device.type == "cuda" else []
        chance = self.config.lora.module_dropout if self.lora and self.config.lora else 0.0
        adapters = (
            dropped_adapters(self.diffusion, chance, "module dropout", *key) if chance else nullcontext()
        )
        with torch.random.fork_rng(devices=devices), adapters:
            torch.manual_seed(seeds.derive_seed("layer dropout", *key))
            yield

    def _not_finite(self, loss: DiffusionLoss, infos: Sequence[dict[str, Any]]) -> TrainingError:
        tracks = [str(info.get("sample_id", info.get("path", "?"))) for info in infos]
        found, step = loss.mean.item(), self.steps_done + 1
        self.bad_batch = {
            "step": step,
            "rank": self.global_rank,
            "loss": str(found),
            "items": [
                {"track": track, "loss": str(value), "offset_seconds": info.get("offset_seconds")}
                for track, value, info in zip(tracks, loss.per_item.tolist(), infos, strict=True)
            ],
        }
        return TrainingError(
            f"step {step}: the loss is {found}, expected a finite number; tracks of this batch:"
            f" {', '.join(tracks)}; lower the learning rate, set --gradient-clip-val or exclude a file"
        )
