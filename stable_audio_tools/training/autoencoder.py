"""The trainer of autoencoders, with an adversary where the config has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.bottlenecks.base import draw_uniform
from stable_audio_tools.models.bottlenecks.losses import weighted_losses
from stable_audio_tools.models.discriminators import create_discriminator
from stable_audio_tools.runtime import seeds
from stable_audio_tools.schema.model import AutoencoderModelConfig
from stable_audio_tools.schema.training import AutoencoderTrainingConfig
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.module import Batch, ModelTrainer
from stable_audio_tools.training.reconstruction import Metrics, ReconstructionLoss, loss_name, require_length


class AutoencoderTrainer(ModelTrainer):
    """Trains an autoencoder on reconstruction, and against an adversary (Defossez et al. 2022).

    Steps alternate: even ones train the autoencoder, odd ones the adversary, each with its own optimizer and
    schedule; a step is one of either. The autoencoder meets its adversary after ``warmup_steps``; until then
    the adversary learns on its own turns in the mode ``adv``, and has none in the mode ``full``.

    Drawn by key are the noise of the bottleneck and the latents that ``latent_mask_ratio`` sets to zero.

    Attributes:
        autoencoder: the model.
        autoencoder_ema: its average, or None where the config turns it off.
        discriminator: the adversary, or None where the config has none.
    """

    holder = "autoencoder"
    role = "autoencoder"

    autoencoder: AudioAutoencoder
    autoencoder_ema: EMA | None
    options: AutoencoderTrainingConfig

    def __init__(self, model: AudioAutoencoder, config: AutoencoderModelConfig, **options: Any) -> None:
        super().__init__(model, config, **options)
        # two optimizers take turns, which Lightning leaves to the module
        self.automatic_optimization = False
        losses = self.options.loss_configs
        self.discriminator = None
        if losses.discriminator is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.derive_seed("init discriminator", self.seed))
                self.discriminator = create_discriminator(losses.discriminator, model.out_channels)
            key = "training.loss_configs.discriminator.config"
            require_length(config.sample_size, self.discriminator.min_length, key)
        self.reconstruction = ReconstructionLoss(losses, config.sample_rate, config.sample_size)
        metrics = self.options.eval_loss_configs
        self.metrics = None if metrics is None else Metrics(metrics, config.sample_rate, config.sample_size)

    @property
    def warmed_up(self) -> bool:
        """Whether the autoencoder meets its adversary by now."""
        return self.steps_done >= self.options.warmup_steps

    @property
    def adversary_s_turn(self) -> bool:
        """Whether the present step trains the adversary."""
        learns = self.warmed_up or self.options.warmup_mode == "adv"
        return self.discriminator is not None and learns and self.steps_done % 2 == 1

    def configure_optimizers(self) -> Any:
        """The optimizer of the autoencoder, and that of the adversary where there is one."""
        configured = [self.optimizer_of("autoencoder", self.autoencoder.parameters())]
        if self.discriminator is not None:
            configured.append(self.optimizer_of("discriminator", self.discriminator.parameters()))
        return [each if isinstance(each, dict) else {"optimizer": each} for each in configured]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train the side whose turn it is on one batch.

        Raises:
            TrainingError: a loss is not finite; see :class:`LossWatch` for when.
        """
        audio, infos = batch
        key, adversary = self.key(), self.adversary_s_turn
        with self.keyed_dropout(key):
            losses = self._adversary_losses(audio, key) if adversary else self._own_losses(audio, key)
        loss = torch.stack(list(losses.values())).sum()
        self.require_finite(loss, infos)
        for name, value in losses.items():
            self.note(f"train/{name}", value)
        if not adversary:
            self.note("train/loss", loss)
        self._descend(loss, int(adversary))
        self.count()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The reconstruction loss of the averaged model, and the metrics of ``eval_loss_configs``."""
        audio, _ = batch
        key = self.validation_key(batch_idx)
        with self.averaged() as model:
            latents = model.encode(self.heard(audio), generator=key.each("vae", len(audio)))
            made = model.decode(latents)
        made, audio = cut_alike(made, audio)
        losses = {f"val/{name}": value for name, value in self.reconstruction(made, audio).items()}
        found = {} if self.metrics is None else self.metrics(made, audio)
        total = torch.stack(list(losses.values())).sum()
        self.note_validation(
            {"val/loss": total, **losses, **{f"val/{name}": value for name, value in found.items()}},
            len(audio),
        )

    def take_metrics(self) -> dict[str, float]:
        """The losses and both learning rates, over all ranks and the steps since the last call."""
        metrics = super().take_metrics()
        if self.discriminator is not None:
            metrics["train/disc_lr"] = self.trainer.optimizers[1].param_groups[0]["lr"]
        return metrics

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which by now is unscaled, to the stricter of the two limits."""
        limits = [limit for limit in (self.options.clip_grad_norm, self.gradient_clip_val) if limit > 0]
        if limits:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, min(limits))

    def _own_losses(self, audio: Tensor, key: Key) -> dict[str, Tensor]:
        """Weighted losses of the autoencoder, by name."""
        latents, info = self._encode(audio, key)
        made, audio = cut_alike(self.autoencoder.decode(self._masked(latents, key)), audio)
        rounds = 1 + self.steps_done // 2 if self.discriminator is not None else 1 + self.steps_done
        losses = self.reconstruction(made, audio, rounds)
        for name, value in weighted_losses(info, self.options.loss_configs.bottleneck.weights).items():
            losses[loss_name(name)] = value
        wanted = self.options.loss_configs.discriminator
        if self.discriminator is not None and wanted is not None and self.warmed_up:
            with _frozen(self.discriminator):
                found = self.discriminator(audio, made)
            losses["loss_adv"] = wanted.weights.adversarial * found.adversarial
            losses["feature_matching"] = wanted.weights.feature_matching * found.feature_matching
        return losses

    def _adversary_losses(self, audio: Tensor, key: Key) -> dict[str, Tensor]:
        """The loss of the adversary on what the autoencoder makes at present."""
        assert self.discriminator is not None
        with torch.no_grad():
            latents, _ = self._encode(audio, key)
            made, audio = cut_alike(self.autoencoder.decode(self._masked(latents, key)), audio)
        return {"discriminator_loss": self.discriminator(audio, made).discriminator}

    def _encode(self, audio: Tensor, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        frozen = self.options.encoder_freeze_on_warmup and self.warmed_up
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            encoded: tuple[Tensor, dict[str, Tensor]] = self.autoencoder.encode(
                self.heard(audio), return_info=True, generator=key.each("vae", len(audio))
            )
        return encoded

    def heard(self, audio: Tensor) -> Tensor:
        """What the encoder gets."""
        return audio.mean(dim=1, keepdim=True) if self.options.force_input_mono else audio

    def _masked(self, latents: Tensor, key: Key) -> Tensor:
        """``latents`` with the share of ``latent_mask_ratio`` set to zero."""
        ratio = self.options.latent_mask_ratio
        if not ratio:
            return latents
        draws = draw_uniform(latents.detach().float(), key.each("latent mask", len(latents)))
        return latents.masked_fill(draws < ratio, 0.0)

    def _descend(self, loss: Tensor, side: int) -> None:
        """Add the gradient of ``loss``; where the step is complete, let the optimizer of ``side`` step."""
        optimizers = self.optimizers(use_pl_optimizer=True)
        optimizer = optimizers[side] if isinstance(optimizers, list) else optimizers
        if self.micro_batch == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / self.accum_batches)
        if self.micro_batch + 1 < self.accum_batches:
            return
        optimizer.step()
        for configured in self.trainer.lr_scheduler_configs:
            schedule: Any = configured.scheduler
            if schedule.optimizer is optimizer.optimizer:
                schedule.step()
        if side == 0:
            self.update_average()


def cut_alike(made: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Both signals ``(B, C, T)``, cut to the shorter: what is decoded is a whole number of latents long."""
    length = min(made.shape[-1], audio.shape[-1])
    return made[..., :length], audio[..., :length]


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients through ``network``, and none into it."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
