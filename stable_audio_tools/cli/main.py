"""``sat``: one subcommand per job. Only the job that was asked for is imported, so that help is instant."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any, NamedTuple, NoReturn

import typer

from stable_audio_tools.errors import StableAudioError


class Job(NamedTuple):
    """A subcommand: the module of ``cli`` that has it, the name in there, and its line in the help."""

    module: str
    name: str
    summary: str
    panel: str
    again: str = "run the same command again to go on where it stopped"
    """What to do after Ctrl-C."""


_RECOVER = "the same command with --recover goes on from the last checkpoint"
JOBS = {
    "demo": Job(
        "demo", "demo", "The whole chain on a built-in catalogue; nothing to download.", "Start here"
    ),
    "download-jamendo": Job(
        "download", "jamendo", "Get tracks of MTG-Jamendo, verified, with tables and licences.", "Data"
    ),
    "download-song-describer": Job(
        "download", "song_describer", "Get the Song Describer evaluation set, verified.", "Data"
    ),
    "data": Job("data", "app", "Check what a dataset holds, and keep evaluation out of it.", "Data"),
    "config": Job("config", "app", "Check configs and print their JSON Schema.", "Data"),
    "dedup": Job(
        "dedup", "dedup", "Find duplicate tracks and write the list that training leaves out.", "Data"
    ),
    "pre-encode": Job("pre_encode", "pre_encode", "Store the latents of every track, once.", "Data"),
    "train": Job("train", "train", "Fine-tune or train a model.", "Training", _RECOVER),
    "train-lora": Job(
        "train", "train_lora", "Train low-rank adapters on a frozen base model.", "Training", _RECOVER
    ),
    "unwrap": Job("unwrap", "unwrap", "Turn a training checkpoint into a model file.", "Training"),
    "extract-vae": Job(
        "extract_vae", "extract_vae", "Write the autoencoder of a model to a file of its own.", "Training"
    ),
    "generate": Job("generate", "generate", "Make clips from prompts.", "Using a model"),
    "attribute": Job(
        "attribute", "app", "Ask which training tracks shaped generated clips.", "Using a model"
    ),
    "evaluate": Job("evaluate", "app", "Measure quality: CLAP-FAD and alignment.", "Using a model"),
}

_INTERRUPTED = 130
# A disk or a path that the user can mend. Any other OSError would be a bug and keeps its traceback.
_DISK_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)


def build(chosen: str | None = None) -> typer.Typer:
    """The command line, with the job ``chosen`` in full and the others by name and summary."""
    app = typer.Typer(
        name="sat",
        help="Train, generate, de-duplicate, attribute and evaluate with latent-diffusion music models.",
        epilog="Start with: sat demo",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for command, job in JOBS.items():
        part: Any = _summary_only(job)
        if command == chosen:
            part = getattr(import_module(f"stable_audio_tools.cli.{job.module}"), job.name)
        if isinstance(part, typer.Typer):
            app.add_typer(part, name=command, help=job.summary, rich_help_panel=job.panel)
        else:
            app.command(command, short_help=job.summary, rich_help_panel=job.panel)(part)
    app.callback(invoke_without_command=True)(_version)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``sat`` with ``argv`` (default: the command line) and exit.

    Exit codes: 0 done; 2 something the user can mend, said in one line; 130 interrupted; 1 a bug, with its
    traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        build(args[0] if args else None)(args=args, prog_name="sat")
    except StableAudioError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _refuse(f"{error.filename or 'disk'}: {error.strerror}; free the path or choose another")
    except SystemExit as end:  # typer makes one of Ctrl-C, without a word
        if end.code == _INTERRUPTED and args[0] in JOBS:
            typer.secho(f"interrupted; {JOBS[args[0]].again}", err=True)
        raise


def _refuse(message: str) -> NoReturn:
    typer.secho("error: " + " ".join(message.split()), fg="red", err=True)
    raise SystemExit(2) from None


def _summary_only(job: Job) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = job.summary
    return command


def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        typer.echo(f"stable-audio-tools {metadata.version('stable-audio-tools')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
