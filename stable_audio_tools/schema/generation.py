"""The sidecar of a generated clip: everything needed to make it again, or to ask where it came from."""

from __future__ import annotations

from typing import Any, Literal

from stable_audio_tools.schema.base import Config


class ClipSidecar(Config):
    """Written as ``<clip>.json`` beside every generated file and as JSON in its comment tag."""

    format: Literal["stable-audio-tools/clip@1"] = "stable-audio-tools/clip@1"
    file: str
    prompt: str
    negative_prompt: str | None = None
    conditioning: dict[str, Any] = {}
    seconds_start: float
    seconds_total: float
    duration_seconds: float
    sample_rate: int
    seed: int
    steps: int
    cfg_scale: float
    sampler: str
    sampler_options: dict[str, Any] = {}
    objective: str
    checkpoint: str | None = None
    model_sha256: str | None = None
    config_sha256: str | None = None
    created: str
    render_seconds: float
    versions: dict[str, str] = {}
