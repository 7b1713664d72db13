"""The page of one clip: the clip beside its first tracks, to hear and to see, and what speaks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from stable_audio_tools.attribution.evidence.confidence import NOTHING, STANDS_OUT, TOO_FEW
from stable_audio_tools.attribution.evidence.gather import Evidence
from stable_audio_tools.attribution.evidence.segments import SegmentScores
from stable_audio_tools.attribution.reports.media import Media
from stable_audio_tools.attribution.scoring.groups import Groups
from stable_audio_tools.attribution.scoring.ranking import order, ranked_values
from stable_audio_tools.report.page import (
    Card,
    Cell,
    Page,
    cards,
    link,
    strip,
    table,
    text,
    warning,
    web_link,
)
from stable_audio_tools.schema.attribution import STATEMENT

_MOST_GROUPS = 10
_PLURALS = {"artist": "Artists", "album": "Albums", "label": "Labels", "cluster": "Duplicates"}
_STRETCHES = (
    "The two rows of cells under a track show which seconds carry its score: of the clip, then of the track."
    " Dark cells carry more, hatched ones speak against; point at a cell for its seconds. It is the place in"
    " the network's time axis, where attention mixes everything: what is heard there is near it, not it."
)
_COMPARISON = (
    "The last track is drawn from those whose latents are as similar to the clip as those of the first track:"
    " it shows how little likeness alone says."
)
_GROUPS = (
    "“Times average” is what a track of the group scores here over what a track of the training set does; 1"
    " is like any other. Intervals are 95 % of the resamples of timesteps, noise and projections. They say"
    " nothing about another training run, and the figures are not shares of the clip."
)


def page_name(clip: int) -> str:
    """The file of a clip's page."""
    return f"clip-{clip + 1:04d}.html"


def clip_page(evidence: Evidence, clip: int, media: Media, top: int) -> Page:
    """The page of the clip at ``clip`` in ``evidence``."""
    record = evidence.clips[clip]
    page = Page(str(record.get("sample_id")), f"Prompt: {record.get('prompt') or 'none'}")
    page.section("In short", _ways(evidence, clip), *verdict_blocks(evidence, clip))
    page.section(
        "The clip and its tracks", cards(_cards(evidence, clip, media, top)), *_explained(evidence, clip)
    )
    for groups in evidence.groups:
        if groups.known:
            page.section(_PLURALS[groups.key], text(_GROUPS), group_table(evidence, clip, groups))
    return page


def verdict_blocks(evidence: Evidence, clip: int) -> list[Markup]:
    """What may be said of a clip: whether anything stands out, how steady the first is, and the limits."""
    blocks = []
    name = evidence.artist_standing_out(clip)
    artist = evidence.artist_standouts[clip] if evidence.artist_standouts else None
    if artist is not None and name is not None:
        said = f"The tracks of “{name}” together stand out from what unrelated ones score"
        blocks.append(text(f"{said} (p = {artist.p_value:.3f})."))
    if evidence.standouts:
        blocks.append(_track_verdict(evidence, clip, name is not None))
    if artist is not None and artist.verdict == NOTHING:
        blocks.append(text(f"No artist's tracks together stand out (p = {artist.p_value:.3f})."))
    if evidence.resampled:
        share = evidence.resampled[clip].first_share
        blocks.append(text(f"The first track stays first in {share:.0%} of the resamples."))
    return [*blocks, text(f"What a score is: {STATEMENT[0].lower()}{STATEMENT[1:]}")]


def _track_verdict(evidence: Evidence, clip: int, artist_stands_out: bool) -> Markup:
    found = evidence.standouts[clip]
    p = f"p = {found.p_value:.3f}, from {evidence.null_size} tracks asked as if they were clips"
    if found.verdict == STANDS_OUT:
        return text(f"The first track stands out from what unrelated music would score ({p}).")
    if found.verdict == TOO_FEW:
        few = f"with {evidence.null_size} tracks for comparison no p-value is below {found.resolution:.2f}"
        return warning(f"{TOO_FEW.capitalize()}: {few}.")
    if artist_stands_out:
        return text(f"No single track does ({p}): which of them comes first could be chance.")
    return warning(
        "No track stands out. The evidence for the first track is no better than what unrelated music of this"
        f" catalogue scores ({p}). The tracks below are the first of an order that could be chance."
    )


def group_table(evidence: Evidence, clip: int, groups: Groups) -> Markup:
    """The first groups of one kind for a clip."""
    scores = evidence.scores[clip].double()
    values = ranked_values(scores, evidence.rank_by)
    average, sums = groups.times_average(values), groups.sums(values)
    found = evidence.resampled[clip].groups.get(groups.key) if evidence.resampled else None
    rows: list[list[Cell]] = []
    for rank, g in enumerate(sums.argsort(descending=True, stable=True)[:_MOST_GROUPS].tolist(), start=1):
        row: list[Cell] = [rank, groups.names[g], int(groups.counts[g]), f"{average[g]:.2f}"]
        if found is not None:
            row += [
                f"{found.low[g]:.2f} to {found.high[g]:.2f}",
                f"{int(found.rank_low[g])} to {int(found.rank_high[g])}",
            ]
        rows.append(row)
    more = ["95 % interval", "ranks it takes"] if found is not None else []
    return table(["rank", groups.key, "tracks", "times average", *more], rows)


def track_title(track: Mapping[str, Any]) -> str:
    """What a track is called: its title, else its id."""
    return str(track.get("title") or track.get("sample_id"))


def _ways(evidence: Evidence, clip: int) -> Markup:
    ways = [link("index.html", "all clips")]
    if clip:
        ways.append(link(page_name(clip - 1), "the clip before"))
    if clip + 1 < len(evidence.clips):
        ways.append(link(page_name(clip + 1), "the next clip"))
    return Markup("<p>{}</p>").format(Markup(" · ").join(ways))


def _cards(evidence: Evidence, clip: int, media: Media, top: int) -> list[Card]:
    record = evidence.clips[clip]
    shown = [
        Card("The clip", media.blocks(record, str(record.get("sample_id"))), str(record.get("path", "")))
    ]
    for rank, n in enumerate(evidence.ranked(clip)[:top], start=1):
        shown.append(_track_card(evidence, clip, n, f"{rank}. ", media))
    other = evidence.matched[clip]
    if other is not None:
        rank = evidence.ranked(clip).index(other) + 1
        shown.append(_track_card(evidence, clip, other, f"For comparison, rank {rank}: ", media))
    return shown


def _track_card(evidence: Evidence, clip: int, n: int, prefix: str, media: Media) -> Card:
    track = evidence.tracks[n]
    name = track_title(track)
    blocks = [*media.blocks(track, name), *_stretches(evidence.segments.get((clip, n)))]
    by = [str(track[key]) for key in ("artist", "album", "label") if track.get(key)]
    blocks.append(text(" · ".join(by) or "no artist known"))
    blocks.append(table(["", ""], _figures(evidence, clip, n)))
    if track.get("url"):
        blocks.append(Markup("<p>{}</p>").format(web_link(str(track["url"]), str(track["url"]))))
    return Card(prefix + name, blocks, _small_print(track))


def _figures(evidence: Evidence, clip: int, n: int) -> list[Sequence[Cell]]:
    scores = evidence.scores[clip]
    values = ranked_values(scores, evidence.rank_by)
    average = float(values[n] / values.abs().mean().clamp(min=1e-300))
    rows: list[Sequence[Cell]] = [["times average", f"{average:.2f}"]]
    if evidence.resampled:
        found = evidence.resampled[clip]
        rows.append(["95 % interval", f"{found.low[n]:.2f} to {found.high[n]:.2f}"])
        rows.append(["ranks it takes", f"{int(found.rank_low[n])} to {int(found.rank_high[n])}"])
    place = int((order(evidence.similarity[clip : clip + 1])[0] == n).nonzero()[0, 0]) + 1
    rows.append(["score", f"{float(scores[n]):+.3g}"])
    rows.append(["similarity", f"{float(evidence.similarity[clip, n]):+.2f} (rank {place})"])
    member = evidence.membership.tracks.get(n) if evidence.membership else None
    if member is not None:
        more = "" if member.p_value is None else f", p = {member.p_value:.3f}"
        rows.append(["membership gap", f"{member.gap:+.1%}{more}"])
    return rows


def _stretches(found: SegmentScores | None) -> list[Markup]:
    if found is None:
        return []
    return [
        strip(values, [f"{a:.1f} to {b:.1f} s" for a, b in pairwise(ends)], what)
        for values, ends, what in (
            (found.of_clip(), found.clip_seconds, "seconds of the clip that carry the score"),
            (found.of_track(), found.track_seconds, "seconds of the track that carry the score"),
        )
    ]


def _small_print(track: Mapping[str, Any]) -> str:
    tags = track.get("tags")
    given = tags if isinstance(tags, list | tuple) else [tags or ""]
    words = ", ".join(str(tag).split("---")[-1] for tag in given)  # of MTG-Jamendo: genre---rock
    licence = str(track.get("license") or track.get("licence") or "")
    return " · ".join(part for part in (str(track.get("sample_id", "")), words, licence) if part)


def _explained(evidence: Evidence, clip: int) -> list[Markup]:
    blocks = []
    if any(pair[0] == clip for pair in evidence.segments):
        blocks.append(text(_STRETCHES))
    if evidence.matched[clip] is not None:
        blocks.append(text(_COMPARISON))
    return blocks
