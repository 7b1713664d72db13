"""``sat attribute``: which training tracks shaped each generated clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from stable_audio_tools.attribution.run import extract as extract_features
from stable_audio_tools.attribution.run import run_attribution, score_stores
from stable_audio_tools.attribution.scores import ScoreSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.cli.attribute_validate import validate
from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.schema.reader import read_dataset_config

app = typer.Typer(help="Ask which training tracks shaped generated clips (D-TRAK).", no_args_is_help=True)

_FILES, _WORK, _RANKING = "Model and data", "Compute", "Ranking"
_MODEL_CONFIG = typer.Option(..., help="Model config (JSON).", rich_help_panel=_FILES)
_CKPT = typer.Option(..., help="Its checkpoint, unwrapped or as training wrote it.", rich_help_panel=_FILES)
_LORA = typer.Option(
    None,
    help="An adapter, or PATH:STRENGTH, any number of times; their weights are then differentiated.",
    rich_help_panel=_FILES,
)
_VAE = typer.Option(
    None, help="Checkpoint of the autoencoder, if not in the model's.", rich_help_panel=_FILES
)
_BATCH = typer.Option(8, help="Tracks at once; it does not change the result.", rich_help_panel=_WORK)
_WORKERS = typer.Option(4, help="Processes that decode.", rich_help_panel=_WORK)
_DEVICE = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_WORK)
_FIXED_CROPS = typer.Option(
    False, "--disable-random-crop", help="Windows from the start of each track (the default)."
)
_PRE_ENCODED = typer.Option(
    False,
    "--pre-encoded",
    help="The training set is stored latents. Its dataset config says so too; another is refused.",
    rich_help_panel=_FILES,
)
_RANK_BY = typer.Option(
    None,
    help="score or score_squared; by default the square where a sign means nothing.",
    rich_help_panel=_RANKING,
)
_TOP_K = typer.Option(
    None, help="Rows of each clip in the ranking; by default all.", rich_help_panel=_RANKING
)


@app.command("run")
@flags_of(FeatureSettings, ScoreSettings)
def run(
    features: dict[str, Any],
    scoring: dict[str, Any],
    *,
    model_config: Path = _MODEL_CONFIG,
    ckpt_path: Path = typer.Option(
        ..., "--ckpt-path", "--checkpoint", help=_CKPT.help, rich_help_panel=_FILES
    ),
    lora_ckpt_path: list[str] | None = _LORA,
    pretransform_ckpt_path: Path | None = _VAE,
    train_dataset_config: Path = typer.Option(
        ...,
        "--train-dataset-config",
        "--train-dataset",
        help="Dataset config of the training set.",
        rich_help_panel=_FILES,
    ),
    queries: Path = typer.Option(
        ..., help="Folder of clips, or a dataset config that names some.", rich_help_panel=_FILES
    ),
    output_dir: Path = typer.Option(
        Path("outputs/attribution"), help="Where features and tables go.", rich_help_panel=_FILES
    ),
    batch_size: int = _BATCH,
    num_workers: int = _WORKERS,
    device: str | None = _DEVICE,
    disable_random_crop: bool = _FIXED_CROPS,
    pre_encoded: bool = _PRE_ENCODED,
    rank_by: str | None = _RANK_BY,
    top_k: int | None = _TOP_K,
) -> None:
    """Features of the training set and of the clips, scores, and ranked tables of tracks, artists and albums.

    A run that was killed goes on where it stopped.
    """
    _check_stored(pre_encoded, train_dataset_config)
    run_attribution(
        ModelFiles(model_config, ckpt_path, tuple(lora_ckpt_path or ()) or None, pretransform_ckpt_path),
        train_dataset_config,
        queries,
        output_dir,
        _feature_settings(features, disable_random_crop),
        ScoreSettings(**scoring),
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        rank_by=rank_by,
        top_k=top_k,
    )


@app.command("extract")
@flags_of(FeatureSettings)
def extract(
    features: dict[str, Any],
    *,
    model_config: Path = _MODEL_CONFIG,
    ckpt_path: Path = _CKPT,
    lora_ckpt_path: list[str] | None = _LORA,
    pretransform_ckpt_path: Path | None = _VAE,
    dataset_config: Path | None = typer.Option(
        None, help="Dataset config of the training set.", rich_help_panel=_FILES
    ),
    queries: Path | None = typer.Option(
        None, help="Or a folder of clips, or their dataset config.", rich_help_panel=_FILES
    ),
    output: Path = typer.Option(
        ..., help="Folder of the store; NAME.npy also writes one array.", rich_help_panel=_FILES
    ),
    batch_size: int = _BATCH,
    num_workers: int = _WORKERS,
    device: str | None = _DEVICE,
    disable_random_crop: bool = _FIXED_CROPS,
    pre_encoded: bool = _PRE_ENCODED,
) -> None:
    """Projected gradients of every track of a dataset, or of every clip, in a store that can be continued."""
    _check_stored(pre_encoded, dataset_config)
    extract_features(
        ModelFiles(model_config, ckpt_path, tuple(lora_ckpt_path or ()) or None, pretransform_ckpt_path),
        output,
        _feature_settings(features, disable_random_crop),
        dataset_config=dataset_config,
        queries=queries,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


@app.command("score")
@flags_of(ScoreSettings)
def score(
    scoring: dict[str, Any],
    *,
    train_features: Path = typer.Option(..., help="Store of the training set.", rich_help_panel=_FILES),
    query_features: Path = typer.Option(..., help="Store of the clips.", rich_help_panel=_FILES),
    output_dir: Path = typer.Option(
        Path("outputs/attribution"), help="Where the tables go.", rich_help_panel=_FILES
    ),
    rank_by: str | None = _RANK_BY,
    top_k: int | None = _TOP_K,
) -> None:
    """Scores of every track for every clip, from two stores: ranked tables of tracks, artists and albums."""
    score_stores(
        train_features, query_features, output_dir, ScoreSettings(**scoring), rank_by=rank_by, top_k=top_k
    )


app.command("validate")(validate)


def _feature_settings(flags: dict[str, Any], fixed_crops: bool) -> FeatureSettings:
    if fixed_crops and flags.get("random_crop"):
        raise UsageError("--random-crop and --disable-random-crop exclude each other")
    return FeatureSettings(**flags)


def _check_stored(pre_encoded: bool, dataset_config: Path | None) -> None:
    if not pre_encoded or dataset_config is None:  # clips are recordings whatever the training set is
        return
    found = read_dataset_config(dataset_config).dataset_type
    if found != "pre_encoded":
        raise UsageError(f"--pre-encoded: {dataset_config} is of type {found!r}, expected 'pre_encoded'")
