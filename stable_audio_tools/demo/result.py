"""What a demo was told to do, what its stages found, and the short table of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.jamendo import JamendoFolder
from stable_audio_tools.demo.catalogue import CatalogueSettings
from stable_audio_tools.schema.reader import parse_dataset_config

METADATA_MODULE = (
    Path(__file__).parents[1] / "configs" / "dataset_configs" / "custom_metadata" / "custom_md_fma.py"
)


CONTROL = "control"
"""Name of the copy of a training track that is handed in as a clip."""


@dataclass(frozen=True)
class DemoSettings:
    """How much to do. ``clips`` prompts are taken from the catalogue, each by another artist."""

    catalogue: CatalogueSettings = field(default_factory=CatalogueSettings)
    steps: int = 160
    batch_size: int = 4
    clips: int = 6
    sampler_steps: int = 40
    cfg_scale: float = 4.0
    seed: int = 42


@dataclass
class DemoResult:
    """What the stages found, for the table and the page. Paths are those of the files they left."""

    folder: Path
    settings: DemoSettings
    catalogue: Path
    own_dataset: bool
    seconds: dict[str, float] = field(default_factory=dict)
    dedup: dict[str, Any] = field(default_factory=dict)
    planted: list[dict[str, str]] = field(default_factory=list)
    run_folder: Path = Path()
    checkpoint: Path = Path()
    asked: list[dict[str, Any]] = field(default_factory=list)
    clips: list[Path] = field(default_factory=list)
    ranking: list[dict[str, str]] = field(default_factory=list)
    artists: list[dict[str, str]] = field(default_factory=list)
    exported: list[dict[str, str]] = field(default_factory=list)
    control: list[dict[str, str]] = field(default_factory=list)
    copies: list[dict[str, str]] = field(default_factory=list)
    control_track: str = ""
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def audio(self) -> Path:
        """The catalogue's recordings."""
        inner = self.catalogue / "audio"
        return inner if inner.is_dir() else self.catalogue

    def dataset_config(self) -> dict[str, Any]:
        """The training set: the catalogue without what dedup excludes."""
        return {
            "dataset_type": "audio_dir",
            "datasets": [
                {
                    "id": "catalogue",
                    "path": str(self.audio.resolve()),
                    "custom_metadata_module": str(METADATA_MODULE),
                }
            ],
            "exclude_paths_file": str((self.folder / "dedup" / "exclude_paths.txt").resolve()),
            "random_crop": True,
            "on_error": "skip" if self.own_dataset else "raise",
        }

    @cached_property
    def training_set(self) -> list[tuple[str, dict[str, Any]]]:
        """Path and metadata of every training track, in the order of the index; known after dedup."""
        tables = JamendoFolder()
        index = TrackIndex.from_config(parse_dataset_config(self.dataset_config()))
        return [(str(track.path), tables.metadata(track.path)) for track in index]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def summary(result: DemoResult) -> list[tuple[str, str, float]]:
    """Stage, what came out, and its seconds: the short table at the end."""
    dedup, scores = result.dedup, result.scores
    found = f"{len(dedup['groups'])} groups, {len(dedup['excluded'])} tracks left out"
    if result.planted:
        found += f"; {planted_found(result)} of {len(result.planted)} planted copies found"
    first = [row for row in result.ranking if row["rank"] == "1"]
    right = sum(row["artist"] == asked["artist"] for row, asked in zip(first, result.asked, strict=True))
    chance = expected_by_chance(result)
    control = result.control[0]["path"] == result.control_track
    lines = {
        "catalogue": f"{dedup['tracks']} tracks",
        "dedup": found,
        "train": f"{result.settings.steps} steps, loss {_last_loss(result)}",
        "generate": f"{len(result.clips)} clips",
        "attribute": f"first track is by the prompt's artist in {right} of {len(first)} clips"
        f" (chance {chance:.1f}); control {'found itself' if control else 'did not find itself'}",
        "evaluate": f"CLAP-FAD {_figure(scores['fad'])}, alignment {_figure(scores['alignment'])}"
        f" (other prompts {_figure(scores['alignment_mismatched'])})",
    }
    return [(name, lines[name], seconds) for name, seconds in result.seconds.items()]


def planted_found(result: DemoResult) -> int:
    """How many planted copies dedup put into one group with their originals."""
    groups = [set(group) for group in result.dedup["groups"]]
    pairs = [{f"catalogue/{row['original']}", f"catalogue/{row['duplicate']}"} for row in result.planted]
    return sum(any(pair <= group for group in groups) for pair in pairs)


def artists_found(result: DemoResult) -> int:
    """For how many clips the largest sum is that of the artist whose prompt was asked."""
    first = [row["group"] for row in result.artists if row["rank"] == "1"]
    return sum(name == asked["artist"] for name, asked in zip(first, result.asked, strict=True))


def copies_found(result: DemoResult) -> int:
    """How many copies that were left out of training rank their original first."""
    originals = {f"left-out-{Path(row['duplicate']).stem}": row["original"] for row in result.planted}
    return sum(
        Path(row["path"]) == result.audio.resolve() / originals[Path(row["query"]).stem]
        for row in result.copies
    )


def expected_by_chance(result: DemoResult) -> float:
    """How often a track drawn at random is by the artist of the clip's prompt, summed over clips."""
    by_artist = [str(metadata["artist"]) for _, metadata in result.training_set]
    return sum(by_artist.count(asked["artist"]) / len(by_artist) for asked in result.asked)


def loss_curve(result: DemoResult) -> dict[str, list[float]]:
    """Columns ``step`` and ``loss`` of the run's metrics."""
    rows = [row for row in read_rows(result.run_folder / "metrics.csv") if row.get("train/loss")]
    return {"step": [float(row["step"]) for row in rows], "loss": [float(row["train/loss"]) for row in rows]}


def _last_loss(result: DemoResult) -> str:
    curve = loss_curve(result)["loss"]
    return f"{curve[-1]:.3f}" if curve else "not logged"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
