"""The page at the end of the demo: what was generated, which tracks shaped it, and how far to trust that."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.audio.plots import lines_png, spectrogram_png
from stable_audio_tools.demo.result import (
    DemoResult,
    artists_found,
    copies_found,
    expected_by_chance,
    loss_curve,
    planted_found,
    summary,
)
from stable_audio_tools.errors import AudioError
from stable_audio_tools.report.page import Card, Page, cards, image, link, player, table, text

_TOP = 3
_CAVEAT = (
    "A score says that changing this track's weight in training would have moved what the model makes here."
    " It is neither a share of authorship nor a proof that the track was in the training set. Scores compare"
    " tracks for one clip, not clips with each other, and are ranked by their squares. These models are tiny"
    " and were tuned for a minute."
)
_ARTISTS = (
    "What a track of the artist scores for the clip on average, over what any track does: 1 is like any"
    " other. Below it the 95 % interval over timesteps, noise and projections. A row shows where the evidence"
    " for one clip lies, not how much of the clip is whose."
)
_COPIES = (
    "These copies were found by dedup and left out of training, yet they score like the recordings that were"
    " trained on. A score tells which tracks would have mattered. It does not certify that a recording was in"
    " the training set."
)
_REPORT = "attribution/report/index.html"


def write_page(result: DemoResult) -> Path:
    """Write ``index.html`` into the demo's folder."""
    page = Page("What shaped these clips?", "Generated clips, and the training tracks that shaped them most.")
    rows = [[stage, outcome, f"{seconds:.0f} s"] for stage, outcome, seconds in summary(result)]
    page.section("In short", table(["stage", "result", "time"], rows))
    page.section("Generated clips and their tracks", text(_CAVEAT), *_clips(result))
    page.section("Artists", *_artists(result))
    page.section("Controls", *_control(result))
    page.section("Duplicates", *_duplicates(result))
    page.section("Fine-tuning", *_training(result))
    page.section("Quality", *_quality(result))
    return page.write(result.folder / "index.html")


def _sound(path: Path, label: str) -> list[Markup]:
    """Spectrogram and player of a file; a word in their place if it cannot be read."""
    try:
        audio, rate = read_audio(path, duration_seconds=30.0)
    except AudioError as error:
        return [text(str(error))]
    return [
        image(spectrogram_png(audio, rate, width_px=360, height_px=180), f"spectrogram of {label}"),
        player(path, label),
    ]


def _clips(result: DemoResult) -> list[Markup]:
    blocks = []
    by_clip: dict[str, list[dict[str, str]]] = {}
    for row in result.ranking:
        by_clip.setdefault(row["query"], []).append(row)
    for clip, asked, ranked in zip(result.clips, result.asked, by_clip.values(), strict=True):
        shown = [
            Card(
                f"“{asked['prompt']}”",
                _sound(clip, clip.stem),
                f"generated; prompt of a track by {asked['artist']}",
            )
        ]
        shown += [
            Card(
                f"{row['rank']}. {row['title'] or row['sample_id']}",
                _sound(Path(row["path"]), row["title"] or row["sample_id"]),
                f"{row['artist']} · score {float(row['score']):+.3g}",
            )
            for row in ranked[:_TOP]
        ]
        blocks.append(cards(shown))
        blocks.append(
            text(_verdict(next(row for row in result.exported if row["clip_id"] == ranked[0]["query"])))
        )
    more = Markup("<p>{}</p>").format(link(_REPORT, "The whole report, a page for each clip"))
    return [*blocks, more]


def _verdict(row: dict[str, str]) -> str:
    """Whether the first track stands out, in words."""
    steady = f"The first track stays first in {float(row['first_share']):.0%} of the resamples"
    if not row["verdict"]:
        return f"{steady}."
    track = f"{row['verdict'].capitalize()} (p = {float(row['p_value']):.3f})"
    artist = row["artist_standing_out"]
    if artist:
        track += f"; the tracks of {artist} together do (p = {float(row['artist_p_value']):.3f})"
    return f"{track}. {steady}."


def _artists(result: DemoResult) -> list[Markup]:
    """Clips down, artists across; the largest figure of each clip is bold."""
    names = sorted({row["group"] for row in result.artists})
    by_clip: dict[str, dict[str, dict[str, str]]] = {}
    for row in result.artists:
        by_clip.setdefault(row["query"], {})[row["group"]] = row
    rows: list[list[str | Markup]] = []
    for asked, found in zip(result.asked, by_clip.values(), strict=True):
        best = max(found, key=lambda name: float(found[name]["times_average"]))
        rows.append([asked["artist"], *(_times(found[name], name == best) for name in names)])
    right = (
        f"The artist whose prompt was asked has the largest sum for {artists_found(result)} of"
        f" {len(result.asked)} clips (chance {expected_by_chance(result):.1f})."
    )
    return [text(right), text(_ARTISTS), table(["prompt of a track by", *names], rows)]


def _times(row: dict[str, str], is_best: bool) -> Markup:
    shown = Markup("<b>{}</b>" if is_best else "{}").format(f"{float(row['times_average']):.2f}")
    if not row["times_average_low"]:
        return shown
    ends = f"{float(row['times_average_low']):.2f} to {float(row['times_average_high']):.2f}"
    return shown + Markup('<br><span class="note">{}</span>').format(ends)


def _control(result: DemoResult) -> list[Markup]:
    found = result.control[0]
    right = found["path"] == result.control_track
    verdict = "ranked first, as it must be" if right else "not ranked first: do not trust the rankings above"
    blocks = [
        text(f"A training track was handed in as if it had been generated. The track itself is {verdict}."),
        table(
            ["rank", "track", "artist", "score"],
            [
                [int(row["rank"]), row["title"], row["artist"], float(row["score"])]
                for row in result.control[:5]
            ],
        ),
    ]
    if result.copies:
        count = f"{copies_found(result)} of {len(result.copies)}"
        blocks.append(text(f"Planted copies that were not trained on: {count} rank their original first."))
        blocks.append(text(_COPIES))
    return blocks


def _duplicates(result: DemoResult) -> list[Markup]:
    groups = [[group[0], ", ".join(group[1:])] for group in result.dedup["groups"]]
    blocks = [text("Found by DAC code histograms, confirmed by aligning the recordings in time.")]
    if groups:
        blocks.append(table(["track", "same recording"], groups))
    if result.planted:
        blocks.append(text(f"Planted copies found: {planted_found(result)} of {len(result.planted)}."))
        blocks.append(
            table(
                ["original", "copy", "how"],
                [[p["original"], p["duplicate"], p["how"]] for p in result.planted],
            )
        )
    return blocks


def _training(result: DemoResult) -> list[Markup]:
    curve = loss_curve(result)
    if len(curve["loss"]) < 2:
        return [text(f"Fine-tuned for {result.settings.steps} steps.")]
    plot = lines_png(
        {"loss": curve["loss"]}, curve["step"], title="Training loss", xlabel="step", ylabel="v loss"
    )
    return [
        text(f"Fine-tuned from the tiny base model for {result.settings.steps} steps."),
        image(plot, "training loss"),
    ]


def _quality(result: DemoResult) -> list[Markup]:
    scores = result.scores
    rows = [
        ["Fréchet distance to real recordings (CLAP-FAD)", scores["fad"]],
        ["agreement of clips with their prompts", scores["alignment"]],
        ["agreement with the prompts of other clips", scores["alignment_mismatched"]],
        ["agreement of real recordings with their captions", scores["reference_alignment"]],
    ]
    return [table(["", "value"], rows), *(text(note) for note in scores["notes"])]
