"""CLAP embeddings of audio and text; what a CLAP is, and what it hears, is in :mod:`models.clap`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from stable_audio_tools.models.clap import load_clap
from stable_audio_tools.runtime.device import resolve_device

DEFAULT_CLAP = "laion/clap-htsat-fused"


class ClapEmbedder:
    """Embeds audio and text into one space.

    Args:
        model_name_or_path: a CLAP in the Hugging Face format, with its tokenizer and feature extractor.
        device: where it runs; ``None`` is the best there is.
        batch_size: clips, windows or texts at once.

    Attributes:
        name: what was loaded.
        sample_rate: what the model hears, in Hz; other rates are resampled.
        dim: width D of the embeddings.

    Raises:
        CheckpointError: there is no CLAP of that name.
    """

    def __init__(
        self,
        model_name_or_path: str | Path = DEFAULT_CLAP,
        device: str | torch.device | None = None,
        *,
        batch_size: int = 16,
    ) -> None:
        self.name = str(model_name_or_path)
        self.device = resolve_device(device)
        self.batch_size = batch_size
        self._clap = load_clap(self.name)
        self._clap.model.requires_grad_(False).to(self.device)
        self.sample_rate = self._clap.sample_rate
        self.dim = self._clap.dim

    def to(self, device: str | torch.device) -> ClapEmbedder:
        """Move the model, say out of the way until it is needed again."""
        self.device = torch.device(device)
        self._clap.model.to(self.device)
        return self

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of the weights: embeddings of different ones cannot be compared."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._clap.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def embed_audio(self, audio: Sequence[torch.Tensor] | torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Embeddings of length one, ``(B, D)`` float32 on the CPU, of audio ``(C, T)`` each.

        Raises:
            DataError: a clip cannot be heard.
        """
        return self._clap.embed_audio(list(audio), sample_rate, self.batch_size).cpu()

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of length one, ``(B, D)`` float32 on the CPU; texts beyond the model's length are
        cut."""
        rows = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), self.batch_size):
            rows.append(self._clap.embed_text(texts[start : start + self.batch_size]).cpu())
        return torch.cat(rows)
