"""``sat download-jamendo`` and ``sat download-song-describer``: public catalogues, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.data.download.settings import JamendoSettings, SongDescriberSettings


@flags_of(JamendoSettings)
def jamendo(
    given: dict[str, Any],
    *,
    audio_dir: Path = typer.Option(..., help="Where the audio goes; the tables go into the folder above."),
) -> None:
    """Get tracks of MTG-Jamendo, each verified, with their tables, licences and whom to name.

    For example: sat download-jamendo --target 5000 --audio-dir dataset/small-5000/audio
    """
    from stable_audio_tools.data.download.jamendo import download_jamendo

    settings = JamendoSettings(**given)
    result = download_jamendo(audio_dir, settings)
    if settings.dry_run:
        typer.echo("\n".join(result.lines()))
        return
    typer.echo(f"{audio_dir}: {result.verified} verified recordings, {result.fetched} of them new")


@flags_of(SongDescriberSettings)
def song_describer(
    given: dict[str, Any],
    *,
    output_dir: Path = typer.Option(Path("dataset/small-700"), help="Where everything goes."),
) -> None:
    """Get the Song Describer Dataset, verified: 706 recordings of two minutes and their captions."""
    from stable_audio_tools.data.download.meter import size_text
    from stable_audio_tools.data.download.song_describer import download_song_describer

    settings = SongDescriberSettings(**given)
    result = download_song_describer(output_dir, settings)
    if settings.dry_run:
        typer.echo(f"here already: {result.verified} recordings; to come: {size_text(result.bytes_to_come)}")
        return
    typer.echo(f"{output_dir}: {result.verified} verified recordings of {result.tracks} tracks")
