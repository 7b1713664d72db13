"""The JSON that says which recordings to read and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class AudioDirectory(Config):
    """One folder of recordings.

    ``custom_metadata_module`` is a Python file that is run because this config names it; it must define
    ``get_custom_metadata(info, audio) -> dict``. A relative path is looked up in the working folder, then
    beside the config, then in the package. ``filelist.txt`` in the folder, if any, is the list of files.
    """

    id: str
    path: str
    custom_metadata_module: str | None = None


class AudioDirDataset(Config):
    """Folders of audio files, decoded while training."""

    dataset_type: Literal["audio_dir"]
    datasets: list[AudioDirectory] = Field(min_length=1)
    random_crop: bool = True
    drop_last: bool = True
    exclude_paths_file: str | None = None
    """One path a line, relative to a dataset folder or absolute, ``#`` starts a comment. Matched exactly."""
    augment_polarity: bool = False
    """Flip the sign of half the crops (the public code always did)."""
    volume_norm: bool = False
    """Bring each crop to a root mean square of -16 dBFS, with no peak above full scale."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable file does: stop with its name, or give way to the next track with a warning."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> AudioDirDataset:
        ids = [entry.id for entry in self.datasets]
        if len(set(ids)) != len(ids):
            raise ValueError(f"dataset ids must differ, found {ids}")
        return self


DatasetConfig = AudioDirDataset
