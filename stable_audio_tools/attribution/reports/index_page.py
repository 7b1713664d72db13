"""The first page of a report: what was found for which clip, what to be careful about, how to run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from stable_audio_tools.attribution.evidence.confidence import ALPHA, STANDS_OUT
from stable_audio_tools.attribution.evidence.gather import Evidence
from stable_audio_tools.attribution.evidence.hubs import NEARLY_ONE
from stable_audio_tools.attribution.reports.clip_page import page_name, track_title
from stable_audio_tools.attribution.reports.export import RunFacts
from stable_audio_tools.attribution.scoring.ranking import ranked_values
from stable_audio_tools.report.page import Cell, Page, code, link, table, text, warning
from stable_audio_tools.schema.attribution import STATEMENT

_MOST_ARTISTS = 30
_READING = (
    "Each clip has a page of its own, with its tracks to hear beside it. Scores compare tracks for one clip."
    " They do not compare clips, and they do not add up to a whole."
)
_MEMBERSHIP = (
    "Whether the model has seen a track is another question. The membership gap is how much worse the model"
    " predicts the track after a slight change; a model that learned a recording by heart shows a large one."
)


def index_page(evidence: Evidence, facts: RunFacts, settings: Mapping[str, Any], command: str) -> Page:
    """The page that leads to those of the clips.

    Args:
        settings: of features, scores and report, by name.
        command: what makes the report again.
    """
    page = Page(
        "Which tracks shaped these clips?", f"{len(evidence.clips)} clips, {len(evidence.tracks)} tracks."
    )
    page.section("In short", *_short(evidence))
    page.section("Clips", text(_READING), _clips(evidence))
    if evidence.artists.known:
        page.section("Artists over all clips", *_artists(evidence))
    if evidence.membership is not None:
        page.section("Was it in the training set?", text(_MEMBERSHIP), *_membership(evidence))
    rows: list[list[Cell]] = [["run", facts.run_id]]
    rows += [[name, value or "none"] for name, value in facts.hashes.items()]
    rows += [[name, _shown(value)] for name, value in settings.items()]
    page.section("Settings and hashes", table(["", ""], rows))
    page.section(
        "Run it again",
        text("With the files named here, features that are whole are used again."),
        code(command),
    )
    return page


def _short(evidence: Evidence) -> list[Markup]:
    blocks = []
    if evidence.standouts:
        count = len(evidence.standouts)
        out = sum(found.verdict == STANDS_OUT for found in evidence.standouts)
        artists = ""
        if evidence.artist_standouts:
            by = sum(found.verdict == STANDS_OUT for found in evidence.artist_standouts)
            artists = f", the tracks of an artist together for {by}"
        chance = f"chance gives about {ALPHA * count:.1f}"
        blocks.append(text(f"A track stands out for {out} of {count} clips{artists}; {chance}."))
    blocks.append(text(f"What a score is: {STATEMENT[0].lower()}{STATEMENT[1:]}"))
    health = evidence.health
    if health.one_ranking:
        blocks.append(
            warning(
                f"The clips are ranked nearly alike: the first singular value holds {health.rank_one:.0%} of"
                f" the scores' energy (this is said from {NEARLY_ONE:.0%} on). The scores then say which"
                " tracks weigh much for this model, and little about a single clip."
            )
        )
    for hub in health.hubs[:5]:
        blocks.append(
            warning(
                f"“{track_title(evidence.tracks[hub.track])}” is among the first {health.k} of"
                f" {hub.clips} clips (chance gives {hub.expected:.1f}). Such a hub is high for what it is,"
                " more than for the clip."
            )
        )
    if health.skewness is not None:
        figures = f"skewness of k-occurrence {health.skewness:.1f} (k = {health.k})"
        share = (
            "" if health.rank_one is None else f", share of the first singular value {health.rank_one:.0%}"
        )
        blocks.append(text(f"Of the scores as a whole: {figures}{share}."))
    return [*blocks, *(text(note) for note in evidence.notes)]


def _clips(evidence: Evidence) -> Markup:
    rows: list[list[Cell]] = []
    for q, clip in enumerate(evidence.clips):
        first = evidence.tracks[evidence.ranked(q)[0]]
        row: list[Cell] = [link(page_name(q), str(clip.get("sample_id"))), str(clip.get("prompt") or "")]
        if evidence.standouts:
            row += [evidence.standouts[q].verdict, f"{evidence.standouts[q].p_value:.3f}"]
        if evidence.artist_standouts:
            artist = evidence.artist_standouts[q]
            row += [evidence.artist_standing_out(q) or "none", f"{artist.p_value:.3f}"]
        row += [track_title(first), str(first.get("artist") or "")]
        if evidence.resampled:
            row.append(f"{evidence.resampled[q].first_share:.0%}")
        rows.append(row)
    verdict = ["verdict", "p"] if evidence.standouts else []
    verdict += ["artist that stands out", "p"] if evidence.artist_standouts else []
    steady = ["stays first"] if evidence.resampled else []
    return table(["clip", "prompt", *verdict, "first track", "artist", *steady], rows)


def _artists(evidence: Evidence) -> list[Markup]:
    """How often each artist is first, and its mean over the clips."""
    artists = evidence.artists
    values = ranked_values(evidence.scores.double(), evidence.rank_by)
    average = artists.times_average(values)
    first = Counter(artists.sums(values).argmax(1).tolist())
    ranked = average.mean(0).argsort(descending=True, stable=True)[:_MOST_ARTISTS].tolist()
    rows: list[list[Cell]] = [
        [artists.names[g], int(artists.counts[g]), first[g], f"{average[:, g].mean():.2f}"] for g in ranked
    ]
    said = (
        f"The first {len(rows)} of {len(artists.names)}; artists.csv holds them all, with intervals for each"
        " clip. “First” counts the clips for which the sum over the artist's tracks is the largest: an artist"
        " with more tracks has more to add."
    )
    return [text(said), table(["artist", "tracks", "first", "times average"], rows)]


def _membership(evidence: Evidence) -> list[Markup]:
    found = evidence.membership
    assert found is not None
    if found.auc is None:
        return [
            warning(
                "No tracks from outside of the training set were given (--membership-reference), so it is not"
                " known whether the figure can tell anything here. Read it as a hint at most."
            )
        ]
    said = (
        f"Against {found.references} tracks from outside, the figure tells training tracks apart with AUC"
        f" {found.auc:.2f} (95 % interval {found.auc_low:.2f} to {found.auc_high:.2f}; 0.5 is guessing)."
    )
    blind = found.auc_low is not None and found.auc_low <= 0.5
    return [warning(said + " It cannot tell them apart here.") if blind else text(said)]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
