"""A text prompt through an encoder of the T5 family (Raffel et al. 2020; T5Gemma: Zhang et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner, each, on_device, to_text
from stable_audio_tools.runtime.device import aside, send
from stable_audio_tools.runtime.libraries import quiet_transformers, readable_errors
from stable_audio_tools.schema.conditioning import T5Config, T5GemmaConfig

# Widths of the public encoders, so that a model can be built, and its keys known, without fetching one.
T5_WIDTHS = {
    "t5-small": 512, "t5-base": 768, "t5-large": 1024, "t5-3b": 1024, "t5-11b": 1024,
    "google/flan-t5-small": 512, "google/flan-t5-base": 768, "google/flan-t5-large": 1024,
    "google/flan-t5-xl": 2048, "google/flan-t5-xxl": 4096,
    "google/t5-v1_1-small": 512, "google/t5-v1_1-base": 768, "google/t5-v1_1-large": 1024,
    "google/t5-v1_1-xl": 2048, "google/t5-v1_1-xxl": 4096,
    "google/t5gemma-b-b-ul2": 768,
}  # fmt: skip

# By the model_type of a Hugging Face config: the class of transformers that is the encoder alone.
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "t5gemma": "T5GemmaEncoderModel",
}


class T5Conditioner(Conditioner):
    """A prompt as ``max_length`` tokens.

    A frozen encoder is read on first use, from a Hugging Face name or a local folder, and is no part of the
    state dict; it runs in float32, and on CUDA a T5 in float16. With ``enable_grad`` it is read at once, kept
    in float32 as the submodule ``model``, trained (without dropout) and saved with the rest.

    Which encoder it is, of T5, mT5, UMT5 and T5Gemma, is told by its own config, whatever the type in ours.

    Only the tokens of the longest prompt are computed, unless the padding mode wants to see what the encoder
    makes of padding: it masks padding out of attention, so the missing positions could not change the others.
    """

    def __init__(self, config: T5Config | T5GemmaConfig, output_dim: int) -> None:
        super().__init__(encoder_width(config.name), output_dim, config.project_out, config.padding_mode)
        self.config = config
        self._tokenizer: Any = None
        # A module in a tuple is not registered, so the frozen encoder stays out of the state dict.
        self._frozen: tuple[Any] | None = None
        if config.enable_grad:
            self._tokenizer, self.model = load_t5(config.name)
            self.model.requires_grad_(True).eval()

    def train(self, mode: bool = True) -> T5Conditioner:
        """Follow the parent, but for the encoder: the public code trains it without dropout."""
        super().train(mode)
        if self.config.enable_grad:
            self.model.eval()
        return self

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, max_length, D)`` of prompts, and their mask.

        Raises:
            DataError: a prompt is not a string.
            CheckpointError: the text encoder cannot be found or read.
        """
        texts = each(values, to_text)
        # a trained encoder depends on the step before; a frozen one need not wait for it
        beside: AbstractContextManager[list[Tensor]] = (
            nullcontext([]) if self.config.enable_grad else aside(device)
        )
        with (
            beside as used_later,
            torch.set_grad_enabled(self.config.enable_grad and torch.is_grad_enabled()),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            encoder = self._encoder(torch.device(device))
            batch = self._tokenizer(
                texts,
                truncation=True,
                max_length=self.config.max_length,
                padding="max_length" if self.padding_mode == "none" else "longest",
                return_tensors="pt",
            )
            tokens, seen = (send(batch[key], device) for key in ("input_ids", "attention_mask"))
            hidden = encoder(input_ids=tokens, attention_mask=seen).last_hidden_state
            used_later += [hidden, seen]
        embeddings, mask = self._to_full_length(self.project(hidden), seen.to(torch.bool))
        return self.fill_padding(embeddings, mask), mask

    def _to_full_length(self, embeddings: Tensor, mask: Tensor) -> Condition:
        """Both with ``max_length`` positions, on the side where the tokenizer pads."""
        missing = self.config.max_length - mask.shape[1]
        sides = (missing, 0) if self._tokenizer.padding_side == "left" else (0, missing)
        return F.pad(embeddings, (0, 0, *sides)), F.pad(mask, sides)

    def _encoder(self, device: torch.device) -> nn.Module:
        """The encoder, on ``device`` where it is frozen; a trained one moves with the model that holds it."""
        if self.config.enable_grad:
            return self.model
        if self._frozen is None:
            with torch.inference_mode(False):  # the first use may be a validation step
                self._tokenizer, loaded = load_t5(self.config.name)
                self._frozen = (loaded.requires_grad_(False).eval(),)
        encoder = self._frozen[0]
        if not on_device(encoder, device):
            encoder.to(device)
            if device.type == "cuda" and encoder.config.model_type != "t5gemma":  # which overflows float16
                _to_half(encoder)
            else:
                encoder.float()
        return encoder


def encoder_width(name: str) -> int:
    """Channels of the encoder called ``name``: from the table of public ones, else from its own config.

    Raises:
        CheckpointError: there is no such encoder, or none of the T5 family.
    """
    if name in T5_WIDTHS:
        return T5_WIDTHS[name]
    config = _encoder_config(name)
    return int(config.encoder.hidden_size if config.model_type == "t5gemma" else config.d_model)


def load_t5(name: str) -> tuple[Any, Any]:
    """Tokenizer and float32 encoder by Hugging Face name or local folder.

    Raises:
        CheckpointError: they cannot be found or read, or weights are missing.
    """
    import transformers

    config = _encoder_config(name)
    encoder_class = getattr(transformers, _ENCODERS[config.model_type])
    if config.model_type == "t5gemma":
        config.is_encoder_decoder = False  # the class refuses the config of the pair
    with readable_errors("text encoder", name, "a T5 tokenizer and encoder"), quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        if torch.get_default_device().type == "meta":  # only keys and shapes are wanted
            return tokenizer, encoder_class(config)
        encoder, report = encoder_class.from_pretrained(name, config=config, output_loading_info=True)
    missing = sorted(set(report["missing_keys"]) & {key for key, _ in encoder.named_parameters()})
    if missing:  # transformers would go on with random numbers in their place
        raise CheckpointError(
            f"text encoder {name!r}: is not whole, {len(missing)} weights are missing, {missing[0]} first"
        )
    return tokenizer, encoder.float()


def _encoder_config(name: str) -> Any:
    from transformers import AutoConfig

    with readable_errors("text encoder", name, "a T5 tokenizer and encoder"), quiet_transformers():
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in _ENCODERS:
        raise CheckpointError(
            f"text encoder {name!r}: is of type {config.model_type!r}; expected one of"
            f" {', '.join(sorted(_ENCODERS))}"
        )
    return config


def _to_half(encoder: nn.Module) -> None:
    """Float16, but for the feed-forward outputs, whose sums overflow it: T5 was trained in bfloat16."""
    encoder.half()
    for path, module in encoder.named_modules():
        if path.endswith(".wo"):
            module.float()
