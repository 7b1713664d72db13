"""The three jobs behind the commands: extract features, score them, and both in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from stable_audio_tools.attribution.evidence.gather import ReportSettings
from stable_audio_tools.attribution.features.extract import extract_features
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.queries import TrackSource, query_source, train_source
from stable_audio_tools.attribution.reports.write import Run, write_report
from stable_audio_tools.attribution.scoring.groups import group_tracks, write_groups
from stable_audio_tools.attribution.scoring.ranking import RANK_BY, write_ranking
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, require_fitting, score_many
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.attribution.sharing import ALONE, device_of, share_of
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.shares import Share
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.manifest import write_manifest
from stable_audio_tools.runtime.progress import say

TRAIN_FEATURES, QUERY_FEATURES = "train_features", "query_features"


@dataclass(frozen=True)
class AttributionFiles:
    """What scoring wrote, the scores (Q, N), and the first page of the report, if there is one."""

    folder: Path
    ranking: Path
    artists: Path
    albums: Path
    scores: Tensor
    report: Path | None = None


def extract(
    model: ModelFiles,
    output: str | Path,
    settings: FeatureSettings | None = None,
    *,
    dataset_config: str | Path | None = None,
    queries: str | Path | None = None,
    prompt: str | None = None,
    batch_size: int = 8,
    num_workers: int = 4,
    device: str | None = None,
    compile: bool | None = None,
    shard: str | None = None,
) -> FeatureStore:
    """Extract the features of a training set (``dataset_config``) or of clips (``queries``) into ``output``.

    ``output`` is the folder of the store. If it ends in ``.npy``, the store goes to the folder of that name
    without the suffix, and its rows are also written to the file, with ``.ids.txt`` and ``.meta.json`` beside
    it. A run that was killed goes on where it stopped. Several processes (torchrun, srun, ``shard``) fill one
    store; it is whole when the last one ends.

    Args:
        queries: clips, see :func:`~stable_audio_tools.attribution.queries.query_source`.
        prompt: of all clips, in place of what they were made from.
        compile: see :func:`~stable_audio_tools.attribution.features.extract.extract_features`.
        shard: see :func:`~stable_audio_tools.attribution.sharing.share_of`.

    Raises:
        StableAudioError: see :func:`~stable_audio_tools.attribution.features.extract.extract_features`.
    """
    settings = settings or FeatureSettings()
    output = Path(output)
    folder = output.with_suffix("") if output.suffix == ".npy" else output
    source = _source(dataset_config, queries, prompt)
    share = share_of(shard)
    work = Work(batch_size, num_workers, compile, share)
    store = _extract(model, model.load_conditional(device_of(share, device)), source, folder, settings, work)
    if output.suffix == ".npy" and not store.missing():
        store.export(output)
    return store


def score_stores(
    train_features: str | Path | Sequence[str | Path],
    query_features: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    settings: ScoreSettings | None = None,
    *,
    rank_by: str | None = None,
    top_k: int | None = None,
) -> AttributionFiles:
    """Score every query of one store against every track of another and write the tables to ``output_dir``.

    Writes ``ranking.csv`` (one row per query and track, best first), ``artists.csv`` and ``albums.csv``
    (sums), ``scores.npy`` (Q, N) and ``run.json``.

    Args:
        train_features: a store, or the ``.npy`` it was exported to. Several, of other checkpoints or seeds,
            with as many ``query_features``, are an ensemble: the mean of their scores.
        rank_by: ``score`` or ``score_squared``; None takes the square for D-TRAK with a measurement other
            than the loss, whose sign says nothing about helping or hurting, and the score elsewhere.
        top_k: rows per query in ``ranking.csv``; None is all.

    Raises:
        StoreError: a store is missing, unfinished, or not comparable with the other.
    """
    settings = settings or ScoreSettings()
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, found {top_k}")
    pairs = _pairs(train_features, query_features)
    train, queries = pairs[0]
    rank_by = rank_by or _rank_by(train, settings)
    if rank_by not in RANK_BY:
        raise UsageError(f"unknown rank_by {rank_by!r}; known: {', '.join(RANK_BY)}")
    scores = score_many(pairs, settings)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "scores.npy") as temporary:
        np.save(temporary, scores.numpy())

    track_rows, clip_rows = train.records(), queries.records()
    kept = [row for row, record in enumerate(track_rows) if "left_out" not in record]
    shown, tracks = scores[:, kept], [track_rows[row] for row in kept]
    files = AttributionFiles(
        folder,
        write_ranking(folder / "ranking.csv", shown, clip_rows, tracks, rank_by=rank_by, top_k=top_k),
        write_groups(
            folder / "artists.csv", shown, clip_rows, group_tracks(tracks, "artist"), rank_by=rank_by
        ),
        write_groups(folder / "albums.csv", shown, clip_rows, group_tracks(tracks, "album"), rank_by=rank_by),
        scores,
    )
    write_manifest(
        folder,
        "run",
        {
            "score": asdict(settings),
            "rank_by": rank_by,
            "train": {"store": str(train.folder), "rows": len(train), "stamp": train.meta["stamp"]},
            "queries": {"store": str(queries.folder), "rows": len(queries), "stamp": queries.meta["stamp"]},
            "ensemble": [[str(store.folder) for store in pair] for pair in pairs],
        },
    )
    say(
        f"{files.ranking}: {len(queries)} clips against {len(tracks)} tracks, by {settings.method},"
        f" ranked by {rank_by}"
    )
    return files


def _pairs(
    train_features: str | Path | Sequence[str | Path], query_features: str | Path | Sequence[str | Path]
) -> list[tuple[FeatureStore, FeatureStore]]:
    names = [
        [given] if isinstance(given, str | Path) else list(given)
        for given in (train_features, query_features)
    ]
    if len(names[0]) != len(names[1]):
        raise UsageError(
            f"found {len(names[0])} stores of tracks and {len(names[1])} of clips; an ensemble needs as many"
            " of each, in the same order"
        )
    tracks, clips = ([FeatureStore.open(_store_folder(name)) for name in given] for given in names)
    return list(zip(tracks, clips, strict=True))


def are_whole(*stores: str | Path) -> bool:
    """Whether these stores have all their rows.

    Raises:
        StoreError: one is no store.
    """
    return not any(FeatureStore.read(_store_folder(store)).missing() for store in stores)


def run_attribution(
    model: ModelFiles,
    train_dataset_config: str | Path,
    queries: str | Path,
    output_dir: str | Path,
    settings: FeatureSettings | None = None,
    score_settings: ScoreSettings | None = None,
    *,
    batch_size: int = 8,
    num_workers: int = 4,
    device: str | None = None,
    rank_by: str | None = None,
    top_k: int | None = None,
    compile: bool | None = None,
    prompt: str | None = None,
    report: ReportSettings | None = None,
) -> AttributionFiles:
    """From a model, its training set and some clips to the ranked tables in ``output_dir``.

    Features lie in ``train_features`` and ``query_features`` there. Training features that are whole are used
    again, so asking about more clips costs only their own; a folder of clips that has changed needs another
    ``output_dir``, or its ``query_features`` deleted. With ``report`` the tables have intervals, and pages
    and an export are written too.

    Raises:
        StableAudioError: see :func:`extract` and :func:`score_stores`.
    """
    share, folder = share_of(), Path(output_dir)
    settings = (settings or FeatureSettings()).on(device_of(share, device))
    score_settings = score_settings or ScoreSettings()
    clips, tracks = _both_sources(train_dataset_config, queries, prompt, settings, score_settings)
    loaded = model.load_conditional(device_of(share, device))
    work = Work(batch_size, num_workers, compile, share)
    _fill_both(model, loaded, clips, tracks, folder, settings, work)
    files = score_stores(
        folder / TRAIN_FEATURES, folder / QUERY_FEATURES, folder, score_settings, rank_by=rank_by, top_k=top_k
    )
    if report is None:
        return files
    stores = [FeatureStore.open(folder / name) for name in (TRAIN_FEATURES, QUERY_FEATURES)]
    run = Run(
        model,
        loaded,
        Path(train_dataset_config),
        Path(queries),
        folder,
        settings,
        score_settings,
        rank_by or _rank_by(stores[0], score_settings),
        batch_size,
        num_workers,
        prompt,
    )
    return replace(files, report=write_report(run, stores[0], stores[1], files.scores, report))


def extract_both(
    model: ModelFiles,
    train_dataset_config: str | Path,
    queries: str | Path,
    output_dir: str | Path,
    settings: FeatureSettings | None = None,
    score_settings: ScoreSettings | None = None,
    *,
    batch_size: int = 8,
    num_workers: int = 4,
    device: str | None = None,
    compile: bool | None = None,
    shard: str | None = None,
    prompt: str | None = None,
) -> bool:
    """The first half of :func:`run_attribution`: this process's part of the features of tracks and clips.

    Args:
        score_settings: how they will be scored.

    Returns:
        Whether both stores are whole now. Of several processes the last one to end finds them so.

    Raises:
        UsageError: features of these settings cannot be scored so; before hours of work.
    """
    settings, share = settings or FeatureSettings(), share_of(shard)
    clips, tracks = _both_sources(
        train_dataset_config, queries, prompt, settings, score_settings or ScoreSettings()
    )
    loaded = model.load_conditional(device_of(share, device))
    work = Work(batch_size, num_workers, compile, share)
    stores = _fill_both(model, loaded, clips, tracks, Path(output_dir), settings, work)
    return not any(store.missing() for store in stores)


@dataclass(frozen=True)
class Work:
    """How features are computed; none of it changes them beyond rounding.

    Attributes:
        batch_size: samples at once.
        num_workers: processes that decode.
        compile: compile the network's blocks; None where it pays.
        share: which process of how many this is.
    """

    batch_size: int = 8
    num_workers: int = 4
    compile: bool | None = None
    share: Share = ALONE


def _both_sources(
    train_dataset_config: str | Path,
    queries: str | Path,
    prompt: str | None,
    settings: FeatureSettings,
    score_settings: ScoreSettings,
) -> tuple[TrackSource, TrackSource]:
    """Clips and tracks: what is wrong with either should show before an hour of work on the other."""
    require_fitting(score_settings, settings.to_dict(), "this run")
    return _source(None, queries, prompt), _source(train_dataset_config, None)


def _fill_both(
    files: ModelFiles,
    model: ConditionedDiffusionModelWrapper,
    clips: TrackSource,
    tracks: TrackSource,
    folder: Path,
    settings: FeatureSettings,
    work: Work,
) -> list[FeatureStore]:
    """The stores of clips and tracks in ``folder``, with this process's part in them."""
    # all clips, whatever part of the tracks
    both = ((clips, QUERY_FEATURES, replace(settings, max_examples=None)), (tracks, TRAIN_FEATURES, settings))
    return [_extract(files, model, source, folder / name, job, work) for source, name, job in both]


def _extract(
    files: ModelFiles,
    model: ConditionedDiffusionModelWrapper,
    source: TrackSource,
    folder: Path,
    settings: FeatureSettings,
    work: Work,
) -> FeatureStore:
    return extract_features(
        model,
        source.first(settings.max_examples),
        folder,
        settings,
        stamp=files.stamp(),
        batch_size=work.batch_size,
        num_workers=work.num_workers,
        compile=work.compile,
        share=work.share,
        description=folder.name,
    )


def _source(
    dataset_config: str | Path | None, queries: str | Path | None, prompt: str | None = None
) -> TrackSource:
    if (dataset_config is None) == (queries is None):
        raise UsageError(
            "give either a dataset config (the training set) or queries (the clips), and not both"
        )
    if queries is not None:
        return query_source(queries, prompt)
    if prompt is not None:
        raise UsageError("a prompt is for clips (queries); tracks have those of their dataset config")
    assert dataset_config is not None
    return train_source(dataset_config)


def _store_folder(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".npy" else path


def _rank_by(train: FeatureStore, settings: ScoreSettings) -> str:
    signless = settings.method == "dtrak" and train.meta["stamp"]["settings"]["f"] != "loss"
    return "score_squared" if signless else "score"
