"""A text prompt through a T5 encoder (Raffel et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from stable_audio_tools.errors import CheckpointError, DataError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner
from stable_audio_tools.runtime.libraries import quiet_transformers
from stable_audio_tools.schema.built import only
from stable_audio_tools.schema.conditioning import T5Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

# Widths of the public encoders, so that a model can be built, and its keys known, without fetching one.
T5_WIDTHS = {
    "t5-small": 512, "t5-base": 768, "t5-large": 1024, "t5-3b": 1024, "t5-11b": 1024,
    "google/flan-t5-small": 512, "google/flan-t5-base": 768, "google/flan-t5-large": 1024,
    "google/flan-t5-xl": 2048, "google/flan-t5-xxl": 4096,
    "google/t5-v1_1-small": 512, "google/t5-v1_1-base": 768, "google/t5-v1_1-large": 1024,
    "google/t5-v1_1-xl": 2048, "google/t5-v1_1-xxl": 4096,
}  # fmt: skip


class T5Conditioner(Conditioner):
    """A prompt as ``max_length`` tokens, zero where there is only padding.

    A frozen encoder is read on first use, from a Hugging Face name or a local folder, and is no part of the
    state dict; it runs in float16 on CUDA and in float32 elsewhere. With ``enable_grad`` it is read at once,
    kept in float32 as the submodule ``model``, trained and saved with the rest.

    Only the tokens of the longest prompt are computed. The encoder masks padding out of attention, so the
    missing positions could not change the others, and they are zero in the result anyway.
    """

    def __init__(self, config: T5Config, output_dim: int) -> None:
        only(config, "padding_mode", "zero")
        super().__init__(encoder_width(config.t5_model_name), output_dim, config.project_out)
        self.config = config
        self._tokenizer: PreTrainedTokenizerBase | None = None
        # A module in a tuple is not registered, so the frozen encoder stays out of the state dict.
        self._frozen: tuple[nn.Module] | None = None
        if config.enable_grad:
            self._tokenizer, self.model = load_t5(config.t5_model_name)
            self.model.requires_grad_(True)

    def forward(self, values: list[Any], device: torch.device | str) -> Condition:
        """Embeddings ``(B, max_length, D)`` of prompts, and their mask.

        Raises:
            DataError: a prompt is not a string.
            CheckpointError: the text encoder cannot be found or read.
        """
        for value in values:
            if not isinstance(value, str):
                raise DataError(f"expected a text prompt, found {value!r}")
        encoder = self._encoder(torch.device(device))
        assert self._tokenizer is not None
        batch = self._tokenizer(
            values, truncation=True, max_length=self.config.max_length, padding="longest", return_tensors="pt"
        ).to(device)
        with (
            torch.set_grad_enabled(self.config.enable_grad and torch.is_grad_enabled()),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            hidden = encoder(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
        mask = batch["attention_mask"].to(torch.bool)
        weight = next(self.proj_out.parameters(), None)
        embeddings = self.proj_out(hidden.to(torch.float32 if weight is None else weight.dtype))
        embeddings = embeddings * mask.unsqueeze(-1)
        missing = self.config.max_length - mask.shape[1]
        return F.pad(embeddings, (0, 0, 0, missing)), F.pad(mask, (0, missing))

    def _encoder(self, device: torch.device) -> nn.Module:
        """The encoder, on ``device`` where it is frozen; a trained one moves with the model that holds it."""
        if self.config.enable_grad:
            return self.model
        if self._frozen is None:
            with torch.inference_mode(False):  # the first use may be a validation step
                self._tokenizer, loaded = load_t5(self.config.t5_model_name)
                self._frozen = (loaded.requires_grad_(False).eval(),)
        encoder = self._frozen[0]
        now = next(encoder.parameters()).device
        if now.type != device.type or device.index not in (None, now.index):
            encoder.to(device)
            if device.type == "cuda":
                _to_half(encoder)
            else:
                encoder.float()
        return encoder


def encoder_width(name: str) -> int:
    """Channels of the T5 encoder called ``name``: from the table of public ones, else from its own config."""
    if name in T5_WIDTHS:
        return T5_WIDTHS[name]
    from transformers import AutoConfig

    with _readable_errors(name), quiet_transformers():
        return int(AutoConfig.from_pretrained(name).d_model)


def load_t5(name: str) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Tokenizer and float32 encoder by Hugging Face name or local folder.

    Raises:
        CheckpointError: they cannot be found or read.
    """
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

    with _readable_errors(name), quiet_transformers():
        if torch.get_default_device().type == "meta":  # only keys and shapes are wanted
            return AutoTokenizer.from_pretrained(name), T5EncoderModel(AutoConfig.from_pretrained(name))
        encoder = T5EncoderModel.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name), encoder.float()


def _to_half(encoder: nn.Module) -> None:
    """Float16, but for the feed-forward outputs, whose sums overflow it: T5 was trained in bfloat16."""
    encoder.half()
    for path, module in encoder.named_modules():
        if path.endswith(".wo"):
            module.float()


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        where = "in this folder" if Path(name).is_dir() else "on the Hugging Face hub or in its local cache"
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"text encoder {name!r}: expected a T5 tokenizer and encoder {where}: {reason};"
            " give t5_model_name the path of a downloaded copy"
        ) from error
