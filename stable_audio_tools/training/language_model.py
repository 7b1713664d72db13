"""The trainer of language models over the tokens of a codec."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.data.latent_files import latent_mask
from stable_audio_tools.errors import DataError
from stable_audio_tools.models.language_model.loss import cross_entropy
from stable_audio_tools.models.language_model.wrapper import AudioLanguageModelWrapper
from stable_audio_tools.schema.model import LanguageModelModelConfig
from stable_audio_tools.schema.training import LanguageModelTrainingConfig
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.ema import EMA
from stable_audio_tools.training.module import Batch, ModelTrainer

AVERAGE_BETA = 0.999
"""The public average follows every tenth step with 0.99: the same memory."""


class LanguageModelTrainer(ModelTrainer):
    """Trains a language model to continue codes, one cross-entropy for each codebook (Copet et al. 2023).

    Codes come from the frozen codec, or stored, where the config says ``pre_encoded``. What is padding does
    not count. Guidance dropout is drawn by key.

    Attributes:
        model: the language model, with conditioners and codec.
        model_ema: the average of its network, or None where the config turns it off.
    """

    holder = "model"
    role = "lm"
    average_beta = AVERAGE_BETA

    model: AudioLanguageModelWrapper
    model_ema: EMA | None
    options: LanguageModelTrainingConfig

    def __init__(
        self, model: AudioLanguageModelWrapper, config: LanguageModelModelConfig, **options: Any
    ) -> None:
        super().__init__(model, config, **options)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross-entropy of one batch.

        Raises:
            TrainingError: a loss is not finite; see :class:`LossWatch` for when.
        """
        key = self.key()
        with self.keyed_dropout(key):
            loss, per_codebook = self._loss(self.model, batch, self.options.cfg_dropout_prob, key)
        self.require_finite(loss, batch[1])
        self.note("train/loss", loss)
        for index, value in enumerate(per_codebook, start=1):
            self.note(f"train/cross_entropy_q{index}", value)
        self.count()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The cross-entropy of the averaged model, without guidance dropout."""
        with self.averaged() as model:
            loss, per_codebook = self._loss(model, batch, 0.0, self.validation_key(batch_idx))
        by_codebook = {
            f"val/cross_entropy_q{index}": value for index, value in enumerate(per_codebook, start=1)
        }
        self.note_validation({"val/loss": loss, **by_codebook}, len(batch[1]))

    def take_metrics(self) -> dict[str, float]:
        """Loss, cross-entropy by codebook, perplexity and learning rate, since the last call."""
        metrics = super().take_metrics()
        if "train/loss" in metrics:
            metrics["train/perplexity"] = torch.tensor(metrics["train/loss"]).exp().item()
        return metrics

    def tokenize(self, audio: Tensor) -> Tensor:
        """Codes ``(B, Q, L)`` of a batch of audio; what comes in is taken as it is where it is codes already.

        Raises:
            DataError: stored codes have another shape than the codec makes.
        """
        if not self.options.pre_encoded:
            with torch.no_grad():
                return self.model.pretransform.tokenize(audio)
        if audio.ndim != 3 or audio.shape[1] != self.model.num_quantizers:
            raise DataError(
                f"stored codes have the shape {tuple(audio.shape)}, expected"
                f" (batch, {self.model.num_quantizers}, length); encode them with this model's codec"
            )
        return audio.long()

    def _loss(
        self, model: AudioLanguageModelWrapper, batch: Batch, dropout: float, key: Key
    ) -> tuple[Tensor, Tensor]:
        audio, infos = batch
        codes = self.tokenize(audio)
        tensors = None if model.conditioner is None else model.conditioner(infos, self.device)
        output = model.compute_logits(
            codes, tensors, cfg_dropout_prob=dropout, generator=key.each("cfg dropout", len(infos))
        )
        mask = output.mask
        if all("padding_mask" in info for info in infos):
            masks = torch.stack([torch.as_tensor(info["padding_mask"]) for info in infos]).to(codes.device)
            mask = mask & latent_mask(masks, codes.shape[-1]).bool()[:, None]
        return cross_entropy(output.logits, codes, mask)
