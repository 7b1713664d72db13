"""Text or audio through a branch of a CLAP (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stable_audio_tools.models.clap import Clap, clap_widths, load_clap
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    Surroundings,
    each,
    on_device,
    single_token,
    to_audio,
    to_text,
)
from stable_audio_tools.schema.conditioning import CLAPAudioConfig, CLAPTextConfig

_TEXT_LENGTH = 77
"""Tokens of a text, as LAION's own code has it."""


class _CLAPConditioner(Conditioner):
    """One branch of a CLAP.

    A frozen one is read on first use and is no part of the state dict. With ``finetune`` it is read at once,
    kept as the submodule ``model``, trained (without dropout) and saved with the rest. Both compute in
    float32.
    """

    branch: Any
    config: CLAPTextConfig | CLAPAudioConfig

    def _read_now_if_trained(self) -> None:
        self._clap: Clap | None = None  # no module, so a frozen one stays out of the state dict
        if self.config.finetune:
            self._clap = self._read()
            self.model: nn.Module = self._clap.model.requires_grad_(True)

    def train(self, mode: bool = True) -> _CLAPConditioner:
        """Follow the parent, but for the CLAP: the public code trains it without dropout."""
        super().train(mode)
        if self.config.finetune:
            self.model.eval()
        return self

    def _read(self) -> Clap:
        return load_clap(self.config.clap_ckpt_path).keep_only(self.branch)

    def _loaded(self, device: torch.device) -> Clap:
        """The CLAP, on ``device`` where it is frozen; a trained one moves with the model that holds it."""
        if self._clap is None:
            with torch.inference_mode(False):  # the first use may be a validation step
                self._clap = self._read()
                self._clap.model.requires_grad_(False)
        if not self.config.finetune and not on_device(self._clap.model, device):
            self._clap.model.to(device)
        return self._clap

    def _without_gradients_unless_trained(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(self.config.finetune and torch.is_grad_enabled())


class CLAPTextConditioner(_CLAPConditioner):
    """A text as its CLAP embedding, one token, or as the features of a layer, one for each of 77 tokens.

    Features of padding are kept, as in the public code, unless ``padding_mode`` says otherwise.
    """

    branch = "text"

    def __init__(self, config: CLAPTextConfig, output_dim: int) -> None:
        features, embedding = clap_widths(config.clap_ckpt_path)
        dim = features if config.use_text_features else embedding
        padding = config.padding_mode if config.use_text_features else "none"
        super().__init__(dim, output_dim, config.project_out, padding)
        self.config: CLAPTextConfig = config
        self._read_now_if_trained()

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, 1, D)``, or features ``(B, 77, D)``, of texts, and their mask.

        Raises:
            DataError: a text is not a string.
            CheckpointError: the CLAP cannot be found or read.
            ConfigError: it has no layer ``feature_layer_ix``.
        """
        texts = each(values, to_text)
        clap = self._loaded(torch.device(device))
        length = min(_TEXT_LENGTH, clap.max_text_length)
        with (
            self._without_gradients_unless_trained(),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            if not self.config.use_text_features:
                found = clap.embed_text(texts, length)
            else:
                found, mask = clap.text_features(texts, self.config.feature_layer_ix, length)
        if not self.config.use_text_features:
            return single_token(self.project(found))
        return self.fill_padding(self.project(found), mask), mask

    def _read(self) -> Clap:
        clap = super()._read()
        if self.config.use_text_features:  # which leave the end of the branch unused
            clap.model.text_model.pooler = None
            del clap.model.text_projection
        return clap


class CLAPAudioConditioner(_CLAPConditioner):
    """Audio as its CLAP embedding, one token.

    It is mixed to mono and resampled to what the CLAP hears, 48 kHz. The public code forgets to resample, and
    cannot build this conditioner at all.
    """

    branch = "audio"

    def __init__(self, config: CLAPAudioConfig, output_dim: int, surroundings: Surroundings) -> None:
        super().__init__(clap_widths(config.clap_ckpt_path)[1], output_dim, config.project_out)
        self.config: CLAPAudioConfig = config
        self.sample_rate = surroundings.sample_rate
        self._read_now_if_trained()

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, 1, D)`` of audio ``(C, T)`` each at the model's sample rate, and their mask.

        Raises:
            DataError: a value is not audio.
            CheckpointError: the CLAP cannot be found or read.
        """
        clips = each(values, to_audio)
        clap = self._loaded(torch.device(device))
        with (
            self._without_gradients_unless_trained(),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            found = clap.embed_audio(clips, self.sample_rate or clap.sample_rate)
        return single_token(self.project(found))
