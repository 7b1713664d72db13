"""The page of a dedup run: pairs to listen to, each with its evidence, the doubtful ones first."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
from markupsafe import Markup
from torch import Tensor

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.audio.plots import spectrogram_png
from stable_audio_tools.audio.transforms import peak_normalize, set_channels
from stable_audio_tools.data.index import Track
from stable_audio_tools.data.sources import Source, probe_source
from stable_audio_tools.dedup.clusters import KEEP_RULE
from stable_audio_tools.dedup.matching import Pair
from stable_audio_tools.dedup.outputs import DedupSummary
from stable_audio_tools.errors import DataError
from stable_audio_tools.report.page import Card, Cell, Page, cards, image, player, table, text
from stable_audio_tools.runtime.progress import track

_MOST_PAIRS = 40
"""Of each kind on the page; 8 s of a pair are 150 kB of it."""

_WITH_PICTURES = 6
"""Pairs of each kind that have spectrograms, which are most of the time that the page takes."""

_HEARD_SECONDS = 8.0
_MOST_ROWS = 200
_BLOCK = 16_384


def write_page(
    path: Path,
    tracks: Sequence[Track],
    names: Sequence[str],
    summary: DedupSummary,
    pairs: Sequence[Pair],
    kept: Mapping[int, int],
) -> None:
    """Write the page in one step, readable without a network."""
    page = Page("Duplicates", f"{summary.tracks} tracks, {len(summary.groups)} groups of one recording.")
    page.section("In short", _overview(summary), text(f"Kept of each group: {KEEP_RULE}."))
    same = sorted((pair for pair in pairs if pair.duplicate and pair.alignment), key=_weight)
    other = sorted((pair for pair in pairs if not pair.duplicate), key=_weight, reverse=True)
    if same:
        page.section(
            "Called one recording",
            text(f"The weakest evidence first, {min(len(same), _MOST_PAIRS)} of {len(same)} pairs."),
            *_pairs(same[:_MOST_PAIRS], tracks, names, kept),
        )
    if other:
        page.section(
            "Looked at and kept apart",
            text(f"The strongest evidence first, {min(len(other), _MOST_PAIRS // 2)} of {len(other)} pairs."),
            *_pairs(other[: _MOST_PAIRS // 2], tracks, names, kept),
        )
    if summary.groups:
        page.section("Groups", *_groups(summary))
    if summary.flagged or summary.failed:
        page.section("Nothing to compare", *_left_out(summary))
    page.write(path)


def _weight(pair: Pair) -> tuple[float, int, int]:
    """How much speaks for one recording; ties by position."""
    found = pair.alignment
    weight = found.agreement + found.correlation if found else pair.similarity or 0.0
    return weight, pair.a, pair.b


def _overview(summary: DedupSummary) -> Markup:
    return table(
        ["", "tracks"],
        [
            ["looked at", summary.tracks],
            ["excluded", len(summary.excluded)],
            ["of these, because of an evaluation track", len(summary.evaluation_twins)],
            ["exact copies", summary.exact_copies],
            ["flagged: silent, constant or anti-phase", len(summary.flagged)],
            ["unreadable", len(summary.failed)],
        ],
    )


def _pairs(
    pairs: Sequence[Pair], tracks: Sequence[Track], names: Sequence[str], kept: Mapping[int, int]
) -> list[Markup]:
    return [
        _pair(pair, tracks, names, kept, pictures=number < _WITH_PICTURES)
        for number, pair in enumerate(track(pairs, "page"))
    ]


def _pair(
    pair: Pair, tracks: Sequence[Track], names: Sequence[str], kept: Mapping[int, int], *, pictures: bool
) -> Markup:
    """Both tracks where they lie over each other, and what speaks for and against."""
    found = pair.alignment
    offset = found.offset_seconds if found else 0.0
    speed = found.speed if found else 1.0
    covered = found.overlap_seconds if found else 0.0
    start = max(offset, 0.0) + max(0.0, (covered - _HEARD_SECONDS) / 2)  # the middle of what both have
    begins = (start, max(0.0, (start - offset) / speed))
    shown = []
    for position, begin in zip((pair.a, pair.b), begins, strict=True):
        name, source = names[position], tracks[position].source
        role = "not in a group"
        if pair.duplicate:
            role = "kept" if kept[position] == position else "excluded"
        shown.append(Card(name, _sound(source, begin, name, pictures), f"{role}, from {begin:.1f} s"))
    shown.append(Card("Evidence", [_evidence(pair)]))
    return cards(shown)


def _evidence(pair: Pair) -> Markup:
    rows: list[list[Cell]] = []
    if pair.similarity is not None:
        rows.append(["cosine of code histograms", f"{pair.similarity:.3f}"])
    if pair.votes is not None:
        rows.append(["hashes found", str(pair.votes)])
    if pair.alignment is not None:
        found = pair.alignment
        rows += [
            ["landmarks that agree", f"{found.agreement:.2f}"],
            ["correlation of onsets", f"{found.correlation:.2f}"],
            ["hashes on one line", str(found.matches)],
            ["offset", f"{found.offset_seconds:+.2f} s"],
            ["both cover", f"{found.overlap_seconds:.1f} s, {found.coverage:.0%} of the shorter"],
            ["speed, pitch", f"x {found.speed:.3f}, {round(found.semitones, 2) + 0.0:+.2f} semitones"],
        ]
    return table(["", ""], rows)


def _sound(source: Source, begin: float, label: str, pictures: bool) -> list[Markup]:
    """Player and spectrogram of a few seconds of a file; a word in their place if it cannot be read."""
    try:
        info = probe_source(source)
        rate = min(info.sample_rate, 32_000)
        audio, rate = read_audio(
            info, offset_seconds=begin, duration_seconds=_HEARD_SECONDS, sample_rate=rate
        )
        if audio.shape[-1] == 0:
            return [text("the file is shorter than it was")]
        audio = peak_normalize(set_channels(audio, 1), 0.9)
        heard = player(_as_ogg(audio, rate), label, "audio/ogg")
        if not pictures:
            return [heard]
        picture = spectrogram_png(audio, rate, width_px=300, height_px=120)
        return [image(picture, f"spectrogram of {label}"), heard]
    except DataError as error:
        return [text(str(error))]


def _as_ogg(audio: Tensor, rate: int) -> bytes:
    """Mono ``(1, T)`` as Ogg Vorbis, a tenth of the bytes."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, format="OGG", subtype="VORBIS") as file:
        for begin in range(0, audio.shape[-1], _BLOCK):  # libvorbis overflows its stack on long writes
            file.write(audio[0, begin : begin + _BLOCK].numpy())
    return stream.getvalue()


def _groups(summary: DedupSummary) -> list[Markup]:
    excluded = set(summary.excluded)
    rows = []
    for group in summary.groups[:_MOST_ROWS]:
        out = [name for name in group if name in excluded]
        rows.append([", ".join(name for name in group if name not in excluded), ", ".join(out)])
    shown = text(f"{len(rows)} of {len(summary.groups)} groups; all are in summary.json.")
    return [shown, table(["kept", "excluded"], rows)]


def _left_out(summary: DedupSummary) -> list[Markup]:
    rows = [[name, why] for name, why in (*summary.flagged.items(), *summary.failed.items())]
    return [
        text("Flagged tracks are in no group: silence is like all other silence. They stay in the dataset."),
        table(["track", "why"], rows[:_MOST_ROWS]),
    ]
