"""What the tests of conditioners share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.schema.conditioning import ConditioningConfig

WIDTH = 16


def conditioner(
    *configs: dict[str, Any],
    width: int = WIDTH,
    sample_rate: int | None = None,
    pretransform: Any = None,
    **changes: Any,
) -> MultiConditioner:
    """Seeded, without gradients, in evaluation mode."""
    config = ConditioningConfig.model_validate({"configs": list(configs), "cond_dim": width, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiConditioner(config, sample_rate, pretransform).requires_grad_(False).eval()


def embed(model: MultiConditioner, key: str, *values: Any) -> Tensor:
    """The embeddings of one value per item, with their mask checked."""
    embeddings, mask = model([{key: value} for value in values], "cpu")[key]
    assert mask.shape == embeddings.shape[:2]
    assert mask.dtype == torch.bool
    assert embeddings.dtype == torch.float32
    return embeddings
