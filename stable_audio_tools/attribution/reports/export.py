"""The export for a rights database: one row per clip and track, each readable on its own.

``attribution.jsonl`` and ``attribution.csv`` hold the same rows, ``attribution.schema.json`` is their schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stable_audio_tools.attribution.evidence.gather import Evidence
from stable_audio_tools.attribution.scoring.ranking import ranked_values, write_csv
from stable_audio_tools.runtime.files import atomic_path, hash_json, sha256_file, write_json
from stable_audio_tools.schema.attribution import AttributionRecord

_ISRC = re.compile(r"[A-Z]{2}[A-Z0-9]{3}[0-9]{7}")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class RunFacts:
    """What is the same in every row: the run and the model."""

    run_id: str
    method: str
    measurement: str
    rank_by: str
    timesteps: int
    hashes: Mapping[str, str | None]

    @classmethod
    def of(
        cls, train: Mapping[str, Any], queries: Mapping[str, Any], score: Mapping[str, Any], rank_by: str
    ) -> RunFacts:
        """From the stamps of both stores and the settings of the scores."""
        settings = train.get("settings", {})
        return cls(
            hash_json([train, queries, score, rank_by])[:16],
            str(score["method"]),
            str(settings.get("f", "")),
            rank_by,
            int(settings.get("K", 0)),
            {
                "model_sha256": train.get("checkpoint"),
                "model_config_sha256": train.get("model_config"),
                "adapter_sha256": train.get("adapter"),
                "training_set_sha256": train.get("index"),
            },
        )


def write_export(folder: Path, evidence: Evidence, facts: RunFacts, top: int) -> list[Path]:
    """Write the rows of the first ``top`` tracks of each clip, and their schema, into ``folder``."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines, rows, schema = (folder / f"attribution.{kind}" for kind in ("jsonl", "csv", "schema.json"))
    with atomic_path(lines) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for record in records(evidence, facts, top, created):
            stream.write(json.dumps(record.model_dump(), ensure_ascii=False) + "\n")
    write_csv(
        rows,
        list(AttributionRecord.model_fields),
        (_spreadsheet(record.model_dump()) for record in records(evidence, facts, top, created)),
    )
    write_json(schema, AttributionRecord.model_json_schema())
    return [lines, rows, schema]


def records(evidence: Evidence, facts: RunFacts, top: int, created: str) -> Iterator[AttributionRecord]:
    """The rows, clip by clip, best first."""
    values = ranked_values(evidence.scores, facts.rank_by)
    average = values.abs().mean(1).clamp(min=1e-300)
    for q, clip in enumerate(evidence.clips):
        clip_fields = _clip_fields(clip)
        for rank, n in enumerate(evidence.ranked(q)[:top], start=1):
            yield AttributionRecord(
                run_id=facts.run_id,
                created=created,
                **clip_fields,
                **_track_fields(evidence.tracks[n]),
                rank=rank,
                score=float(evidence.scores[q, n]),
                times_average=float(values[q, n] / average[q]),
                similarity=float(evidence.similarity[q, n]),
                **_confidence_fields(evidence, q, n),
                method=facts.method,
                measurement=facts.measurement,
                rank_by=facts.rank_by,
                timesteps=facts.timesteps,
                tracks=len(evidence.tracks),
                **facts.hashes,
            )


def isrc(value: Any) -> str | None:
    """An ISRC without its hyphens; None for what is none."""
    text = re.sub(r"[\s-]", "", str(value or "")).upper().removeprefix("ISRC")
    return text if _ISRC.fullmatch(text) else None


def _clip_fields(clip: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(str(clip.get("path", "")))
    return {
        "clip_id": str(clip.get("sample_id", "")),
        "clip_file": str(clip.get("path", "")),
        "clip_sha256": sha256_file(path) if path.is_file() else None,
        "clip_prompt": str(clip.get("prompt") or ""),
    }


def _track_fields(track: Mapping[str, Any]) -> dict[str, Any]:
    def text(*names: str) -> str | None:
        return next((str(track[name]) for name in names if track.get(name) not in (None, "")), None)

    return {
        "track_id": str(track.get("sample_id", "")),
        "track_file": str(track.get("path", "")),
        "isrc": isrc(track.get("isrc") or track.get("tsrc")),
        "license": text("license", "licence"),
        "duplicate_cluster": text("cluster"),
        **{
            name: text(name) for name in ("title", "artist", "artist_id", "album", "album_id", "label", "url")
        },
    }


def _confidence_fields(evidence: Evidence, q: int, n: int) -> dict[str, Any]:
    found = evidence.resampled[q] if evidence.resampled else None
    standout = evidence.standouts[q] if evidence.standouts else None
    member = evidence.membership.tracks.get(n) if evidence.membership else None
    return {
        "rank_low": None if found is None else int(found.rank_low[n]),
        "rank_high": None if found is None else int(found.rank_high[n]),
        "times_average_low": None if found is None else float(found.low[n]),
        "times_average_high": None if found is None else float(found.high[n]),
        "first_share": None if found is None else found.first_share,
        "verdict": None if standout is None else standout.verdict,
        "p_value": None if standout is None else standout.p_value,
        "p_value_resolution": None if standout is None else standout.resolution,
        "artist_standing_out": evidence.artist_standing_out(q),
        "artist_p_value": evidence.artist_standouts[q].p_value if evidence.artist_standouts else None,
        "membership_gap": None if member is None else member.gap,
        "membership_p_value": None if member is None else member.p_value,
    }


def _spreadsheet(record: Mapping[str, Any]) -> dict[str, Any]:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front: titles are anybody's."""
    return {
        key: f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
        for key, value in record.items()
    }
