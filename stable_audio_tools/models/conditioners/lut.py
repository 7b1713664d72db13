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

# Tokens of public vocabularies, so that a model can be built, and its shapes known, without fetching one.
_VOCABULARIES = {
    **dict.fromkeys(("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"), 32_100),
    **dict.fromkeys((f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")), 32_100),
    "bert-base-uncased": 30_522,
    "roberta-base": 50_265,
}


class LUTConditioner(Conditioner):
    """A lookup table over the vocabulary of a tokenizer.

    The tokenizer is read when the conditioner is built, or on first use where the size of its vocabulary is
    known by its name.

    Padding is zero. A learned position, where there is one, is added to padding too, as in the public code.
    """

    def __init__(self, config: LUTConfig, output_dim: int) -> None:
        super().__init__(output_dim, output_dim, config.project_out)
        self.config = config
        self._tokenizer: Any = None
        size = _VOCABULARIES.get(config.tokenizer_name)
        rows = len(self._read()) if size is None else size + len(set(config.special_tokens))
        self.token_embedder = nn.Embedding(rows, output_dim)
        self.abs_pos_emb = (
            AbsolutePositionalEmbedding(output_dim, config.max_length) if config.use_abs_pos_emb else None
        )

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, max_length, D)`` of texts, and their mask.

        Raises:
            DataError: a text is not a string.
            CheckpointError: the tokenizer cannot be found or read.
        """
        texts = each(values, to_text)
        batch = self._read()(
            texts,
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

    def _read(self) -> Any:
        """The tokenizer, with the special tokens."""
        if self._tokenizer is None:
            name = self.config.tokenizer_name
            tokenizer = load_tokenizer(name)
            if tokenizer.pad_token is None:
                raise CheckpointError(
                    f"tokenizer {name!r}: has no padding token, which a batch of texts needs; give"
                    " tokenizer_name one that has, such as t5-base"
                )
            if self.config.special_tokens:
                tokenizer.add_special_tokens({"additional_special_tokens": self.config.special_tokens})
            self._tokenizer = tokenizer
        return self._tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer called ``name``, a Hugging Face name or a local folder.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    with readable_errors("tokenizer", name, "a tokenizer"), quiet_transformers():
        return AutoTokenizer.from_pretrained(name)
