"""From a finished run to all that is said about it: tables with intervals, pages, and the export."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.attribution.evidence.gather import Asked, Evidence, ReportSettings, gather
from stable_audio_tools.attribution.features.parts import Measured
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.queries import query_source, train_source
from stable_audio_tools.attribution.reports.clip_page import clip_page, page_name
from stable_audio_tools.attribution.reports.export import RunFacts, write_export
from stable_audio_tools.attribution.reports.index_page import index_page
from stable_audio_tools.attribution.reports.media import Media
from stable_audio_tools.attribution.scoring.groups import GROUP_FILES, described, write_groups
from stable_audio_tools.attribution.scoring.scores import ScoreSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.progress import say, track

REPORT = "report"
"""The folder of the pages in a run's folder; ``index.html`` is the first."""


@dataclass(frozen=True)
class Run:
    """What was asked: the arguments of :func:`~stable_audio_tools.attribution.run.run_attribution`.

    ``loaded`` is the model that ``model`` makes, on its device.
    """

    model: ModelFiles
    loaded: ConditionedDiffusionModelWrapper
    train_dataset_config: Path
    queries: Path
    folder: Path
    settings: FeatureSettings
    score_settings: ScoreSettings
    rank_by: str
    batch_size: int = 8
    num_workers: int = 4
    prompt: str | None = None


def write_report(
    run: Run, train: FeatureStore, queries: FeatureStore, scores: Tensor, settings: ReportSettings
) -> Path:
    """Write tables, pages and export of a run whose scores (Q, N) are there; returns the first page.

    Raises:
        StableAudioError: a file cannot be read, or a part belongs to another run.
    """
    evidence, window_seconds = _evidence(run, train, queries, scores, settings)
    for groups in evidence.groups:
        write_groups(
            run.folder / GROUP_FILES[groups.key],
            evidence.scores,
            evidence.clips,
            groups,
            rank_by=run.rank_by,
            intervals=[found.groups[groups.key] for found in evidence.resampled] or None,
        )
    facts = RunFacts.of(train.meta["stamp"], queries.meta["stamp"], asdict(run.score_settings), run.rank_by)
    write_export(run.folder, evidence, facts, settings.export_top)
    folder = run.folder / REPORT
    media = Media(folder, window_seconds)
    for clip in track(range(len(evidence.clips)), "pages"):
        clip_page(evidence, clip, media, settings.report_top).write(folder / page_name(clip))
    shown = {
        **run.settings.to_dict(),
        **asdict(run.score_settings),
        "rank_by": run.rank_by,
        **asdict(settings),
    }
    first = index_page(evidence, facts, shown, replay_command(run, settings)).write(folder / "index.html")
    say(f"{first}: the report; {run.folder / 'attribution.jsonl'}: the export")
    return first


def _evidence(
    run: Run, train: FeatureStore, queries: FeatureStore, scores: Tensor, settings: ReportSettings
) -> tuple[Evidence, float]:
    records = train.records()
    kept = [row for row, record in enumerate(records) if "left_out" not in record]
    tracks = described([records[row] for row in kept], settings.dedup)
    asked = Asked(
        run.folder,
        train,
        queries,
        Measured(run.loaded, run.settings, run.model.stamp(), run.batch_size, run.num_workers),
        train_source(run.train_dataset_config).first(run.settings.max_examples),
        query_source(run.queries, run.prompt),
    )
    config = run.loaded.config
    window_seconds = config.sample_size / config.sample_rate
    found = gather(asked, scores[:, kept], kept, tracks, run.score_settings, run.rank_by, settings)
    return found, window_seconds


def replay_command(run: Run, settings: ReportSettings) -> str:
    """The command line that makes the run again: its files, and each setting that is not the default."""
    model = run.model
    words: list[Any] = [
        "sat",
        "attribute",
        "run",
        "--model-config",
        model.model_config,
        "--ckpt-path",
        model.ckpt_path,
    ]
    for flag, path in (
        ("--lora-ckpt-path", model.lora_ckpt_path),
        ("--pretransform-ckpt-path", model.pretransform_ckpt_path),
        ("--train-dataset-config", run.train_dataset_config),
        ("--queries", run.queries),
        ("--output-dir", run.folder),
        ("--prompt", run.prompt),
        ("--rank-by", run.rank_by),
    ):
        words += [flag, path] if path is not None else []
    given: dict[str, Any] = {}
    for part in (run.settings, run.score_settings, settings):
        given = {**_changed(part), **given}
    for name, value in given.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
        )
    return shlex.join(str(word) for word in words)


def _changed(settings: Any) -> Mapping[str, Any]:
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != field.default and getattr(settings, field.name) is not None
    }
