"""``sat dedup``: find duplicate tracks and write the list that training leaves out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.errors import UsageError

if TYPE_CHECKING:
    from stable_audio_tools.data.index import Track, TrackIndex

_DEFAULT = DedupSettings()
_NO_MODEL = "none"
_TRACK_NUMBER = re.compile(r"(?:^|/)(\d+)(?:\.low|\.2min)?\.\w+$")


def dedup(
    dataset_config: Path = typer.Option(None, help="Dataset config (JSON)."),
    dataset_dir: Path = typer.Option(None, help="Or a folder of audio files."),
    output_dir: Path = typer.Option(Path("outputs/dac_dedup"), help="Where the lists go."),
    model_path: str = typer.Option(
        _DEFAULT.model_path, help="DAC: a Hugging Face name or folder; none: search by landmarks only."
    ),
    device: str = typer.Option(None, help="Device of the codec: auto, cpu, cuda, cuda:N or mps."),
    similarity_device: str = typer.Option(
        _DEFAULT.similarity_device, help="Device that compares histograms."
    ),
    similarity_threshold: float = typer.Option(
        _DEFAULT.similarity_threshold,
        help="Cosine of code histograms from which a pair is looked at; alignment in time then decides.",
    ),
    histogram_mode: str = typer.Option(_DEFAULT.histogram_mode, help="per-codebook or global."),
    max_audio_seconds: float = typer.Option(
        _DEFAULT.max_audio_seconds, help="How much of each track the codec hears; 0 is all of it."
    ),
    chunk_seconds: float = typer.Option(_DEFAULT.chunk_seconds, help="Audio per pass of the codec."),
    batch_size: int = typer.Option(_DEFAULT.batch_size, help="Chunks per pass of the codec."),
    num_workers: int = typer.Option(_DEFAULT.num_workers, help="Threads that decode."),
    verify: bool = typer.Option(
        _DEFAULT.verify, help="Search by landmarks too, and confirm candidates by aligning them in time."
    ),
    min_correlation: float = typer.Option(
        _DEFAULT.min_correlation, help="Agreement of onsets from which a pair is one recording."
    ),
    min_agreement: float = typer.Option(
        _DEFAULT.min_agreement, help="Share of landmarks in common from which a pair is one recording."
    ),
    min_overlap: float = typer.Option(
        _DEFAULT.min_overlap, help="Share of the shorter track that both must cover."
    ),
    max_candidates: int = typer.Option(
        _DEFAULT.max_candidates, help="Pairs of a track that are looked at, of each kind of search."
    ),
    max_index_gib: float = typer.Option(
        _DEFAULT.max_index_gib, help="Memory for the index; above it fewer landmarks are searched."
    ),
    evaluation_config: Path = typer.Option(
        None, help="Dataset config of tracks that training must not hear: their copies are excluded too."
    ),
    evaluation_dir: Path = typer.Option(None, help="Or a folder of such tracks."),
    licenses: Path = typer.Option(
        None, help="audio_licenses.txt of MTG-Jamendo: of equal copies, keep the one that allows most."
    ),
) -> None:
    """Find duplicates by landmarks and DAC code histograms, confirm them in time, write exclude_paths.txt.

    Also writes similar_pairs.jsonl (the evidence), pairs.html (pairs to listen to), failed_files.json and
    summary.json. A run that was killed goes on where it stopped.
    """
    settings = DedupSettings(
        model_path=None if model_path == _NO_MODEL else model_path,
        device=device,
        similarity_device=similarity_device,
        similarity_threshold=similarity_threshold,
        histogram_mode=histogram_mode,
        max_audio_seconds=max_audio_seconds or None,
        chunk_seconds=chunk_seconds,
        batch_size=batch_size,
        num_workers=num_workers,
        verify=verify,
        max_candidates=max_candidates,
        max_index_gib=max_index_gib,
        min_correlation=min_correlation,
        min_agreement=min_agreement,
        min_overlap=min_overlap,
    )
    index = _tracks(dataset_config, dataset_dir, "dataset")
    if index is None:
        raise UsageError("give exactly one of --dataset-config and --dataset-dir")
    evaluation = _tracks(evaluation_config, evaluation_dir, "evaluation")
    codes = _license_codes(licenses, index) if licenses is not None else None
    from stable_audio_tools.dedup.run import run_dedup

    run_dedup(index, output_dir, settings, evaluation=evaluation or (), licenses=codes)


def _tracks(config_path: Path | None, folder: Path | None, kind: str) -> TrackIndex | None:
    """The tracks of a config or a folder; None where neither is given."""
    if config_path is None and folder is None:
        return None
    if config_path is not None and folder is not None:
        raise UsageError(f"give exactly one of --{kind}-config and --{kind}-dir")
    from stable_audio_tools.data.webdataset import recordings_of
    from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

    if config_path is not None:
        config, base_dir = read_dataset_config(config_path), config_path.parent
    else:
        assert folder is not None
        entry = {"id": folder.name or "audio", "path": str(folder)}
        config, base_dir = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]}), None
    return recordings_of(config, base_dir=base_dir, apply_excludes=False)


def _license_codes(path: Path, tracks: Sequence[Track]) -> dict[str, str]:
    """Licence codes by sample id; a track is known by the number that is its file's name."""
    from stable_audio_tools.data.licenses import read_licenses

    known = read_licenses(path)
    numbers = {item.sample_id: _TRACK_NUMBER.search(item.relpath) for item in tracks}
    codes = {
        name: known[int(match[1])].code for name, match in numbers.items() if match and int(match[1]) in known
    }
    if not codes:
        raise UsageError(
            f"--licenses {path}: names none of the {len(tracks)} tracks; expected their numbers as file"
            " names, as in 01/1000101.mp3"
        )
    return codes
