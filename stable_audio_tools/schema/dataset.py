"""The JSON that says which recordings to read and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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

    @model_validator(mode="before")
    @classmethod
    def _metadata_module_of_every_folder(cls, data: Any) -> Any:
        """Older configs name the module once, beside ``datasets``; it is for folders that name none."""
        if not isinstance(data, dict) or "custom_metadata_module" not in data:
            return data
        module = data["custom_metadata_module"]
        entries = data.get("datasets")
        data = {key: value for key, value in data.items() if key != "custom_metadata_module"}
        if isinstance(entries, list):
            data["datasets"] = [
                {"custom_metadata_module": module, **entry} if isinstance(entry, dict) else entry
                for entry in entries
            ]
        return data

    @model_validator(mode="after")
    def _ids_are_unique(self) -> AudioDirDataset:
        _check_ids([entry.id for entry in self.datasets])
        return self


class LatentDirectory(Config):
    """One folder of latents (``.npy``) with what each was made of (``.json``)."""

    id: str
    path: str
    custom_metadata_module: str | None = None
    latent_crop_length: int | None = Field(None, ge=1)


class PreEncodedDataset(Config):
    """Folders of latents that an autoencoder made before."""

    dataset_type: Literal["pre_encoded"]
    datasets: list[LatentDirectory] = Field(min_length=1)
    random_crop: bool = False
    drop_last: bool = True
    latent_crop_length: int | None = Field(None, ge=1)
    """In latents; a folder's own goes before it."""
    latent_extension: str = "npy"
    min_length_sec: float | None = Field(None, ge=0)
    max_length_sec: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> PreEncodedDataset:
        _check_ids([entry.id for entry in self.datasets])
        return self


class WebDatasetShards(Config):
    """Tar files of recordings with their JSON, in a folder or under an S3 prefix."""

    id: str
    path: str | None = None
    s3_path: str | None = None
    profile: str | None = None
    """Of the AWS credentials."""
    custom_metadata_module: str | None = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> WebDatasetShards:
        if (self.path is None) == (self.s3_path is None):
            raise ValueError("expected either path or s3_path")
        return self


class WebDataset(Config):
    """Recordings in tar files; ``s3`` is the older name of ``wds``."""

    dataset_type: Literal["wds", "s3"]
    datasets: list[WebDatasetShards] = Field(min_length=1)
    random_crop: bool = True
    epoch_steps: int = Field(2000, ge=1)
    pre_encoded: bool = False
    latent_crop_length: int | None = Field(None, ge=1)
    resampled_shards: bool = True
    remove_silence: bool = False
    silence_threshold: tuple[float, float] = (0.01, 0.5)
    max_silence_duration: float = Field(0.25, ge=0)
    volume_norm: bool = False
    volume_norm_param: tuple[float, float] = (-16, 2)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> WebDataset:
        _check_ids([entry.id for entry in self.datasets])
        return self


def _check_ids(ids: list[str]) -> None:
    if len(set(ids)) != len(ids):
        raise ValueError(f"dataset ids must differ, found {ids}")


DatasetConfig = Annotated[
    AudioDirDataset | PreEncodedDataset | WebDataset, Field(discriminator="dataset_type")
]
