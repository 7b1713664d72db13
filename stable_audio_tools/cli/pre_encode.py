"""``sat pre-encode``: recordings to latents on disk, once."""

from __future__ import annotations

from typing import Any

from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.inference.pre_encode_settings import PreEncodeSettings


@flags_of(PreEncodeSettings)
def pre_encode(flags: dict[str, Any]) -> None:
    """Store the latents of every track, so that training reads them instead of encoding.

    Writes <output-path>/<rank>/<id>.npy with a .json beside each, and details.json. Train on them with a
    dataset config of type pre_encoded and "pre_encoded": true in the training block. A run that was killed
    goes on where it stopped.
    """
    settings = PreEncodeSettings(**flags)
    from stable_audio_tools.inference import pre_encode as job

    job.pre_encode(settings)
