"""All conditioners of a model, by id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import DataError
from stable_audio_tools.models.conditioners.base import Condition, Conditioner
from stable_audio_tools.models.conditioners.integer import IntConditioner
from stable_audio_tools.models.conditioners.listed import ListConditioner
from stable_audio_tools.models.conditioners.number import NumberConditioner
from stable_audio_tools.models.conditioners.t5 import T5Conditioner
from stable_audio_tools.schema import conditioning
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.built import builder, inside
from stable_audio_tools.schema.conditioning import ConditioningConfig

CONDITIONERS: dict[type[Config], Callable[[Any, int], Conditioner]] = {
    conditioning.T5Conditioner: T5Conditioner,
    conditioning.NumberConditioner: NumberConditioner,
    conditioning.IntConditioner: IntConditioner,
    conditioning.ListConditioner: ListConditioner,
}


class MultiConditioner(nn.Module):
    """Embeds the metadata of a batch with one conditioner per id.

    ``default_keys`` names, for an id, another metadata key to read in items that lack the first. Ids of
    ``pre_encoded_keys`` hold embeddings already and pass through.
    """

    def __init__(self, config: ConditioningConfig, where: str = "model.conditioning") -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.cond_dim
        self.conditioners = nn.ModuleDict()
        for row, entry in enumerate(config.configs):
            make = builder(CONDITIONERS, entry, f"{where}.configs[{row}]")
            with inside(f"{where}.configs[{row}].config"):
                self.conditioners[entry.id] = make(entry.config, entry.config.output_dim or config.cond_dim)

    def forward(
        self, batch_metadata: Sequence[Mapping[str, Any]], device: torch.device | str
    ) -> dict[str, Condition]:
        """Embeddings ``(B, S, D)`` and mask ``(B, S)`` by id, of one metadata dict per item.

        Raises:
            DataError: an item lacks a key, or its value is not of the kind that the conditioner takes.
        """
        conditions: dict[str, Condition] = {}
        for key, conditioner in self.conditioners.items():
            values = [self._value(item, key, position) for position, item in enumerate(batch_metadata)]
            if key in self.config.pre_encoded_keys:
                conditions[key] = _pre_encoded(values, device)
                continue
            try:
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
            raise DataError(f"conditioning: item {position} has no {tried}; it has: {present}")
        value = item[key] if key in item else item[fallback]  # type: ignore[index]
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _pre_encoded(values: list[Any], device: torch.device | str) -> Condition:
    embeddings: Tensor = torch.stack([torch.as_tensor(value) for value in values]).to(device)
    return embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=device)
