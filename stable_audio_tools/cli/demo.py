"""``sat demo``: the whole chain, small but real."""

from __future__ import annotations

from pathlib import Path

import typer

from stable_audio_tools.errors import UsageError


def demo(
    dataset: Path | None = typer.Option(None, help="A folder of your own in MTG-Jamendo layout."),
    out_dir: Path = typer.Option(Path("demo-run"), help="Where everything goes."),
    steps: int = typer.Option(160, min=1, help="Fine-tuning steps."),
    clips: int = typer.Option(6, min=1, help="Clips to generate."),
    seed: int = typer.Option(42, help="Seed of every draw."),
    device: str = typer.Option("cpu", help="auto, cpu, cuda or mps."),
    materials: bool = typer.Option(
        False,
        "--materials",
        help="Only write the catalogue, the models and a config for each recipe of docs/training.md.",
    ),
) -> None:
    """Drop duplicates, fine-tune, generate, attribute and evaluate, on a catalogue played for you.

    The models are tiny and trained; nothing is downloaded. Ends with a table and a page to listen to.
    A demo that was stopped goes on where it was.
    """
    import time

    if materials:
        from stable_audio_tools.demo.materials import write_materials

        if dataset is not None:
            raise UsageError("--materials and --dataset exclude each other: the recipes have their music")
        write_materials(out_dir)
        return
    from rich.console import Console
    from rich.table import Table

    from stable_audio_tools.demo.result import DemoSettings, summary
    from stable_audio_tools.demo.run import run_demo

    started = time.monotonic()
    result = run_demo(out_dir, dataset, DemoSettings(steps=steps, clips=clips, seed=seed), device)
    table = Table("stage", "result", "seconds", title="stable-audio-tools demo")
    table.columns[2].justify = "right"
    for stage, outcome, seconds in summary(result):
        table.add_row(stage, outcome, f"{seconds:.0f}")
    table.add_section()
    table.add_row("all", f"listen: {result.folder / 'index.html'}", f"{time.monotonic() - started:.0f}")
    Console().print(table)
