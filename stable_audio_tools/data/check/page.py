"""A check as a page: figures, how they are spread, and the faulty tracks to listen to."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from stable_audio_tools.audio.files import read_audio, save_audio
from stable_audio_tools.audio.plots import histogram_png
from stable_audio_tools.audio.transforms import resample, set_channels
from stable_audio_tools.data.check.kinds import KINDS
from stable_audio_tools.data.check.measure import FileFacts, Measurement
from stable_audio_tools.data.check.problems import Problem
from stable_audio_tools.data.check.run import CheckReport
from stable_audio_tools.data.check.summary import printable, summary_of
from stable_audio_tools.data.leakage import RULES
from stable_audio_tools.data.sources import Source, probe_source
from stable_audio_tools.errors import DataError
from stable_audio_tools.report.page import Card, Cell, Page, cards, image, player, table, text
from stable_audio_tools.runtime.progress import track

_ROWS = 100
"""Of a table; ``files.jsonl`` and ``summary.json`` have the rest."""

_PLAYERS = 4
_EXCERPT_SECONDS = 8.0
_EXCERPT_RATE = 44100
_TO_HEAR = (
    *("clipped", "anti-phase", "dead-channel", "dc-offset", "quiet"),
    *("mostly-silent", "short", "duplicate", "leak"),
)
_PLOTS = {
    "seconds": ("Length", "seconds"),
    "loudness_lufs": ("Integrated loudness", "LUFS"),
    "peak_dbfs": ("Peak", "dBFS"),
    "correlation": ("Correlation of left and right", "1 is mono, -1 cancels out"),
}


def write_page(report: CheckReport, path: Path) -> Path:
    """Write the page, which is one file with all pictures and excerpts in it; returns its path."""
    facts = summary_of(report)
    page = Page(
        f"What is in {report.title}",
        f"{facts['tracks']} tracks, {facts['hours']:.2f} hours, {facts['gigabytes']:.2f} GB. "
        f"{facts['readable']} can be decoded, {facts['with_prompt']} have a prompt, "
        f"{facts['to_leave_out']} are to be left out.",
    )
    page.section("Figures", _figures(facts), *map(text, report.notes))
    plots = _plots([found.measured for found in report.facts if found.measured is not None])
    if plots:
        page.section("How they are spread", cards(plots))
    page.section("Problems", *_overview(report.problems))
    if report.leaks:
        page.section("Too close to the evaluation set", *_leaks(report))
    for kind, about in KINDS.items():
        found = [item for item in report.problems if item.kind == kind]
        if found and kind != "leak":
            page.section(f"{kind}: {len(found)}", text(f"Each of these {about.meaning}."), *_told(found))
    excerpts = _excerpts(report)
    if excerpts:
        about_them = f"The first {_PLAYERS} of each kind, {_EXCERPT_SECONDS:.0f} seconds where it shows."
        page.section("To listen to", text(about_them), cards(excerpts))
    page.section("Tracks", *_tracks(report))
    return page.write(path)


def _figures(facts: dict[str, object]) -> Markup:
    rows: list[tuple[Cell, ...]] = []
    for name in ("formats", "sample_rates", "channels"):
        counts = facts[name]
        assert isinstance(counts, dict)
        listed = ", ".join(f"{value}: {count}" for value, count in counts.items()) or "none"
        rows.append((name.replace("_", " "), listed))
    for name in (
        "dual_mono",
        "peaks_over_full_scale",
        "silence_hours",
        "excluded_before",
        "evaluation_tracks",
    ):
        value = facts[name]
        if value is not None:
            rows.append((name.replace("_", " "), str(value)))
    spread = facts["spread"]
    assert isinstance(spread, dict)
    for name, values in spread.items():
        if values:
            label = f"{_PLOTS[name][0]} ({_PLOTS[name][1]}): least, 5 %, middle, 95 %, most"
            rows.append((label, ", ".join(f"{value:g}" for value in values)))
    return table(("", "found"), rows)


def _plots(measured: Sequence[Measurement]) -> list[Card]:
    made = []
    for name, (title, unit) in _PLOTS.items():
        values = [float(value) for item in measured if (value := getattr(item, name)) is not None]
        if values:
            png = histogram_png(values, xlabel=unit, ylabel="tracks", width_px=480, height_px=220)
            made.append(Card(title, [image(png, f"histogram of {title.lower()}")]))
    return made


def _overview(problems: Sequence[Problem]) -> list[Markup]:
    if not problems:
        return [text("None were found.")]
    counts = {kind: sum(item.kind == kind for item in problems) for kind in KINDS}
    rows = [
        (kind, counts[kind], about.meaning, "left out" if about.excluded else "to look at")
        for kind, about in KINDS.items()
        if counts[kind]
    ]
    return [table(("kind", "tracks", "such a track", "by --fix"), rows)]


def _leaks(report: CheckReport) -> list[Markup]:
    counts = {rule: len({leak.row for leak in report.leaks if leak.rule == rule}) for rule in RULES}
    rules = [(rule, counts[rule], RULES[rule]) for rule in RULES if counts[rule]]
    found = [item for item in report.problems if item.kind == "leak"]
    together = f"{len(found)} tracks; one that several rules meet counts in each."
    return [text(together), table(("rule", "tracks", "it is"), rules), *_told(found)]


def _told(problems: Sequence[Problem]) -> list[Markup]:
    rows = [(printable(item.name), printable(item.detail)) for item in problems[:_ROWS]]
    blocks = [table(("track", "what was found"), rows)]
    if len(problems) > _ROWS:
        blocks.append(text(f"And {len(problems) - _ROWS} more, in summary.json."))
    return blocks


def _tracks(report: CheckReport) -> list[Markup]:
    rows: list[tuple[Cell, ...]] = []
    faults: dict[int, list[str]] = {}
    for problem in report.problems:
        if problem.row is not None:
            faults.setdefault(problem.row, []).append(problem.kind)
    for item, facts, known in list(zip(report.index, report.facts, report.known, strict=True))[:_ROWS]:
        found = facts.measured
        figures: tuple[Cell, ...] = ("", "", "", "", "")
        if found is not None:
            figures = (
                f"{found.seconds:.1f}",
                f"{found.sample_rate}",
                f"{found.channels}",
                "" if found.loudness_lufs is None else f"{found.loudness_lufs:.1f}",
                "" if found.peak_dbfs is None else f"{found.peak_dbfs:.1f}",
            )
        kinds = ", ".join(dict.fromkeys(faults.get(item.index, [])))
        rows.append((printable(item.sample_id), *figures, known.prompt[:160], kinds))
    headers = ("track", "seconds", "Hz", "channels", "LUFS", "peak dBFS", "prompt", "problems")
    more = len(report.index) - len(rows)
    return [table(headers, rows), *([text(f"And {more} more, in files.jsonl.")] if more else [])]


def _excerpts(report: CheckReport) -> list[Card]:
    chosen: list[Problem] = []
    for kind in _TO_HEAR:
        chosen += [item for item in report.problems if item.kind == kind and item.row is not None][:_PLAYERS]
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for item in track(chosen, "excerpts") if chosen else []:
            assert item.row is not None
            try:
                sound = _excerpt(
                    report.index[item.row].source,
                    report.facts[item.row],
                    item.kind,
                    Path(folder) / "excerpt.ogg",
                )
            except DataError as error:  # it was there when it was measured
                made.append(Card(f"{item.kind}: {printable(item.name)}", [text(str(error))]))
                continue
            made.append(
                Card(
                    f"{item.kind}: {printable(item.name)}", [player(sound, item.name)], printable(item.detail)
                )
            )
    return made


def _excerpt(source: Source, facts: FileFacts, kind: str, target: Path) -> Path:
    """The seconds of a file in which ``kind`` is heard, as Ogg Vorbis at ``target``."""
    found = facts.measured
    start = 0.0
    if found is not None:
        start = max(0.0, min(found.seconds / 3, found.seconds - _EXCERPT_SECONDS))
        if kind == "clipped" and found.first_clip_seconds is not None:
            start = max(0.0, found.first_clip_seconds - 1.0)
    audio, rate = read_audio(probe_source(source), offset_seconds=start, duration_seconds=_EXCERPT_SECONDS)
    audio = resample(audio, rate, _EXCERPT_RATE)
    return save_audio(target, set_channels(audio, min(2, audio.shape[0])), _EXCERPT_RATE)
