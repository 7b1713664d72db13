"""A text as the tokens of a pretrained tokenizer, one learned embedding each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, each, to_text
from stable_audio_tools.nn.embeddings import AbsolutePositionalEmbedding
from stable_audio_tools.runtime.libraries import quiet_transformers, readable_errors
from stable_audio_tools.schema.conditioning import LUTConfig


class LUTConditioner(Conditioner):
    """A lookup table over the vocabulary of a tokenizer, which is read when the conditioner is built.

    Padding is zero. A learned position, where there is one, is added to padding too, as in the public code.
    """

    def __init__(self, config: LUTConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim, config.project_out)
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer_name)
        if self.tokenizer.pad_token is None:
            raise CheckpointError(
                f"tokenizer {config.tokenizer_name!r}: has no padding token, which a batch of texts needs;"
                " give tokenizer_name one that has, such as t5-base"
            )
        if config.special_tokens:
            self.tokenizer.add_special_tokens({"additional_special_tokens": config.special_tokens})
        self.token_embedder = nn.Embedding(len(self.tokenizer), output_dim)
        self.abs_pos_emb = (
            AbsolutePositionalEmbedding(output_dim, config.max_length) if config.use_abs_pos_emb else None
        )

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, max_length, D)`` of texts, and their mask."""
        batch = self.tokenizer(
            each(values, to_text),
            truncation=True,
            max_length=self.config.max_length,
            padding="max_length",
            return_tensors="pt",
        ).to(device)
        mask = batch["attention_mask"].to(torch.bool)
        embeddings = self.fill_padding(self.project(self.token_embedder(batch["input_ids"])), mask)
        if self.abs_pos_emb is not None:
            embeddings = embeddings + self.abs_pos_emb(embeddings.shape[1])
        return embeddings, mask


def load_tokenizer(name: str) -> Any:
    """The tokenizer called ``name``, a Hugging Face name or a local folder.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    with readable_errors("tokenizer", name, "a tokenizer"), quiet_transformers():
        return AutoTokenizer.from_pretrained(name)
