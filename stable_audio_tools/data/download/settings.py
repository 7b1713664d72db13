"""What can be asked of the two downloads, with the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stable_audio_tools.errors import UsageError

MODES = ("track", "member", "tar")
QUALITIES = ("audio", "audio-low")
SELECTIONS = ("plain", "balanced")
SPLITS = ("all", "train", "validation", "test")
SUBSETS = (
    "raw_30s",
    "autotagging",
    "autotagging_genre",
    "autotagging_instrument",
    "autotagging_moodtheme",
    "autotagging_top50tags",
)

JAMENDO_MIRRORS = (
    "https://cdn.freesound.org/mtg-jamendo,https://essentia.upf.edu/documentation/datasets/mtg-jamendo"
)
JAMENDO_TABLES = (
    "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master,"
    "https://github.com/MTG/mtg-jamendo-dataset/raw/master"
)
SONG_DESCRIBER_MIRRORS = "https://zenodo.org/records/10072001/files,https://zenodo.org/record/10072001/files"

_CHOICE, _WAY = "What to take", "How to get it"


def _setting(default: Any, panel: str, text: str) -> Any:
    return field(default=default, metadata={"panel": panel, "help": text})


@dataclass(frozen=True)
class TransferSettings:
    """How files are fetched, whatever they are."""

    workers: int = _setting(8, _WAY, "Transfers at once.")
    retries: int = _setting(5, _WAY, "Stumbles in a row over one file before a mirror is given up for it.")
    retry_seconds: float = _setting(
        1.0, _WAY, "Rest of a mirror after a stumble; doubles each time, up to a minute."
    )
    timeout_seconds: float = _setting(30.0, _WAY, "How long to wait for a connection or the next bytes.")
    dry_run: bool = _setting(False, _WAY, "Only say what would be fetched and how much it is.")

    def __post_init__(self) -> None:
        for name in ("workers", "retry_seconds", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f"--{name.replace('_', '-')}: expected more than 0, found {getattr(self, name)}"
                )
        if self.retries < 0:
            raise UsageError(f"--retries: expected 0 or more, found {self.retries}")


@dataclass(frozen=True)
class JamendoSettings(TransferSettings):
    """What to take of MTG-Jamendo, and how."""

    target: int | None = _setting(None, _CHOICE, "How many tracks; all that fit the filters by default.")
    quality: str = _setting(
        "audio", _CHOICE, "audio (MP3 of mostly 320 kbit/s, 508 GB in all) or audio-low (mono, 156 GB)."
    )
    subset: str = _setting("raw_30s", _CHOICE, f"The table to choose from: {', '.join(SUBSETS)}.")
    split: str = _setting("all", _CHOICE, "all, train, validation or test of the published splits.")
    split_number: int = _setting(0, _CHOICE, "Which of the five published splits, 0 to 4.")
    tags: str = _setting("", _CHOICE, "Only tracks with any of these tags: jazz,mood/theme---calm.")
    license: str = _setting(
        "any",
        _CHOICE,
        "Only these licences: codes (by,by-sa,by-nc-sa,...), no-nc (commercial use allowed), no-nd"
        " (derived works allowed).",
    )
    selection: str = _setting(
        "plain", _CHOICE, "plain draws evenly; balanced gives each tag its turn, rare ones first."
    )
    seed: int = _setting(42, _CHOICE, "Seed of the choice.")
    mode: str = _setting(
        "track",
        _WAY,
        "track: each file by itself; member: byte ranges out of the tars; tar: whole tars, as many as hold"
        " the target.",
    )
    keep_tars: bool = _setting(False, _WAY, "Keep the tars of --mode tar after unpacking.")
    base_url: str = _setting(JAMENDO_MIRRORS, _WAY, "Mirrors of the audio, the best first, with commas.")
    metadata_url: str = _setting(JAMENDO_TABLES, _WAY, "Mirrors of the repository of tables.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("--quality", self.quality, QUALITIES)
        _one_of("--subset", self.subset, SUBSETS)
        _one_of("--split", self.split, SPLITS)
        _one_of("--selection", self.selection, SELECTIONS)
        _one_of("--mode", self.mode, MODES)
        if self.target is not None and self.target < 1:
            raise UsageError(f"--target: expected 1 or more, found {self.target}")
        if not 0 <= self.split_number <= 4:
            raise UsageError(f"--split-number: expected 0 to 4, found {self.split_number}")


@dataclass(frozen=True)
class SongDescriberSettings(TransferSettings):
    """How to get Song Describer."""

    keep_zip: bool = _setting(False, _WAY, "Keep audio.zip after unpacking.")
    base_url: str = _setting(SONG_DESCRIBER_MIRRORS, _WAY, "Mirrors, the best first, with commas.")
    checksums: str = _setting(
        "", _WAY, "Lines 'MD5 name' for a mirror that packed the files anew; by default those of Zenodo."
    )


def listed(text: str) -> list[str]:
    """``a, b`` as ``[a, b]``."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag}: {value!r} is not known; expected {', '.join(known)}")
