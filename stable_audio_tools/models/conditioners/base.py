"""What every conditioner has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stable_audio_tools.errors import DataError
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.schema.conditioning import PaddingMode

T = TypeVar("T")

Condition: TypeAlias = tuple[Tensor, Tensor]
"""Embeddings ``(B, S, D)`` and their boolean mask ``(B, S)``, true where there is something."""


@dataclass(frozen=True)
class Surroundings:
    """What a conditioner may need to know of the model that it is part of.

    Attributes:
        sample_rate: of the model's audio, in Hz; None is the rate that the conditioner itself works at.
        pretransform: the model's, if it has one.
    """

    sample_rate: int | None = None
    pretransform: Pretransform | None = None


class Conditioner(nn.Module):
    """Turns a batch of values into embeddings of ``output_dim`` channels.

    Args:
        dim: channels of the embedding before projection.
        output_dim: channels after it. A projection is made only where they differ or ``project_out`` asks for
            it.
        padding_mode: what stands where there is only padding: ``zero``, ``none`` (what the embedding makes of
            it) or ``learned``, one vector for all of it.
    """

    def __init__(
        self, dim: int, output_dim: int, project_out: bool = False, padding_mode: PaddingMode = "zero"
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.padding_mode = padding_mode
        self.proj_out = nn.Linear(dim, output_dim) if project_out or dim != output_dim else nn.Identity()
        if padding_mode == "learned":
            self.padding_embedding = nn.Parameter(torch.randn(output_dim) * 0.02)

    def forward(self, values: Iterable[Any], device: torch.device | str) -> Condition:
        """Embed one value per batch item.

        Raises:
            DataError: a value is not of the kind this conditioner takes.
        """
        raise TypeError(f"{type(self).__name__} must define forward")

    def project(self, embeddings: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., output_dim)``: in the projection's dtype, float32 where there is none."""
        weight = next(self.proj_out.parameters(), None)
        return self.proj_out(embeddings.to(torch.float32 if weight is None else weight.dtype))

    def fill_padding(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Embeddings ``(B, S, D)`` with what the padding mode puts where ``mask`` ``(B, S)`` is false."""
        if self.padding_mode == "none":
            return embeddings
        if self.padding_mode == "learned":
            return torch.where(mask.unsqueeze(-1), embeddings, self.padding_embedding.to(embeddings.dtype))
        return embeddings * mask.unsqueeze(-1)


def single_token(embeddings: Tensor) -> Condition:
    """Embeddings ``(B, D)`` as one token each, with a mask of ones."""
    return embeddings.unsqueeze(1), torch.ones(len(embeddings), 1, dtype=torch.bool, device=embeddings.device)


def each(values: Iterable[Any], convert: Callable[[Any], T]) -> list[T]:
    """``convert`` of each value; its DataError is told with the number of the item."""
    converted = []
    for position, value in enumerate(values):
        try:
            converted.append(convert(value))
        except DataError as error:
            raise DataError(f"item {position}: {error}") from error
    return converted


def to_text(value: Any) -> str:
    """``value`` where it is text, or a DataError."""
    if not isinstance(value, str):
        raise DataError(f"expected a text prompt, found {value!r}")
    return value


def to_audio(value: Any) -> Tensor:
    """``value`` as float32 audio ``(C, T)``: from ``(T,)``, ``(C, T)`` or ``(1, C, T)``, or a DataError."""
    if not isinstance(value, Tensor | np.ndarray):
        raise DataError(
            f"expected audio as a tensor (channels, samples), found {value!r:.60} of type"
            f" {type(value).__name__}"
        )
    audio = torch.as_tensor(value).float()
    if audio.ndim == 1:
        audio = audio.unsqueeze(0)
    elif audio.ndim == 3 and len(audio) == 1:
        audio = audio[0]
    if audio.ndim != 2 or audio.numel() == 0 or not bool(torch.isfinite(audio).all()):
        raise DataError(
            f"expected audio (channels, samples) of at least one sample, all finite, found the shape"
            f" {tuple(value.shape)}"
        )
    return audio


def on_device(module: nn.Module, device: torch.device) -> bool:
    """Whether the weights of ``module`` are on ``device``; ``cuda`` stands for any of its numbers."""
    now = next(module.parameters(), None)
    return now is None or (now.device.type == device.type and device.index in (None, now.device.index))
