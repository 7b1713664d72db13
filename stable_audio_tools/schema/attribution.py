"""One row of an attribution export: a clip, a track, and all it takes to read the score between them.

``docs/attribution.md`` documents each field; a test holds the two together.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stable_audio_tools.schema.base import Config

STATEMENT = (
    "An estimate of how much training on this track moved what the model makes for this clip, relative to the"
    " other tracks of the training set. It is not a share of authorship, not a measure of similarity, and no"
    " proof that the track was or was not in the training set."
)

Verdict = Literal["stands out", "no track stands out", "too few tracks to tell"]


class AttributionRecord(Config):
    """A line of ``attribution.jsonl`` and a row of ``attribution.csv``."""

    format: Literal["stable-audio-tools/attribution@2"] = "stable-audio-tools/attribution@2"
    run_id: str = Field(
        description="Hash of model, training set, clips and settings: the same run, the same id."
    )
    created: str = Field(description="When the export was written, ISO 8601, UTC.")
    clip_id: str = Field(description="The clip, as it is called in all tables of the run.")
    clip_file: str = Field(description="The clip's file.")
    clip_sha256: str | None = Field(description="Hash of that file; empty if it cannot be read.")
    clip_prompt: str = Field(description="The prompt that the clip was made from.")
    track_id: str = Field(description="The track: its dataset and its path in it.")
    track_file: str = Field(description="The track's file.")
    isrc: str | None = Field(description="International Standard Recording Code, 12 characters, where known.")
    title: str | None = Field(description="Title of the track.")
    artist: str | None = Field(description="Artist of the track.")
    artist_id: str | None = Field(description="The artist in the catalogue's own numbering.")
    album: str | None = Field(description="Album of the track.")
    album_id: str | None = Field(description="The album in the catalogue's own numbering.")
    label: str | None = Field(description="Label or rights holder of the track.")
    license: str | None = Field(description="Licence of the track, as the catalogue writes it.")
    url: str | None = Field(description="Page of the track.")
    duplicate_cluster: str | None = Field(
        description="First track of its cluster of duplicates, if it is in one."
    )
    rank: int = Field(description="Place of the track for this clip, from 1.")
    rank_low: int | None = Field(description="Best place in the middle 95 % of the resamples.")
    rank_high: int | None = Field(description="Worst place in the middle 95 % of the resamples.")
    score: float = Field(description="The score. Only compared within a clip.")
    times_average: float = Field(
        description="What tracks are ranked by, over the average size of it among all tracks of this clip."
    )
    times_average_low: float | None = Field(description="Lower end of its 95 % interval.")
    times_average_high: float | None = Field(description="Upper end of its 95 % interval.")
    similarity: float = Field(
        description="Cosine of the latents' statistics, -1 to 1: likeness, which is not influence."
    )
    first_share: float | None = Field(
        description="Share of the resamples that keep the clip's first track first."
    )
    verdict: Verdict | None = Field(
        description="Whether the evidence for the clip is better than for unrelated music."
    )
    p_value: float | None = Field(description="Share of the null that reaches the clip's evidence.")
    p_value_resolution: float | None = Field(description="The smallest p-value that this run could give.")
    artist_standing_out: str | None = Field(
        description="Artist whose tracks together stand out for the clip; empty where none does."
    )
    artist_p_value: float | None = Field(
        description="Share of the null that reaches the evidence for the clip's first artist."
    )
    membership_gap: float | None = Field(
        description="How much worse the model predicts slightly changed copies of the track: 0.1 is 10 %."
    )
    membership_p_value: float | None = Field(
        description="Share of tracks known to be outside of the training set that reach the gap."
    )
    method: str = Field(description="How features become scores.")
    measurement: str = Field(description="What is differentiated.")
    rank_by: Literal["score", "score_squared"] = Field(description="What tracks are ranked by.")
    timesteps: int = Field(description="Noise levels at which each track and clip is measured.")
    tracks: int = Field(description="How many tracks were ranked.")
    model_sha256: str | None = Field(description="Hash of the checkpoint.")
    model_config_sha256: str | None = Field(description="Hash of the model's config.")
    adapter_sha256: str | None = Field(description="Hash of the adapter on top, if there is one.")
    training_set_sha256: str | None = Field(
        description="Hash of the list of training tracks and their prompts."
    )
    statement: str = Field(default=STATEMENT, description="What the row says and what it does not.")
