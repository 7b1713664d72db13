"""``sat config``: read and describe configs."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from stable_audio_tools.errors import UsageError

app = typer.Typer(help="Check configs and print their JSON Schema.", no_args_is_help=True)


@app.command("schema")
def schema(kind: str = typer.Argument("model", help="model or dataset")) -> None:
    """Print the JSON Schema of a kind of config, for completion and checks in an editor."""
    from stable_audio_tools.schema.reader import json_schema

    if kind not in ("model", "dataset"):
        raise UsageError(f"unknown kind of config {kind!r}: expected model or dataset")
    typer.echo(json.dumps(json_schema(kind), indent=2))


@app.command("check")
def check(paths: list[Path] = typer.Argument(help="model or dataset configs")) -> None:
    """Read configs as training would, and say what each of them is."""
    from stable_audio_tools.schema.reader import parse_dataset_config, parse_model_config, read_json

    for path in paths:
        value = read_json(path)
        if isinstance(value, dict) and "dataset_type" in value:
            dataset = parse_dataset_config(value, source=str(path))
            typer.echo(f"{path}: dataset of type {dataset.dataset_type}, {len(dataset.datasets)} folder(s)")
        else:
            model = parse_model_config(value, source=str(path))
            typer.echo(
                f"{path}: model of type {model.model_type}, {model.audio_channels} channel(s)"
                f" at {model.sample_rate} Hz, window {model.duration_seconds:.1f} s"
            )
