"""What turns audio into what is stored: the autoencoder of a model, without the rest of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.errors import ConfigError, DataError, UsageError
from stable_audio_tools.inference.pre_encode_settings import DEFAULT_SAMPLE_SIZE, PreEncodeSettings
from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.models.checkpoints import load_autoencoder, model_sha256
from stable_audio_tools.models.pretrained import find_pretrained
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.runtime.files import hash_json
from stable_audio_tools.schema.autoencoder import AutoencoderPretransformConfig, PretransformConfig
from stable_audio_tools.schema.model import (
    AutoencoderModelConfig,
    DiffusionAutoencoderModelConfig,
    ModelConfig,
)
from stable_audio_tools.schema.reader import parse_model_config, read_model_json

_SILENT_FRAMES = 128
"""Silence is encoded over so many latents, and the middle one kept, which hears no edge."""


@dataclass(frozen=True)
class EncoderFiles:
    """The files of an encoder, checked but not loaded.

    Attributes:
        model_config: where the config is.
        ckpt_path: where the weights are; None where the codec is a published one.
        pretransform: the config of the encoder.
        config: the config of the model that it belongs to.
        sample_size: audio samples of a crop, or 0 for whole tracks.
    """

    model_config: Path
    ckpt_path: Path | None
    pretransform: PretransformConfig
    config: ModelConfig
    sample_size: int

    @classmethod
    def find(cls, settings: PreEncodeSettings) -> EncoderFiles:
        """The files that ``settings`` name.

        Raises:
            UsageError, ConfigError, CheckpointError: a flag is missing, the config has a mistake or no
                autoencoder, or a published model cannot be had.
        """
        weights = None if settings.ckpt_path is None else Path(settings.ckpt_path)
        path = Path(str(settings.model_config))
        if settings.pretrained_name is not None:
            files = find_pretrained(settings.pretrained_name)
            path, weights = files.model_config, files.ckpt_path
        config = parse_model_config(read_model_json(path), str(path))
        encoder = _encoder_config(config, str(path))
        if not isinstance(encoder, AutoencoderPretransformConfig):
            weights = None  # a published codec, or no weights at all
            if settings.model_half:
                raise UsageError(f"--model-half: {encoder.type!r} computes in float32; leave it out")
        elif weights is None:
            raise UsageError("--ckpt-path: not given; expected the checkpoint of the autoencoder")
        size = settings.sample_size
        if size is None:
            size = DEFAULT_SAMPLE_SIZE if isinstance(config, AutoencoderModelConfig) else config.sample_size
        if isinstance(encoder, AutoencoderPretransformConfig):
            changes: dict[str, Any] = {"model_half": settings.model_half or encoder.model_half}
            encoder = encoder.model_copy(update=changes | ({"chunked": True} if size == 0 else {}))
        return cls(path, weights, encoder, config, size)

    def stamp(self) -> dict[str, Any]:
        """Hashes of config and weights."""
        weights = None if self.ckpt_path is None else model_sha256(self.ckpt_path)
        return {"autoencoder": hash_json(self.pretransform.model_dump(mode="json")), "checkpoint": weights}

    def load(self, device: torch.device) -> Pretransform:
        """The encoder in evaluation mode on ``device``.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, holds no autoencoder, or does not fit.
        """
        encoder = create_pretransform(self.pretransform, self.config.sample_rate)
        if isinstance(encoder, AutoencoderPretransform):
            assert self.ckpt_path is not None
            load_autoencoder(encoder.model, self.ckpt_path)
        fuse_weight_norm_(encoder)
        return encoder.to(device).eval().requires_grad_(False)


def _encoder_config(config: ModelConfig, source: str) -> PretransformConfig:
    if isinstance(config, AutoencoderModelConfig):
        return AutoencoderPretransformConfig(type="autoencoder", config=config.model)
    if isinstance(config, DiffusionAutoencoderModelConfig):
        raise UsageError(
            f"{source}: a diffusion autoencoder trains its own encoder, so nothing is trained on its stored"
            " latents; give an autoencoder, or a model that has one in front"
        )
    pretransform: PretransformConfig | None = config.model.pretransform
    if pretransform is None:
        raise ConfigError(f"{source}: model.pretransform: missing; there is nothing to encode audio with")
    return pretransform


class LatentEncoder:
    """Audio to what is stored of it.

    Args:
        pretransform: on its device.
        kind: ``latents``, ``posterior`` or ``codes``.
        float16: store 16 bits of each number.

    Raises:
        UsageError: this encoder has no codes, or no posterior.
    """

    def __init__(self, pretransform: Pretransform, kind: str, float16: bool = False) -> None:
        self.pretransform = pretransform
        self.kind = kind
        self.dtype = np.dtype(np.float16 if float16 else np.float32)
        if kind == "codes":
            self.dtype = np.dtype(np.int16 if pretransform.codebook_size <= 1 << 15 else np.int32)
        self.channels = pretransform.io_channels
        if isinstance(pretransform, AutoencoderPretransform):
            self.channels = pretransform.model.in_channels
        self.silence = self._silence()

    @property
    def frame_samples(self) -> int:
        """Audio samples per latent."""
        return self.pretransform.downsampling_ratio

    def facts(self) -> dict[str, Any]:
        """What a reader should know of the latents."""
        return {
            "kind": self.kind,
            "channels": len(self.silence),
            "downsampling_ratio": self.frame_samples,
            "sample_rate": self.pretransform.sample_rate,
            "dtype": str(self.dtype),
            "silence": self.silence,
        }

    @torch.inference_mode()
    def encode(self, audio: Tensor, generators: Generators = None) -> Tensor:
        """What is stored of audio ``(B, C, T)``: ``(B, C', L)``, float32 or int64, on the CPU."""
        stored = (
            self.pretransform.tokenize(audio)
            if self.kind == "codes"
            else self.pretransform.store(audio, generators, posterior=self.kind == "posterior")
        )
        return stored.cpu()

    def array(self, stored: Tensor, where: str) -> np.ndarray:
        """What is written of one crop ``(C', L)``.

        Raises:
            DataError: it is not finite; names ``where``.
        """
        with np.errstate(over="ignore"):
            values = stored.numpy().astype(self.dtype)
        if self.dtype.kind == "f" and not np.isfinite(values).all():
            overflow = self.dtype == np.float16 and bool(torch.isfinite(stored).all())
            advice = "leave out --float16" if overflow else "check the recording and the checkpoint"
            raise DataError(f"{where}: its latents are not finite; {advice}")
        return values

    def _silence(self) -> list[float]:
        """The latent of silence; of a VAE its mean."""
        first = next(self.pretransform.parameters(), None)
        length = _SILENT_FRAMES * self.frame_samples
        device = torch.device("cpu") if first is None else first.device
        quiet = torch.zeros(1, self.channels, length, device=device)
        bottleneck = getattr(getattr(self.pretransform, "model", None), "bottleneck", None)
        if self.kind == "latents" and isinstance(bottleneck, VAEBottleneck):
            with torch.inference_mode():
                stored = self.pretransform.store(quiet, posterior=True).cpu()
            stored = stored[:, : stored.shape[1] // 2]
        else:
            stored = self.encode(quiet)
        frame: list[float] = stored[0, :, stored.shape[-1] // 2].tolist()
        return frame
