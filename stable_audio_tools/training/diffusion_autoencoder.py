"""The trainer of autoencoders that decode by diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.objectives import get_objective
from stable_audio_tools.models.autoencoders.diffusion import DiffusionAutoencoder
from stable_audio_tools.models.bottlenecks.losses import weighted_losses
from stable_audio_tools.schema.losses import default_losses
from stable_audio_tools.schema.model import DiffusionAutoencoderModelConfig
from stable_audio_tools.schema.training import DiffusionAutoencoderTrainingConfig
from stable_audio_tools.training.diffusion import DiffusionTrainer
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.loss import DiffusionLoss
from stable_audio_tools.training.module import Batch, ModelTrainer
from stable_audio_tools.training.reconstruction import loss_name, require_length
from stable_audio_tools.training.spectral_losses import MultiResolutionSTFTLoss

RECONSTRUCTION_WEIGHT = 0.1
"""What the spectral distance counts beside the diffusion loss, as in the public code."""


class DiffusionAutoencoderTrainer(DiffusionTrainer):
    """Trains encoder, bottleneck, decoder and diffusion network together (Preechakul et al. 2021).

    The network takes noise away from the audio, or from what the pretransform makes of it, and is told of
    the latents of the same audio. What the bottleneck reports is added by its weight, and with
    ``use_reconstruction_loss`` the spectral distance of the audio that the network's answer stands for.

    Attributes:
        diffae: the model.
        diffae_ema: its average, or None where the config turns it off.
    """

    holder = "diffae"
    role = "diffusion"

    diffae: DiffusionAutoencoder
    diffae_ema: EMA | None
    options: DiffusionAutoencoderTrainingConfig

    def __init__(
        self, model: DiffusionAutoencoder, config: DiffusionAutoencoderModelConfig, **options: Any
    ) -> None:
        super().__init__(model, config, **options)
        self._reported: dict[str, Tensor] = {}
        self.spectral = None
        if self.options.use_reconstruction_loss:
            losses = default_losses().spectral
            assert losses is not None
            self.spectral = MultiResolutionSTFTLoss(losses.config, config.sample_rate)
            require_length(config.sample_size, self.spectral.min_length, "training.use_reconstruction_loss")

    @property
    def online_network(self) -> nn.Module:
        """The diffusion network, the averaged one within :meth:`averaged`."""
        return self.diffae.diffusion

    @property
    def averaged_network(self) -> nn.Module:
        """The same: validation swaps the whole model, since its latents are averaged with it."""
        return self.diffae.diffusion

    def averaged_parts(self) -> dict[str, nn.Module]:
        """Every part but the pretransform."""
        return ModelTrainer.averaged_parts(self)

    def _averaged_source(self) -> nn.Module:
        return ModelTrainer._averaged_source(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of the averaged model at fixed timesteps, with the same noise every time."""
        with self.averaged():
            super().validation_step(batch, batch_idx)

    def conditioning(self, infos: Sequence[dict[str, Any]], latents: Tensor, key: Key) -> dict[str, Any]:
        """The latents of the frames ``latents``, decoded and stretched to them."""
        draws = key.each("bottleneck", len(latents))
        codes, self._reported = self.diffae.encode(
            latents, return_info=True, generator=draws, skip_pretransform=True
        )
        return {"input_concat_cond": self.diffae.conditioning(codes, latents.shape[-1], draws)}

    def total_loss(
        self, loss: DiffusionLoss, latents: Tensor, noise: Tensor, timesteps: Tensor, audio: Tensor
    ) -> Tensor:
        """The diffusion loss, what the bottleneck reports, and the spectral distance if it is asked for."""
        terms = {"mse_loss": loss.mean}
        for name, value in weighted_losses(self._reported, self.options.bottleneck).items():
            terms[loss_name(name)] = value
        self._reported = {}
        if self.spectral is not None:
            rule = get_objective(self.diffae.diffusion_objective)
            noised = rule.add_noise(latents, noise, timesteps)
            clean = rule.predicted_clean(noised, loss.output.float(), timesteps)
            pretransform = self.diffae.pretransform
            made = clean if pretransform is None else pretransform.decode(clean)
            length = min(made.shape[-1], audio.shape[-1])
            distance = self.spectral(made[..., :length], audio[..., :length])["mrstft"]
            terms["mrstft_loss"] = RECONSTRUCTION_WEIGHT * distance
        for name, value in terms.items():
            self.note(f"train/{name}", value)
        return torch.stack(list(terms.values())).sum()
