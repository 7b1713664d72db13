"""``sat attribute``: which training tracks shaped each generated clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from stable_audio_tools.attribution.evidence.gather import ReportSettings
from stable_audio_tools.attribution.run import (
    are_whole,
    extract_both,
    run_attribution,
    score_stores,
)
from stable_audio_tools.attribution.run import extract as extract_features
from stable_audio_tools.attribution.scoring.scores import ScoreSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.attribution.sharing import share_of
from stable_audio_tools.cli.attribute_validate import validate
from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.checkpoints import read_checkpoint
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.models.pretrained import CONFIG_NAME, find_pretrained
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import read_dataset_config

app = typer.Typer(help="Ask which training tracks shaped generated clips (D-TRAK).", no_args_is_help=True)

_FILES, _WORK, _RANKING = "Model and data", "Compute", "Ranking"
_MODEL_CONFIG = typer.Option(
    None,
    help="Model config (JSON); by default the model_config.json beside the checkpoint, or the one in it.",
    rich_help_panel=_FILES,
)
_CKPT = typer.Option(
    ...,
    "--ckpt-path",
    "--checkpoint",
    help="The model's checkpoint, unwrapped or as training wrote it, or the folder of a published model.",
    rich_help_panel=_FILES,
)
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
_COMPILE = typer.Option(
    None,
    "--compile/--no-compile",
    help="Compile the network's blocks: a minute once, then faster. By default on a GPU, for many tracks.",
    rich_help_panel=_WORK,
)
_SHARD = typer.Option(
    None,
    help="i/n: do the i-th of n parts, from 0, as in a Slurm array. torchrun and srun need no flag.",
    rich_help_panel=_WORK,
)
_PROMPT = typer.Option(
    None, help="Prompt of the clips, in place of what they were made from.", rich_help_panel=_FILES
)
_QUERIES = "a folder, an audio file, a table (CSV: path,prompt), or a dataset config."
_RANK_BY = typer.Option(
    None,
    help="score or score_squared; by default the square where a sign means nothing.",
    rich_help_panel=_RANKING,
)
_TOP_K = typer.Option(
    None, help="Rows of each clip in the ranking; by default all.", rich_help_panel=_RANKING
)


@app.command("run")
@flags_of(FeatureSettings, ScoreSettings, ReportSettings)
def run(
    features: dict[str, Any],
    scoring: dict[str, Any],
    reporting: dict[str, Any],
    *,
    model_config: Path | None = _MODEL_CONFIG,
    ckpt_path: Path = _CKPT,
    lora_ckpt_path: list[str] | None = _LORA,
    pretransform_ckpt_path: Path | None = _VAE,
    train_dataset_config: Path = typer.Option(
        ...,
        "--train-dataset-config",
        "--train-dataset",
        help="Dataset config of the training set.",
        rich_help_panel=_FILES,
    ),
    queries: Path = typer.Option(..., help=f"Clips: {_QUERIES}", rich_help_panel=_FILES),
    prompt: str | None = _PROMPT,
    output_dir: Path = typer.Option(
        Path("outputs/attribution"), help="Where features and tables go.", rich_help_panel=_FILES
    ),
    batch_size: int = _BATCH,
    num_workers: int = _WORKERS,
    device: str | None = _DEVICE,
    disable_random_crop: bool = _FIXED_CROPS,
    pre_encoded: bool = _PRE_ENCODED,
    compile: bool | None = _COMPILE,
    shard: str | None = _SHARD,
    rank_by: str | None = _RANK_BY,
    top_k: int | None = _TOP_K,
    report: bool = typer.Option(True, help="Intervals, pages and the export, too.", rich_help_panel="Report"),
) -> None:
    """Features of the training set and of the clips, scores, ranked tables, and a report to listen to.

    A run that was killed goes on where it stopped. Started by torchrun or srun, or with --shard, several
    processes share the work, and the last one scores.
    """
    _check_stored(pre_encoded, train_dataset_config)
    settings, score_settings = _feature_settings(features, disable_random_crop), ScoreSettings(**scoring)
    files = _model_files(model_config, ckpt_path, lora_ckpt_path, pretransform_ckpt_path, output_dir)
    work: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": device,
        "compile": compile,
        "prompt": prompt,
    }
    if share_of(shard).world_size > 1:
        asked = train_dataset_config, queries, output_dir
        if not extract_both(files, *asked, settings, score_settings, shard=shard, **work):
            say("rows are missing, and other processes work on them: the last one makes the tables")
            return
    run_attribution(
        files,
        train_dataset_config,
        queries,
        output_dir,
        settings,
        score_settings,
        rank_by=rank_by,
        top_k=top_k,
        **work,
        report=ReportSettings(**reporting) if report else None,
    )


@app.command("extract")
@flags_of(FeatureSettings)
def extract(
    features: dict[str, Any],
    *,
    model_config: Path | None = _MODEL_CONFIG,
    ckpt_path: Path = _CKPT,
    lora_ckpt_path: list[str] | None = _LORA,
    pretransform_ckpt_path: Path | None = _VAE,
    dataset_config: Path | None = typer.Option(
        None,
        "--dataset-config",
        "--train-dataset-config",
        "--train-dataset",
        help="Dataset config of the training set.",
        rich_help_panel=_FILES,
    ),
    queries: Path | None = typer.Option(None, help=f"Or clips: {_QUERIES}", rich_help_panel=_FILES),
    prompt: str | None = _PROMPT,
    output: Path = typer.Option(
        ..., help="Folder of the store; NAME.npy also writes one array.", rich_help_panel=_FILES
    ),
    batch_size: int = _BATCH,
    num_workers: int = _WORKERS,
    device: str | None = _DEVICE,
    disable_random_crop: bool = _FIXED_CROPS,
    pre_encoded: bool = _PRE_ENCODED,
    compile: bool | None = _COMPILE,
    shard: str | None = _SHARD,
) -> None:
    """Projected gradients of every track of a dataset, or of every clip, in a store that can be continued.

    Started by torchrun or srun, or with --shard, the processes share the work and fill one store.
    """
    _check_stored(pre_encoded, dataset_config)
    folder = output.with_suffix("") if output.suffix == ".npy" else output
    extract_features(
        _model_files(model_config, ckpt_path, lora_ckpt_path, pretransform_ckpt_path, folder.parent),
        output,
        _feature_settings(features, disable_random_crop),
        dataset_config=dataset_config,
        queries=queries,
        prompt=prompt,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        compile=compile,
        shard=shard,
    )


@app.command("score")
@flags_of(ScoreSettings)
def score(
    scoring: dict[str, Any],
    *,
    train_features: list[Path] = typer.Option(
        ..., help="Store of the training set; several make an ensemble.", rich_help_panel=_FILES
    ),
    query_features: list[Path] = typer.Option(
        ..., help="Store of the clips; as many, in the same order.", rich_help_panel=_FILES
    ),
    output_dir: Path = typer.Option(
        Path("outputs/attribution"), help="Where the tables go.", rich_help_panel=_FILES
    ),
    rank_by: str | None = _RANK_BY,
    top_k: int | None = _TOP_K,
    if_whole: bool = typer.Option(
        False, "--if-whole", help="Do nothing as long as other processes have rows to write."
    ),
) -> None:
    """Scores of every track for every clip, from two stores: ranked tables of tracks, artists and albums."""
    if if_whole and not are_whole(*train_features, *query_features):
        say("rows are missing, and other processes work on them: the last one makes the tables")
        return
    score_stores(
        train_features, query_features, output_dir, ScoreSettings(**scoring), rank_by=rank_by, top_k=top_k
    )


app.command("validate")(validate)


def _feature_settings(flags: dict[str, Any], fixed_crops: bool) -> FeatureSettings:
    if fixed_crops and flags.get("random_crop"):
        raise UsageError("--random-crop and --disable-random-crop exclude each other")
    mode = flags.get("mode", "hooked")
    foreign, own = {"hooked": ("proj_dim", "--proj-rank"), "dense": ("proj_rank", "--proj-dim")}.get(
        mode, ("", "")
    )
    if foreign in flags:
        other = "dense" if mode == "hooked" else "hooked"
        raise UsageError(
            f"--{foreign.replace('_', '-')} belongs to --mode {other}, and the mode is {mode};"
            f" give --mode {other}, or {own}"
        )
    return FeatureSettings(**flags)


def _model_files(
    model_config: Path | None, ckpt_path: Path, lora: list[str] | None, vae: Path | None, folder: Path
) -> ModelFiles:
    """The model's files; a config that is only in the checkpoint is written to ``folder``."""
    adapters = tuple(lora or ()) or None
    if ckpt_path.is_dir():
        found = find_pretrained(ckpt_path)
        return ModelFiles(model_config or found.model_config, found.ckpt_path, adapters, vae)
    if model_config is None:
        model_config = ckpt_path.parent / CONFIG_NAME
        if not model_config.is_file():
            config = read_checkpoint(ckpt_path).model_config
            if config is None:
                raise UsageError(
                    f"{ckpt_path}: holds no model config, and there is no {model_config}; give --model-config"
                )
            model_config = folder / CONFIG_NAME
            write_json(model_config, config)
    return ModelFiles(model_config, ckpt_path, adapters, vae)


def _check_stored(pre_encoded: bool, dataset_config: Path | None) -> None:
    if not pre_encoded or dataset_config is None:  # clips are recordings whatever the training set is
        return
    found = read_dataset_config(dataset_config).dataset_type
    if found != "pre_encoded":
        raise UsageError(f"--pre-encoded: {dataset_config} is of type {found!r}, expected 'pre_encoded'")
