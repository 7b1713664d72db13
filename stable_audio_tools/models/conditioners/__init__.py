"""Metadata of a clip to embeddings: prompts, numbers, choices and audio."""

from stable_audio_tools.models.conditioners.multi import (
    MultiConditioner,
    create_multi_conditioner_from_conditioning_config,
)

__all__ = ["MultiConditioner", "create_multi_conditioner_from_conditioning_config"]
