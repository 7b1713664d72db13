"""A feature store: a folder with one row of numbers per track, that can be killed and continued.

::

    meta.json       what the rows are and what they were made from; a folder without it is no store
    features.npy    (N, D) float32 or float16, memory-mapped
    scales.npy      (N, M) float32; columns of a measurement are features * scale: 1, or for float16 the
                    largest of them in the row
    latents.npy     (N, E) float32: mean and deviation of the latents over time, for the similarity baseline
    done.npy        (N,) uint8: 1 where the row is whole
    tracks.jsonl    what each row is: sample_id, path, prompt, artist, album, title, ...

Rows are on the disk before they are marked done, so a kill at any moment costs at most the batch in work.

Several processes, also of several machines on one file system, fill a store together. The folder appears
whole or not at all, each process writes the bytes of its own rows and nothing beside them, and says what they
are in a file of its own, ``tracks-<i>-of-<n>.jsonl``; whoever finds all rows done puts these together.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.errors import DataError, StoreError
from stable_audio_tools.runtime.files import atomic_path, write_json, write_text

FORMAT = "stable-audio-tools/features@2"

Stamp = Mapping[str, Any]
"""What rows were made from: hashes and settings by name. Stores with different stamps never mix."""

SHARED_STAMPS = ("model_config", "checkpoint", "pretransform", "adapter", "settings")
"""What two stores must have in common for their rows to be compared."""


class FeatureStore:
    """Rows of features on disk. Use :meth:`create` to make or continue one and :meth:`open` to read one."""

    def __init__(self, folder: Path, meta: dict[str, Any], part: str = "tracks.jsonl") -> None:
        self.folder = folder
        self.meta = meta
        self._part = part
        self._features = np.load(folder / "features.npy", mmap_mode="r")
        self._scales = np.load(folder / "scales.npy", mmap_mode="r")
        self._latents = np.load(folder / "latents.npy", mmap_mode="r")
        self._weights: Tensor | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        sample_ids: Sequence[str],
        dim: int,
        latent_dim: int,
        stamp: Stamp,
        dtype: str = "float32",
        measurements: int = 1,
        info: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> FeatureStore:
        """Make the store, or continue the one that is there.

        Args:
            sample_ids: one per row, in row order.
            dim: numbers per row.
            latent_dim: numbers per row of ``latents.npy``.
            stamp: what the rows are made from.
            dtype: ``float32`` or ``float16``.
            measurements: how many parts a row has, of the same length and each of a size of its own.
            info: more for ``meta.json`` that is not compared.
            part: which process of how many this is.

        Raises:
            StoreError: there is a store in ``folder`` that was made from something else; it names what.
        """
        folder = Path(folder)
        rows = {
            "count": len(sample_ids),
            "dim": dim,
            "latent_dim": latent_dim,
            "dtype": dtype,
            "measurements": measurements,
        }
        if not (folder / "meta.json").exists():
            meta = {"format": FORMAT, "stamp": dict(stamp), "rows": rows, **(info or {})}
            _make(folder, {**meta, "sample_ids": list(sample_ids)})
        meta = _read_meta(folder)
        _compare(folder, meta, {**stamp, "rows": rows}, {**meta["stamp"], "rows": meta["rows"]}, "continued")
        name = "tracks.jsonl" if part[1] == 1 else f"tracks-{part[0]:05d}-of-{part[1]:05d}.jsonl"
        return cls(folder, meta, name)

    @classmethod
    def open(cls, folder: str | Path) -> FeatureStore:
        """Read a finished store.

        Raises:
            StoreError: there is none, or rows are missing.
        """
        store = cls.read(folder)
        missing = store.missing()
        if missing:
            raise StoreError(
                f"{store.folder}: {len(missing)} of {len(store)} rows are missing, the first is"
                f" {store.sample_ids[missing[0]]}; run the extraction again, it continues where it stopped"
            )
        return store

    @classmethod
    def read(cls, folder: str | Path) -> FeatureStore:
        """Read a store as far as it is done; rows that are :meth:`missing` are zero or stale.

        Raises:
            StoreError: there is none.
        """
        return cls(Path(folder), _read_meta(Path(folder)))

    def __len__(self) -> int:
        return int(self.meta["rows"]["count"])

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return int(self.meta["rows"]["dim"])

    @property
    def measurements(self) -> int:
        """Parts of a row, of the same length."""
        return int(self.meta["rows"]["measurements"])

    @property
    def sample_ids(self) -> list[str]:
        """What each row is, by id."""
        return list(self.meta["sample_ids"])

    def missing(self) -> list[int]:
        """Rows that are not done, by now and by any process."""
        return np.flatnonzero(np.load(self.folder / "done.npy") == 0).tolist()

    def write(
        self, rows: Sequence[int], features: Tensor, latents: Tensor, records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write whole rows: features (len(rows), D), latent statistics (len(rows), E) and what the rows are.

        Raises:
            DataError: a row holds NaN or infinity; nothing of the batch is written.
        """
        values = features.detach().to("cpu", torch.float32).numpy()
        for row, row_values in zip(rows, values, strict=True):
            if not np.isfinite(row_values).all():
                raise DataError(
                    f"{self.sample_ids[row]}: its gradient is not finite; check the audio file and the"
                    " checkpoint, or extract in float32"
                )
        parts = values.reshape(len(values), self.measurements, -1)
        scales = np.ones(parts.shape[:2], np.float32)
        if self._features.dtype == np.float16:  # squared norms of whole models overflow it
            scales = np.maximum(np.abs(parts).max(axis=2), np.finfo(np.float32).tiny)
        self._put("features", self._features, rows, (parts / scales[..., None]).reshape(values.shape))
        self._put("scales", self._scales, rows, scales)
        self._put("latents", self._latents, rows, latents.detach().to("cpu", torch.float32).numpy())
        with open(self.folder / self._part, "a+b") as stream:
            if _cut_off(stream):  # a line that a kill cut off must not run into the next one
                stream.write(b"\n")
            for row, record in zip(rows, records, strict=True):
                line = json.dumps({"row": row, **record}, ensure_ascii=False, default=str)
                stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._mark(rows)

    def _mark(self, rows: Sequence[int]) -> None:
        done = np.load(self.folder / "done.npy", mmap_mode="r")
        self._put("done", done, rows, np.ones(len(rows)))

    def _put(self, name: str, array: Any, rows: Sequence[int], values: np.ndarray[Any, Any]) -> None:
        """Write the bytes of some rows to the disk.

        Not through the map of the file: it is written in pages, and a page may hold a row of a neighbour on
        another machine.
        """
        cast = np.ascontiguousarray(values, dtype=array.dtype)
        size = cast[:1].nbytes
        with open(self.folder / f"{name}.npy", "r+b") as stream:
            for row, row_values in zip(rows, cast, strict=True):
                stream.seek(array.offset + row * size)
                stream.write(row_values.tobytes())
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> bool:
        """Put ``tracks.jsonl`` together, in row order, if all rows are done; returns whether they are.

        It is the same file however often the run was cut off, and however many processes there were.
        """
        if self.missing():
            return False
        parts = self._parts()
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in self.records()]
        write_text(self.folder / "tracks.jsonl", "\n".join(lines) + "\n")
        for part in parts:
            part.unlink(missing_ok=True)
        return True

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("tracks-*-of-*.jsonl"))

    def records(self) -> list[dict[str, Any]]:
        """What each row is, in row order."""
        found: dict[int, dict[str, Any]] = {}
        # The parts first: who removes one has put it into tracks.jsonl before.
        for path in (*self._parts(), self.folder / "tracks.jsonl"):
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    record = json.loads(line)
                    found[record["row"]] = record
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # empty, or cut off by a kill before its row was marked done
        ids = self.sample_ids
        return [found.get(row, {"row": row, "sample_id": ids[row]}) for row in range(len(self))]

    def weighted(self, weights: Tensor | None) -> FeatureStore:
        """The same store, of which each column is read times its weight, (D,); as it is for None."""
        weighted = copy.copy(self)
        weighted._weights = weights
        return weighted

    def features(self, columns: slice = slice(None)) -> Tensor:
        """Columns of all rows, (N, d) float64."""
        return self._read(slice(None), columns, torch.float64)

    def block(
        self, rows: slice = slice(None), columns: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Some rows and columns, (n, d) float32, in memory of their own."""
        return self._read(rows, columns, torch.float32, device)

    def _read(
        self, rows: slice, columns: slice, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        # as they are on the disk to the device, and there made what they mean
        values = torch.from_numpy(np.array(self._features[rows, columns])).to(device).to(dtype)
        if self._features.dtype == np.float16:
            start, stop, _ = columns.indices(self.dim)
            length = self.dim // self.measurements
            scales = torch.from_numpy(np.array(self._scales[rows])).to(values)
            for part in range(self.measurements):
                own = slice(max(0, part * length - start), max(0, min(stop, (part + 1) * length) - start))
                values[:, own] *= scales[:, part, None]
        return values if self._weights is None else values * self._weights[columns].to(values)

    def latents(self) -> Tensor:
        """Mean and standard deviation of each row's latents over time, (N, E) float64."""
        return torch.from_numpy(np.asarray(self._latents, dtype=np.float64))

    def require_comparable(self, other: FeatureStore) -> None:
        """Check that rows of both stores were made by the same model in the same way.

        Raises:
            StoreError: they were not; the message names what differs.
        """
        mine = {name: self.meta["stamp"].get(name) for name in SHARED_STAMPS}
        theirs = {name: other.meta["stamp"].get(name) for name in SHARED_STAMPS}
        _compare(other.folder, other.meta, mine, theirs, f"scored against {self.folder}")

    def export(self, path: str | Path) -> Path:
        """Write the rows as one ``.npy`` with ``.ids.txt`` and ``.meta.json`` beside it, as others do."""
        path = Path(path).with_suffix(".npy")
        with atomic_path(path) as temporary:
            rows = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=(len(self), self.dim)
            )
            for row in range(len(self)):
                rows[row] = self.block(slice(row, row + 1))[0].numpy()
            rows.flush()
        write_text(path.with_suffix(".ids.txt"), "\n".join(self.sample_ids) + "\n")
        write_json(
            path.with_suffix(".meta.json"), {key: self.meta[key] for key in self.meta if key != "sample_ids"}
        )
        return path


def _make(folder: Path, meta: dict[str, Any]) -> None:
    """An empty store in ``folder``, unless another process makes it first."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder}: is a file; expected a folder for the feature store")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    rows = meta["rows"]
    try:
        for name, shape, kind in (
            ("features", (rows["count"], rows["dim"]), rows["dtype"]),
            ("scales", (rows["count"], rows["measurements"]), "float32"),
            ("latents", (rows["count"], rows["latent_dim"]), "float32"),
            ("done", (rows["count"],), "uint8"),
        ):
            path = temporary / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(kind), shape=shape).flush()
        write_json(temporary / "meta.json", meta)
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, folder)  # onto nothing or an empty folder
    except OSError as error:
        if (folder / "meta.json").exists():
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise StoreError(
                f"{folder}: holds files but no feature store (no meta.json); give an empty folder"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cut_off(stream: BinaryIO) -> bool:
    """Whether a file that is open for appending ends within a line."""
    if stream.seek(0, os.SEEK_END) == 0:
        return False
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) != b"\n"


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(
            f"{folder}: no feature store here ({path.name} is missing); extract features first"
        ) from error
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}: not valid JSON; delete the folder and extract again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise StoreError(f"{path}: not a feature store of this version; expected format {FORMAT!r}")
    return meta


def _compare(folder: Path, meta: dict[str, Any], wanted: Stamp, found: Stamp, verb: str) -> None:
    differences = list(_differences(wanted, found))
    if differences:
        name, ours, theirs = differences[0]
        more = "".join(f", {other[0]}" for other in differences[1:])
        raise StoreError(
            f"{folder}: cannot be {verb}: {name} differs"
            f" (the store has {_short(theirs)}, this run {_short(ours)}){more}"
            f"{' differ too' if more else ''}; use another folder, or the same {name}"
        )


def _differences(wanted: Stamp, found: Stamp, prefix: str = "") -> list[tuple[str, Any, Any]]:
    differences: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*wanted, *found]):
        ours, theirs = wanted.get(name), found.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            differences += _differences(ours, theirs, f"{prefix}{name}.")
        elif ours != theirs:
            differences.append((prefix + name, ours, theirs))
    return differences


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else text[:12] + "..."  # hashes are longer
