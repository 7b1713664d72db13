"""``sat dedup``: find duplicate tracks and write the list that training leaves out."""

from __future__ import annotations

from pathlib import Path

import typer

from stable_audio_tools.errors import UsageError


def dedup(
    dataset_config: Path = typer.Option(None, help="Dataset config (JSON)."),
    dataset_dir: Path = typer.Option(None, help="Or a folder of audio files."),
    output_dir: Path = typer.Option(Path("outputs/dac_dedup"), help="Where the lists go."),
    model_path: str = typer.Option("descript/dac_44khz", help="DAC: a Hugging Face name or folder."),
    device: str = typer.Option(None, help="Device of the codec: auto, cpu, cuda, cuda:N or mps."),
    similarity_device: str = typer.Option("cpu", help="Device that compares histograms."),
    similarity_threshold: float = typer.Option(
        0.9, help="Cosine of code histograms from which a pair is looked at; alignment in time then decides."
    ),
    histogram_mode: str = typer.Option("per-codebook", help="per-codebook or global."),
    max_audio_seconds: float = typer.Option(120.0, help="How much of each track is heard; 0 is all of it."),
    chunk_seconds: float = typer.Option(10.0, help="Audio per pass of the codec."),
    batch_size: int = typer.Option(4, help="Chunks per pass of the codec."),
    num_workers: int = typer.Option(4, help="Threads that decode ahead."),
    verify: bool = typer.Option(True, help="Confirm candidates by aligning them in time."),
    min_correlation: float = typer.Option(
        0.85, help="Agreement of onsets from which a pair is one recording."
    ),
) -> None:
    """Find duplicates by DAC code histograms, confirm them in time, and write exclude_paths.txt.

    Also writes similar_pairs.jsonl (the evidence), failed_files.json and summary.json. A run that was
    killed goes on where it stopped.
    """
    if (dataset_config is None) == (dataset_dir is None):
        raise UsageError("give exactly one of --dataset-config and --dataset-dir")
    from stable_audio_tools.data.index import TrackIndex
    from stable_audio_tools.dedup.run import run_dedup
    from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

    if dataset_config is not None:
        config, base_dir = read_dataset_config(dataset_config), dataset_config.parent
    else:
        folder = {"id": dataset_dir.name or "audio", "path": str(dataset_dir)}
        config, base_dir = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [folder]}), None
    run_dedup(
        TrackIndex.from_config(config, base_dir=base_dir, apply_excludes=False),
        output_dir,
        model_path=model_path,
        device=device,
        similarity_device=similarity_device,
        similarity_threshold=similarity_threshold,
        histogram_mode=histogram_mode,
        max_audio_seconds=max_audio_seconds or None,
        chunk_seconds=chunk_seconds,
        batch_size=batch_size,
        num_workers=num_workers,
        verify=verify,
        min_correlation=min_correlation,
    )
