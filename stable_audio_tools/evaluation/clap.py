"""CLAP embeddings of audio and text.

Y. Wu et al., "Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation" (ICASSP 2023), through the Hugging Face format, a folder or a name on the hub.

CLAP hears 10 s. Its own preprocessing takes random pieces of longer audio from NumPy's global generator and
picks a random clip of each batch for the fusion path, so that a score would change with the batch and the
day. Here everything is a function of the clip alone: a fusion model gets its overview and three pieces from
fixed places; a model without fusion gets windows of 10 s laid evenly over the clip, and their mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.audio.transforms import resample
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.libraries import load_pretrained

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
        self._model, self._extractor, self._tokenizer = _load(self.name)
        self._model.eval().requires_grad_(False).to(self.device)
        self.sample_rate = int(self._extractor.sampling_rate)
        self.dim = int(self._model.config.projection_dim)
        self._fusion = bool(self._model.config.audio_config.enable_fusion)
        self._window = int(self._extractor.nb_max_samples)

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of the weights: embeddings of different ones cannot be compared."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def embed_audio(self, audio: Sequence[torch.Tensor] | torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Embeddings of length one, ``(B, D)`` float32 on the CPU; too long texts are cut."""
        clips = [self._mono(clip, sample_rate, position) for position, clip in enumerate(audio)]
        # One row of inputs a clip with fusion; one or more windows a clip without.
        views = [self._fusion_views(clip) if self._fusion else self._windows(clip) for clip in clips]
        owner = torch.tensor(
            [position for position, (mels, _) in enumerate(views) for _ in mels], dtype=torch.long
        )
        if not len(owner):
            return torch.zeros(0, self.dim)
        mels = torch.cat([mels for mels, _ in views])
        longer = torch.tensor([flag for mels, flag in views for _ in mels])[:, None]
        rows = []
        for features, flags in zip(mels.split(self.batch_size), longer.split(self.batch_size), strict=True):
            found = self._model.get_audio_features(
                input_features=features.to(self.device), is_longer=flags.to(self.device)
            )
            rows.append(torch.nn.functional.normalize(_tensor(found).float().cpu(), dim=-1))
        sums = torch.zeros(len(clips), self.dim).index_add_(0, owner, torch.cat(rows))
        return torch.nn.functional.normalize(sums, dim=-1)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of length one, ``(B, D)`` float32 on the CPU; texts beyond the model's length are
        cut."""
        rows = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), self.batch_size):
            tokens = self._tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            found = self._model.get_text_features(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            )
            rows.append(torch.nn.functional.normalize(_tensor(found).float().cpu(), dim=-1))
        return torch.cat(rows)

    def _mono(self, clip: torch.Tensor, sample_rate: int, position: int) -> torch.Tensor:
        if clip.ndim != 2 or clip.shape[-1] == 0 or not torch.isfinite(clip).all():
            raise DataError(
                f"clip {position} of shape {tuple(clip.shape)} cannot be embedded: "
                "expected (channels, samples), at least one sample, all finite"
            )
        mono = clip.detach().to("cpu", torch.float32).mean(0)
        return mono if sample_rate == self.sample_rate else resample(mono, sample_rate, self.sample_rate)

    def _mel(self, mono: torch.Tensor, length: int) -> torch.Tensor:
        """Log-mel ``(frames, bands)`` of ``length`` samples, shorter audio repeated as in training."""
        features = self._extractor(
            mono.numpy(), sampling_rate=self.sample_rate, max_length=length, return_tensors="np"
        )["input_features"]
        return torch.as_tensor(features[0][0], dtype=torch.float32)

    def _windows(self, mono: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Log-mels ``(W, 1, frames, bands)`` of windows that cover the clip evenly, first to last sample."""
        count = max(1, math.ceil(len(mono) / self._window))
        last = max(0, len(mono) - self._window)
        starts = [round(k * last / max(1, count - 1)) for k in range(count)]
        mels = [self._mel(mono[start : start + self._window], self._window) for start in starts]
        return torch.stack(mels)[:, None], False

    def _fusion_views(self, mono: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Log-mels ``(1, 4, frames, bands)``: the clip shrunk to 10 s, then a piece of each third of it."""
        mel = self._mel(mono, max(len(mono), self._window))
        frames = self._window // self._extractor.hop_length + 1
        if len(mel) <= frames:
            return mel.expand(1, 4, -1, -1), False
        overview = torch.nn.functional.interpolate(
            mel[None, None], size=[frames, mel.shape[1]], mode="bilinear"
        )[0, 0]
        last = len(mel) - frames
        pieces = [mel[start : start + frames] for start in (round(last * k / 6) for k in (1, 3, 5))]
        return torch.stack([overview, *pieces])[None], True


def _load(name: str) -> tuple[Any, Any, Any]:
    """Model, feature extractor and tokenizer."""
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    advice = "a folder with model, tokenizer and preprocessor files, or a name on the hub"
    model, extractor, tokenizer = load_pretrained(
        name, "CLAP", ClapModel, ClapFeatureExtractor, AutoTokenizer, advice=advice
    )
    return model, extractor, tokenizer


def _tensor(features: Any) -> torch.Tensor:
    """transformers 4 returns the projected features, 5 an output that has them as ``pooler_output``."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output
