"""Embedded recordings that clips are held against, in memory and as ``.npz``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.errors import AudioError, DataError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import track, warn
from stable_audio_tools.schema.dataset import AudioDirDataset, AudioDirectory

_FORMAT = "stable-audio-tools/reference@1"


@dataclass(frozen=True)
class ReferenceSet:
    """Real recordings, one row each.

    Attributes:
        audio_embeddings: ``(N, D)`` float32, rows of length one.
        text_embeddings: of the prompts, ``(N, D)``; ``(0, D)`` where there are no prompts.
        prompts: one for each recording, or none.
        track_ids: what each recording is called.
        clap: name of the CLAP model that embedded them.
        clap_sha256: of its weights; only embeddings of the same weights can be compared.
        settings: how the set was made.
    """

    audio_embeddings: NDArray[np.float32]
    text_embeddings: NDArray[np.float32]
    prompts: tuple[str, ...]
    track_ids: tuple[str, ...]
    clap: str
    clap_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write arrays of the same names, with everything else as JSON in ``facts``; whole or absent."""
        facts = {
            "format": _FORMAT,
            "clap": self.clap,
            "clap_sha256": self.clap_sha256,
            "settings": dict(self.settings),
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(
                stream,
                audio_embeddings=self.audio_embeddings,
                text_embeddings=self.text_embeddings,
                prompts=np.array(self.prompts, dtype=np.str_),
                track_ids=np.array(self.track_ids, dtype=np.str_),
                facts=np.array(json.dumps(facts)),
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> ReferenceSet:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: there is no such file, or it is no set of embeddings.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                if facts["format"] != _FORMAT:
                    raise DataError(
                        f"{path}: format {facts['format']!r}, expected {_FORMAT!r}; make it again"
                    )
                return cls(
                    audio_embeddings=stored["audio_embeddings"],
                    text_embeddings=stored["text_embeddings"],
                    prompts=tuple(stored["prompts"].tolist()),
                    track_ids=tuple(stored["track_ids"].tolist()),
                    clap=facts["clap"],
                    clap_sha256=facts["clap_sha256"],
                    settings=facts["settings"],
                )
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no such file; make it with scripts/precompute_song_describer_clap_embeddings.py"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: is no .npz of precomputed embeddings ({error}); make it again"
            ) from error


def list_recordings(folder: str | Path) -> list[Path]:
    """All audio files under a folder, sorted.

    Raises:
        DataError: the folder is missing or holds none.
    """
    directory = AudioDirectory(id="folder", path=str(folder))
    config = AudioDirDataset(dataset_type="audio_dir", datasets=[directory])
    return [item.path for item in TrackIndex.from_config(config)]


def embed_recordings(
    paths: Sequence[Path], clap: ClapEmbedder, *, max_seconds: float | None = None
) -> tuple[dict[Path, NDArray[np.float32]], dict[Path, str]]:
    """Embeddings ``(D,)`` by path, and by path why a file could not be embedded.

    Args:
        max_seconds: how much of each file is heard, from its start; ``None`` for all of it.
    """
    rows: dict[Path, NDArray[np.float32]] = {}
    failed: dict[Path, str] = {}
    remaining = track(paths, "embedding audio", total=len(paths))
    while group := list(islice(remaining, clap.batch_size)):
        decoded: dict[Path, torch.Tensor] = {}
        for path in group:
            try:
                audio, _ = read_audio(path, duration_seconds=max_seconds, sample_rate=clap.sample_rate)
                if audio.shape[-1] == 0 or not torch.isfinite(audio).all():
                    raise AudioError(f"{path}: holds no samples, or samples that are not finite")
                decoded[path] = audio.mean(0, keepdim=True)
            except (AudioError, OSError) as error:
                failed[path] = str(error)
        embedded = clap.embed_audio(list(decoded.values()), clap.sample_rate).numpy()
        rows.update(zip(decoded, embedded, strict=True))
    return rows, failed


def reference_from_folder(
    folder: str | Path, clap: ClapEmbedder, *, max_seconds: float | None = None
) -> ReferenceSet:
    """Embed a folder of real recordings; without prompts. Files that cannot be read are warned of.

    Raises:
        DataError: not one file can be embedded.
    """
    paths = list_recordings(folder)
    rows, failed = embed_recordings(paths, clap, max_seconds=max_seconds)
    if not rows:
        raise DataError(
            f"{folder}: none of {len(paths)} recordings can be read: {next(iter(failed.values()))}"
        )
    if failed:
        first = next(iter(failed.values()))
        warn(f"{folder}: {len(failed)} of {len(paths)} recordings are left out: {first}")
    return ReferenceSet(
        audio_embeddings=np.stack(list(rows.values())),
        text_embeddings=np.zeros((0, clap.dim), np.float32),
        prompts=(),
        track_ids=tuple(path.relative_to(Path(folder).absolute()).as_posix() for path in rows),
        clap=clap.name,
        clap_sha256=clap.weights_sha256,
        settings={"folder": str(folder), "max_seconds": max_seconds, "failed": len(failed)},
    )
