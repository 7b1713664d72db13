"""The trainers of diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.data.latent_files import latent_mask
from stable_audio_tools.diffusion.timesteps import sample_timesteps
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.runtime.device import send
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.loss import BandedLoss, DiffusionLoss, diffusion_loss
from stable_audio_tools.training.module import Batch, ModelTrainer


class DiffusionTrainer(ModelTrainer):
    """Trains a network to take noise away from latents, or from audio where there is no pretransform.

    Drawn by key are VAE noise, timesteps, noise, and what a subclass draws for its conditioning.

    Attributes:
        diffusion: the model, with its pretransform.
        diffusion_ema: the average of ``diffusion.model``, or None where the config or LoRA turns it off.
    """

    holder = "diffusion"
    role = "diffusion"

    diffusion: Any
    diffusion_ema: EMA | None

    def __init__(self, model: nn.Module, config: Any, **options: Any) -> None:
        super().__init__(model, config, **options)
        self._bands = BandedLoss()

    @property
    def online_network(self) -> nn.Module:
        """The network that is trained."""
        network: nn.Module = self.diffusion.model
        return network

    @property
    def averaged_network(self) -> nn.Module:
        """The network that is exported and sampled from: the average where there is one."""
        network: nn.Module = (
            self.diffusion.model if self.diffusion_ema is None else self.diffusion_ema.ema_model
        )
        return network

    def averaged_parts(self) -> dict[str, nn.Module]:
        """The network."""
        return {"model": self.averaged_network}

    def _averaged_source(self) -> nn.Module:
        """The network itself, without a name of its own in the keys."""
        network: nn.Module = self.wrapped.model
        return network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            TrainingError: a loss is not finite; see :class:`LossWatch` for when.
        """
        audio, infos = batch
        key = self.key()
        latents = self.encode(audio, key)
        timesteps = self._timesteps(latents, key)
        noise = key.normal("noise", latents.shape, latents.device, latents.dtype)
        with self.keyed_dropout(key):
            conditioning = self.conditioning(infos, latents, key) | self.guidance_dropout(key, len(latents))
            mask = None if self._ignores_padding(key) else self._mask(infos, latents)
            loss = self._loss(self.online_network, latents, noise, timesteps, conditioning, mask)
            total = self.total_loss(loss, latents, noise, timesteps, audio)
        self.require_finite(total, infos, loss.per_item)
        self._bands.add(loss.per_item, timesteps)
        self.note("train/loss", total)
        self.count()
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of the averaged network at fixed timesteps, with the same noise every time."""
        audio, infos = batch
        key = self.validation_key(batch_idx)
        latents = self.encode(audio, key)
        noise = key.normal("noise", latents.shape, latents.device, latents.dtype)
        conditioning = self.conditioning(infos, latents, key)
        mask = self._mask(infos, latents)
        losses = {}
        for t in self.options.validation_timesteps:
            timesteps = torch.full((len(latents),), t, device=latents.device)
            loss = self._loss(self.averaged_network, latents, noise, timesteps, conditioning, mask)
            losses[f"val/loss_t{t:.2f}"] = loss.mean
        self.note_validation(losses, len(latents))

    def conditioning(self, infos: Sequence[dict[str, Any]], latents: Tensor, key: Key) -> dict[str, Any]:
        """The network's inputs besides ``x`` and ``t`` for a batch's metadata: none, unless overridden."""
        return {}

    def guidance_dropout(self, key: Key, items: int) -> dict[str, Any]:
        """What makes the network leave out its conditioning now and then: nothing, unless overridden."""
        return {}

    def total_loss(
        self, loss: DiffusionLoss, latents: Tensor, noise: Tensor, timesteps: Tensor, audio: Tensor
    ) -> Tensor:
        """The scalar to minimise: the diffusion loss, unless a subclass adds to it."""
        return loss.mean

    def encode(self, audio: Tensor, key: Key) -> Tensor:
        """Latents of a batch of audio, or of stored latents where the config says ``pre_encoded``."""
        pretransform = self.wrapped.pretransform
        if pretransform is None:
            return audio
        draws = key.each("vae", len(audio))
        latents: Tensor
        if self.options.pre_encoded:
            latents = pretransform.read_stored(audio, draws)
            return latents
        with torch.set_grad_enabled(pretransform.enable_grad and torch.is_grad_enabled()):
            latents = pretransform.encode(audio, generator=draws)
        return latents

    def take_metrics(self) -> dict[str, float]:
        """Loss, loss by timestep band and learning rate, over all ranks and the steps since the last call."""
        metrics = super().take_metrics()
        rate = metrics.pop("train/lr")
        sums = self._bands.take()
        if sums is not None:
            reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
            for band, (total, count) in enumerate(reduced.T.tolist()):
                if count:
                    metrics[self._bands.name(band)] = total / count
        return metrics | {"train/lr": rate}

    def take_validation(self) -> dict[str, float]:
        """Validation loss and that of each timestep, over all items and ranks; empty if nothing was run."""
        by_time = super().take_validation()
        return {"val/loss": sum(by_time.values()) / len(by_time)} | by_time if by_time else {}

    def _timesteps(self, latents: Tensor, key: Key) -> Tensor:
        """Timesteps ``(B,)`` by the config's law, shifted by length where the model asks for it.

        They are drawn for the whole global batch, which a law may spread evenly, and these items take theirs.
        """
        drawn = sample_timesteps(
            self.options.timestep_sampler,
            key.global_items(len(latents)),
            generator=key.whole("timesteps"),
            options=self.options.timestep_sampler_options,
        )
        slots = key.slots(len(latents))
        timesteps = send(drawn[slots.start : slots.stop], latents.device)
        shift = getattr(self.wrapped, "dist_shift", None)
        return timesteps if shift is None else shift.shift(timesteps, latents.shape[-1])

    def _loss(
        self,
        network: nn.Module,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: dict[str, Any],
        mask: Tensor | None,
    ) -> DiffusionLoss:
        objective = self.wrapped.diffusion_objective
        return diffusion_loss(network, latents, noise, timesteps, conditioning, objective, mask)

    def padding(self, infos: Sequence[dict[str, Any]], latents: Tensor) -> Tensor:
        """The padding mask ``(B, L)`` of latents: 1 where there is audio."""
        masks = torch.stack([torch.as_tensor(info["padding_mask"]) for info in infos])
        return send(latent_mask(masks, latents.shape[-1]), latents.device)

    def _mask(self, infos: Sequence[dict[str, Any]], latents: Tensor) -> Tensor | None:
        """:meth:`padding` for the loss, or None where the config does not ask for it."""
        return self.padding(infos, latents) if self.options.mask_padding else None

    def _ignores_padding(self, key: Key) -> bool:
        """Whether this is one of the steps that ``mask_padding_dropout`` trains without the mask."""
        chance = torch.rand((), generator=key.whole("mask dropout")).item()
        return chance < self.options.mask_padding_dropout


class DiffusionUncondTrainer(DiffusionTrainer):
    """Trains a diffusion model that makes audio from noise alone."""


class DiffusionCondTrainer(DiffusionTrainer):
    """Trains a conditional diffusion model and its conditioners; guidance dropout is drawn by key too."""

    diffusion: ConditionedDiffusionModelWrapper

    def conditioning(self, infos: Sequence[dict[str, Any]], latents: Tensor, key: Key) -> dict[str, Any]:
        """The network's conditioning inputs for the metadata of a batch."""
        return self.diffusion.get_conditioning_inputs(self.diffusion.conditioner(infos, self.device))

    def guidance_dropout(self, key: Key, items: int) -> dict[str, Any]:
        """How often a sample's conditioning is left out, and the generators that decide."""
        return {
            "cfg_dropout_prob": self.options.cfg_dropout_prob,
            "generator": key.each("cfg dropout", items),
        }
