"""All conditioners of a model, by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.models.conditioners.base import Condition, Surroundings, each
from stable_audio_tools.models.conditioners.registry import create_conditioner
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.schema.conditioning import ConditioningConfig
from stable_audio_tools.schema.reader import parse_conditioning_config


class MultiConditioner(nn.Module):
    """Embeds the metadata of a batch with one conditioner per id.

    ``default_keys`` names, for an id, another metadata key to read in items that lack the first. Ids of
    ``pre_encoded_keys`` hold embeddings already and pass through.

    Args:
        sample_rate: of the model's audio, in Hz.
        pretransform: the model's, for conditioners that share it.
        where: the path of ``config`` in its JSON, for messages.
    """

    def __init__(
        self,
        config: ConditioningConfig,
        sample_rate: int | None = None,
        pretransform: Pretransform | None = None,
        where: str = "model.conditioning",
    ) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.cond_dim
        self.conditioners = nn.ModuleDict()
        surroundings = Surroundings(sample_rate, pretransform)
        for row, entry in enumerate(config.configs):
            if hasattr(self.conditioners, entry.id):
                raise ConfigError(
                    f"{where}.configs[{row}].id: {entry.id!r} is a name that torch keeps to itself"
                )
            try:
                self.conditioners[entry.id] = create_conditioner(entry, config.cond_dim, surroundings)
            except ConfigError as error:
                raise ConfigError(f"{where}.configs[{row}].config: {error}") from error

    def forward(
        self, batch_metadata: Sequence[Mapping[str, Any]], device: torch.device | str
    ) -> dict[str, Condition]:
        """Embeddings ``(B, S, D)`` and mask ``(B, S)`` by id, of one metadata dict per item.

        Those of audio through a pretransform are latents ``(B, D, L)`` with a mask ``(B, L)``.

        Raises:
            DataError: an item lacks a key, or its value is not of the kind that the conditioner takes.
        """
        conditions: dict[str, Condition] = {}
        for key, conditioner in self.conditioners.items():
            values = [self._value(item, key, position) for position, item in enumerate(batch_metadata)]
            try:
                if key in self.config.pre_encoded_keys:
                    conditions[key] = pre_encoded(values, device)
                else:
                    conditions[key] = conditioner(values, device)
            except DataError as error:
                raise DataError(f"conditioning {key!r}: {error}") from error
        return conditions

    def _value(self, item: Mapping[str, Any], key: str, position: int) -> Any:
        """What ``item`` holds for ``key``; a list of one stands for its element."""
        fallback = self.config.default_keys.get(key)
        if key not in item and (fallback is None or fallback not in item):
            tried = repr(key) if fallback is None else f"{key!r} or its default {fallback!r}"
            present = ", ".join(sorted(map(str, item))) or "nothing"
            track = f"; it is {item['path']}" if "path" in item else ""
            raise DataError(f"conditioning: item {position} has no {tried}; it has: {present}{track}")
        value = item[key] if key in item else item[fallback]  # type: ignore[index]
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def pre_encoded(values: Sequence[Any], device: torch.device | str) -> Condition:
    """Embeddings that come ready, and their mask.

    Each value is a tensor: tokens ``(S, D)``, one token ``(D,)`` or latents ``(D, L)``, or a pair of it and a
    mask over its first dimension. Items shorter there than the longest end in zeros, outside the mask.

    Raises:
        DataError: a value is no tensor, or the shapes differ otherwise.
    """
    pairs = each(values, _embeddings_and_mask)
    shapes = [tuple(embeddings.shape) for embeddings, _ in pairs]
    if len({shape[1:] for shape in shapes}) > 1:
        raise DataError(f"expected embeddings that differ in their first dimension only, found {shapes}")
    longest = max(shape[0] for shape in shapes)
    embeddings = torch.stack([_lengthened(tokens, longest) for tokens, _ in pairs]).to(device)
    mask = torch.stack([_lengthened(mask, longest) for _, mask in pairs]).to(device)
    return embeddings, mask


def _lengthened(x: Tensor, length: int) -> Tensor:
    """``x`` with zeros behind it along its first dimension."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, length - len(x)))


def _embeddings_and_mask(value: Any) -> Condition:
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    for part in pair:
        if not isinstance(part, Tensor | np.ndarray | None):
            raise DataError(
                f"expected embeddings as a tensor, or a pair of embeddings and mask, found {value!r:.80}"
            )
    embeddings = torch.as_tensor(pair[0])
    embeddings = embeddings[0] if embeddings.ndim == 3 and len(embeddings) == 1 else embeddings
    embeddings = embeddings.float() if embeddings.dtype == torch.float64 else embeddings
    if embeddings.ndim == 1:
        embeddings = embeddings.unsqueeze(0)
    mask = torch.ones(len(embeddings)) if pair[1] is None else torch.as_tensor(pair[1])
    if embeddings.ndim != 2 or mask.shape != embeddings.shape[:1]:
        raise DataError(
            f"expected embeddings (S, D) and a mask (S,), found {tuple(embeddings.shape)} and"
            f" {tuple(mask.shape)}"
        )
    return embeddings, mask.to(embeddings.device, torch.bool)


def create_multi_conditioner_from_conditioning_config(
    config: dict[str, Any] | ConditioningConfig,
    pretransform: Pretransform | None = None,
    sample_rate: int | None = None,
) -> MultiConditioner:
    """The conditioners that ``config``, the ``conditioning`` block of a model config, describes.

    Raises:
        ConfigError: the config has a mistake; the message starts with its path.
    """
    if isinstance(config, dict):
        config = parse_conditioning_config(config)
    return MultiConditioner(config, sample_rate, pretransform, where="conditioning config")
