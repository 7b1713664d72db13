"""Sounds and pictures beside the pages of a report: an excerpt of a file once, however many pages show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stable_audio_tools.attribution.evidence.segments import heard
from stable_audio_tools.audio.files import probe, read_audio, save_audio
from stable_audio_tools.audio.plots import spectrogram_png
from stable_audio_tools.audio.transforms import peak_normalize, set_channels
from stable_audio_tools.errors import AudioError
from stable_audio_tools.report.page import linked_image, linked_player, text
from stable_audio_tools.runtime.files import atomic_path, hash_json

EXCERPT_SECONDS = 30.0
"""Of the part that the model was given: 0.2 MB as Ogg Vorbis."""

_RATE = 32_000


class Media:
    """Excerpts in ``<folder>/media``.

    Args:
        folder: of the pages.
        window_seconds: what the model takes of a file.
    """

    def __init__(self, folder: Path, window_seconds: float) -> None:
        self.folder = folder
        self.window_seconds = window_seconds

    def blocks(self, record: Mapping[str, Any], label: str) -> list[Markup]:
        """Spectrogram and player of a clip or track; a word in their place if it cannot be read."""
        try:
            name = self._excerpt(record)
        except AudioError as error:
            return [text(f"Not shown: {error}")]
        return [linked_image(f"{name}.png", f"spectrogram of {label}"), linked_player(f"{name}.ogg", label)]

    def _excerpt(self, record: Mapping[str, Any]) -> str:
        """The name of an excerpt without its suffix, relative to the pages; it is made if it is not there."""
        path = Path(str(record.get("path", "")))
        begin, length = heard(record, self.window_seconds)
        info = probe(path)
        stamp = path.stat()
        key = [str(path.absolute()), stamp.st_size, stamp.st_mtime_ns, begin, length]
        name = f"media/{hash_json(key)[:20]}"
        picture, sound = (self.folder / f"{name}.{suffix}" for suffix in ("png", "ogg"))
        if picture.exists() and sound.exists():
            return name
        audio, rate = read_audio(
            info,
            offset_seconds=begin,
            duration_seconds=min(length, EXCERPT_SECONDS),
            sample_rate=min(info.sample_rate, _RATE),
        )
        if audio.shape[-1] == 0:
            raise AudioError(f"{path}: has no sound at {begin:.1f} s")
        audio = peak_normalize(set_channels(audio, 1), 0.9)
        save_audio(sound, audio, rate)
        with atomic_path(picture) as temporary:
            temporary.write_bytes(spectrogram_png(audio, rate, width_px=300, height_px=130))
        return name
