"""``sat attribute validate``: whether the scores tell the truth, by training again without tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from stable_audio_tools.attribution.proof.experiment import ProofSettings
from stable_audio_tools.attribution.proof.retrain import RetrainSettings
from stable_audio_tools.attribution.proof.validate import ValidateSettings, validate_attribution
from stable_audio_tools.attribution.scoring.scores import DEFAULT_LAMBDA
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.progress import say

_FILES, _MODELS, _WORK = "Model and data", "What is retrained", "Compute"


@flags_of(FeatureSettings)
def validate(
    features: dict[str, Any],
    *,
    model_config: Path = typer.Option(..., help="Model config (JSON).", rich_help_panel=_FILES),
    ckpt_path: Path = typer.Option(
        ...,
        "--ckpt-path",
        "--checkpoint",
        help="Its checkpoint: conditioners and autoencoder stay, the network is trained again.",
        rich_help_panel=_FILES,
    ),
    pretransform_ckpt_path: Path | None = typer.Option(
        None, help="Checkpoint of the autoencoder, if not in the model's.", rich_help_panel=_FILES
    ),
    train_dataset_config: Path = typer.Option(
        ...,
        "--train-dataset-config",
        "--train-dataset",
        help="Dataset config of the training set.",
        rich_help_panel=_FILES,
    ),
    output_dir: Path = typer.Option(
        Path("outputs/validation"), help="Where results and the report go.", rich_help_panel=_FILES
    ),
    lambda_scale: float = typer.Option(
        DEFAULT_LAMBDA, help="Regularisation of the scores that are validated."
    ),
    subsets: int = typer.Option(128, help="Random halves of the training set.", rich_help_panel=_MODELS),
    model_seeds: int = typer.Option(2, help="Models of each half.", rich_help_panel=_MODELS),
    train_steps: int = typer.Option(1000, help="Training steps of each model.", rich_help_panel=_MODELS),
    train_batch_size: int = typer.Option(64, help="Tracks in a training step.", rich_help_panel=_MODELS),
    learning_rate: float = typer.Option(8e-4, help="Its highest value.", rich_help_panel=_MODELS),
    continue_training: bool = typer.Option(
        False,
        "--continue-training",
        help="All models start from the checkpoint, as in fine-tuning.",
        rich_help_panel=_MODELS,
    ),
    generated: int = typer.Option(32, help="Clips to make and ask about.", rich_help_panel=_MODELS),
    held_out: int = typer.Option(
        32, help="Tracks kept from all models, to ask about; at most a fifth.", rich_help_panel=_MODELS
    ),
    removal_queries: int = typer.Option(
        8, help="Queries of each kind whose top tracks are left out; 0 for none.", rich_help_panel=_MODELS
    ),
    artists_left_out: int = typer.Option(
        16, help="Artists left out whole, one at a time; 0 for none.", rich_help_panel=_MODELS
    ),
    models_at_once: int | None = typer.Option(
        None, help="Models trained in one stack; by default as many as fit in 8 GiB.", rich_help_panel=_WORK
    ),
    compile: bool = typer.Option(False, help="Compile the training step.", rich_help_panel=_WORK),
    num_workers: int = typer.Option(4, help="Processes that decode.", rich_help_panel=_WORK),
    device: str | None = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_WORK),
) -> None:
    """Train many copies of a small model on halves of its training set, and see whether scores foretell them.

    Writes report.json and report.html. For any conditional diffusion model small enough to train some hundred
    times. A run that was killed goes on where it stopped.
    """
    settings = ValidateSettings(
        features=FeatureSettings(**features),
        lambda_scale=lambda_scale,
        proof=ProofSettings(
            subsets=subsets,
            seeds=model_seeds,
            generated=generated,
            removal_queries=removal_queries,
            groups_left_out=artists_left_out,
        ),
        retrain=RetrainSettings(
            steps=train_steps, batch_size=train_batch_size, learning_rate=learning_rate, compile=compile
        ),
        held_out=held_out,
        continue_training=continue_training,
        at_once=models_at_once,
    )
    made = validate_attribution(
        ModelFiles(model_config, ckpt_path, None, pretransform_ckpt_path),
        train_dataset_config,
        output_dir,
        settings,
        num_workers=num_workers,
        device=device,
    )
    typer.echo(made.text)
    say(f"{made.json}, {made.page}")
