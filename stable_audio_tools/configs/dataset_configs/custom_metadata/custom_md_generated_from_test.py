"""Prompts of generated clips: from the sidecar or the tag of each, else from ``prompts.csv`` beside it."""

from __future__ import annotations

from typing import Any

from stable_audio_tools.data.prompts import prompt_for_clip


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """What the clip at ``info["path"]`` was conditioned on."""
    return prompt_for_clip(info["path"])
