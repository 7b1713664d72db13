"""The JSON that says which recordings to read and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.prompts import PromptConfig

MetadataSource = Literal["manifest", "json", "text", "tags", "jamendo", "song_describer"]
"""Where to look for what is known of a track.

``manifest`` is the folder's own table, ``json`` and ``text`` are ``song.json`` and ``song.txt`` beside
``song.mp3``, ``tags`` is inside the file; ``jamendo`` and ``song_describer`` are the tables of those sets.
"""

# Named once beside ``datasets``, these are for every folder that does not name its own.
_FOR_EVERY_FOLDER = ("custom_metadata_module", "metadata_sources", "prompts")


class AudioDirectory(Config):
    """One folder of recordings.

    ``custom_metadata_module`` is a Python file that is run because this config names it; it must define
    ``get_custom_metadata(info, audio) -> dict``, which goes before all else that is known. A relative path is
    looked up in the working folder, then beside the config, then in the package.

    The files are those of ``filelist.txt`` in the folder; without one, those of the manifest; without either,
    all that are there.
    """

    id: str
    path: str
    custom_metadata_module: str | None = None
    manifest: str | None = None
    """A table (``.csv``, ``.tsv`` or ``.jsonl``) of paths and what is known of them. A relative path is
    looked up in the folder, then in the working folder, then beside the config."""
    metadata_sources: list[MetadataSource] | None = None
    """Where to look, the first before the others. None is manifest, json, text and tags, or with a
    ``custom_metadata_module`` the manifest alone, if there is one."""
    prompts: PromptConfig | None = None
    """How prompts are made of what is known; None takes the caption, or makes a sentence of tags."""

    @model_validator(mode="after")
    def _sources_have_what_they_need(self) -> AudioDirectory:
        sources = self.metadata_sources
        if sources is None:
            return self
        if len(set(sources)) != len(sources):
            raise ValueError(f"metadata_sources names one twice: {', '.join(sources)}")
        if "manifest" in sources and self.manifest is None:
            raise ValueError(
                "metadata_sources names 'manifest', but there is no key 'manifest' with its path"
            )
        return self

    @property
    def sources(self) -> tuple[MetadataSource, ...]:
        """The sources that are read, in their order."""
        table: tuple[MetadataSource, ...] = () if self.manifest is None else ("manifest",)
        if self.metadata_sources is not None:
            return (*(table if "manifest" not in self.metadata_sources else ()), *self.metadata_sources)
        return table if self.custom_metadata_module is not None else (*table, "json", "text", "tags")


class AudioDirDataset(Config):
    """Folders of audio files, decoded while training.

    ``custom_metadata_module``, ``metadata_sources`` and ``prompts`` may stand beside ``datasets`` too: there
    they are for every folder that has none of its own.
    """

    dataset_type: Literal["audio_dir"]
    custom_metadata_module: str | None = None
    metadata_sources: list[MetadataSource] | None = None
    prompts: PromptConfig | None = None
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
    def _shared_keys_are_of_every_folder(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        shared = {key: data[key] for key in _FOR_EVERY_FOLDER if _is_right(key, data.get(key))}
        entries = data.get("datasets")
        if not shared or not isinstance(entries, list):
            return data
        return {
            **data,
            "datasets": [{**shared, **entry} if isinstance(entry, dict) else entry for entry in entries],
        }

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
    """In latents; a folder's own goes before it. None takes crops as they are stored, or where their lengths
    differ as long as the model's window."""
    latent_extension: str = "npy"
    min_length_sec: float | None = Field(None, ge=0)
    """Leave out tracks that are shorter."""
    max_length_sec: float | None = Field(None, gt=0)
    """Leave out tracks that are longer."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable file does: stop with its name, or give way to the next track with a warning."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> PreEncodedDataset:
        _check_ids([entry.id for entry in self.datasets])
        return self


class WebDatasetShards(Config):
    """Tar files of recordings, in a folder or under an S3 prefix, with all folders in it.

    The members of a sample share a name up to its first dot: ``42.mp3``, ``42.json``, ``42.txt``. The JSON is
    an object of what is known of the recording, the text is its caption.
    """

    id: str
    path: str | None = None
    """A folder or one ``.tar``; looked up in the working folder, then beside the config."""
    s3_path: str | None = None
    """``s3://bucket/prefix``."""
    profile: str | None = None
    """Of the AWS credentials."""
    endpoint_url: str | None = None
    """Of an S3 server other than Amazon's; None asks ``AWS_ENDPOINT_URL``."""
    anonymous: bool = False
    """Send no credentials."""
    custom_metadata_module: str | None = None
    prompts: PromptConfig | None = None
    """How prompts are made of what is known; None takes the caption, or makes a sentence of tags."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> WebDatasetShards:
        if (self.path is None) == (self.s3_path is None):
            raise ValueError("expected either path or s3_path")
        if self.s3_path is None and (self.endpoint_url is not None or self.anonymous):
            raise ValueError("endpoint_url and anonymous are for s3_path")
        return self


class WebDataset(Config):
    """Recordings in tar files; ``s3`` is the older name of ``wds``."""

    dataset_type: Literal["wds", "s3"]
    datasets: list[WebDatasetShards] = Field(min_length=1)
    random_crop: bool = True
    drop_last: bool = True
    epoch_steps: int = Field(2000, ge=1)
    """Batches in an epoch where shards are drawn; otherwise an epoch is every recording once."""
    pre_encoded: bool = False
    latent_crop_length: int | None = Field(None, ge=1)
    resampled_shards: bool = True
    """Draw shards one after the other, each as often as chance has it; otherwise go through them in turn."""
    shuffle_buffer: int = Field(1000, ge=0)
    """How many recordings, read from the shards in turn, an order is drawn among; 0 keeps theirs."""
    exclude_paths_file: str | None = None
    """Samples to leave out, one a line: by their id (``drums/000.tar/42.mp3``) or their path from the folder
    of shards (``000.tar/42.mp3``). ``#`` starts a comment."""
    index_dir: str | None = None
    """Where the tables of contents of the shards are kept; None is a folder in the user's cache."""
    remove_silence: bool = False
    """Shorten long silences of mono recordings, which are then decoded whole."""
    silence_threshold: tuple[float, float] = (0.01, 0.5)
    """The level below which samples are silent, and the seconds that stay of a silence."""
    max_silence_duration: float = Field(0.25, ge=0)
    """Seconds of silence that are never too long."""
    augment_polarity: bool = False
    """Flip the sign of half the crops (the public code always did)."""
    volume_norm: bool = False
    """Bring each crop to a root mean square of ``volume_norm_param``, with no peak above full scale."""
    volume_norm_param: tuple[float, float] = (-16, 2)
    """A level in dBFS, and how many dB it may be off to either side, drawn for each crop."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable recording does: stop with its name, or give way to the next one with a warning."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> WebDataset:
        _check_ids([entry.id for entry in self.datasets])
        return self


def _is_right(key: str, value: Any) -> bool:
    """Whether a folder may have it. What is wrong is left where it was written, to be named there."""
    if value is None:
        return False
    try:
        AudioDirectory.model_validate({"id": "", "path": "", "manifest": "", key: value})
    except ValidationError:
        return False
    return True


def _check_ids(ids: list[str]) -> None:
    if len(set(ids)) != len(ids):
        raise ValueError(f"dataset ids must differ, found {ids}")


DatasetConfig = Annotated[
    AudioDirDataset | PreEncodedDataset | WebDataset, Field(discriminator="dataset_type")
]
