"""``sat evaluate``: how good generated clips are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(help="Measure quality: CLAP-FAD and alignment with the prompts.", no_args_is_help=True)

_CLAP = "laion/clap-htsat-fused"
_SAMPLING = "Sampling"


@app.command("precompute")
def precompute(
    csv_path: Path = typer.Option(..., help="song_describer.csv."),
    audio_dir: Path = typer.Option(..., help="Folder that holds NN/<track id>.2min.mp3."),
    output_path: Path = typer.Option(..., help="The .npz to write."),
    prompt_source: str = typer.Option("random", help="Which caption of a track: random, first or longest."),
    prompt_seed: int = typer.Option(42, help="Seed of random."),
    valid_only: bool = typer.Option(False, help="Only captions that the dataset marks as valid."),
    clap_model: str = typer.Option(_CLAP, help="CLAP: a Hugging Face name or folder."),
    clap_batch_size: int = typer.Option(16, help="Recordings at once."),
    max_audio_seconds: float = typer.Option(0.0, help="How much of each recording is heard; 0 is all of it."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps."),
) -> None:
    """Embed the Song Describer recordings and one caption of each with CLAP, once, for later comparison."""
    from stable_audio_tools.evaluation import song_describer
    from stable_audio_tools.runtime.progress import say

    result = song_describer.precompute(
        csv_path,
        audio_dir,
        output_path,
        prompt_source=prompt_source,
        prompt_seed=prompt_seed,
        valid_only=valid_only,
        clap=clap_model,
        batch_size=clap_batch_size,
        max_audio_seconds=max_audio_seconds or None,
        device=device,
    )
    say(f"{output_path}: {len(result.prompts)} recordings and captions")


@app.command("checkpoint")
def checkpoint(
    model_config: Path = typer.Option(..., help="Model config (JSON)."),
    ckpt_path: Path = typer.Option(..., help="Checkpoint."),
    lora_ckpt_path: list[str] = typer.Option(
        None, help="An adapter on top, or PATH:STRENGTH, any number of times."
    ),
    precomputed_embeddings_path: Path = typer.Option(..., help="The .npz of `precompute`."),
    output_dir: Path = typer.Option(Path("outputs/song_describer_eval"), help="Where clips and scores go."),
    steps: int = typer.Option(100, help="Sampler steps.", rich_help_panel=_SAMPLING),
    cfg_scale: float = typer.Option(7.0, help="Strength of guidance.", rich_help_panel=_SAMPLING),
    sampler: str = typer.Option(
        None, help="Sampler; by default that of the objective.", rich_help_panel=_SAMPLING
    ),
    seed: int = typer.Option(42, help="Seed of the first clip.", rich_help_panel=_SAMPLING),
    seconds: float = typer.Option(
        None, help="Length of each clip; by default the training window.", rich_help_panel=_SAMPLING
    ),
    limit: int = typer.Option(None, help="Only the first prompts.", rich_help_panel=_SAMPLING),
    gen_batch_size: int = typer.Option(4, help="Clips rendered at once.", rich_help_panel=_SAMPLING),
    clap_model: str = typer.Option(None, help="CLAP; by default the one that made the embeddings."),
    clap_batch_size: int = typer.Option(16, help="Clips embedded at once."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps."),
) -> None:
    """Render the prompts of a precomputed set with a checkpoint and score them against its recordings."""
    from stable_audio_tools.evaluation import song_describer

    scores = song_describer.evaluate_checkpoint(
        model_config,
        ckpt_path,
        precomputed_embeddings_path,
        lora_ckpt_path=lora_ckpt_path,
        output_dir=output_dir,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        seed=seed,
        seconds=seconds,
        limit=limit,
        gen_batch_size=gen_batch_size,
        clap=clap_model,
        clap_batch_size=clap_batch_size,
        device=device,
    )
    _show(scores)


@app.command("folder")
def folder(
    generated_dir: Path = typer.Option(..., help="Folder of clips."),
    reference: Path = typer.Option(..., help="The .npz of `precompute`, or a folder of real recordings."),
    output_path: Path = typer.Option(None, help="Also write the scores as JSON."),
    clap_model: str = typer.Option(None, help="CLAP; by default the one that made the embeddings."),
    clap_batch_size: int = typer.Option(16, help="Clips embedded at once."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps."),
) -> None:
    """Score a folder of clips: Fréchet distance to real recordings, and agreement with their prompts."""
    from stable_audio_tools.evaluation.run import evaluate_folder

    scores = evaluate_folder(
        generated_dir,
        reference,
        clap=clap_model,
        batch_size=clap_batch_size,
        device=device,
        output_path=output_path,
    )
    _show(scores)


def _show(scores: dict[str, Any]) -> None:
    """The figures on standard output, what to know about them after."""
    for name, value in scores.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            typer.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    for note in scores.get("notes", []):
        typer.echo(f"note: {note}")
