"""``sat data``: what is in a dataset, what is wrong with it, and what must stay out of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.data.check.kinds import KINDS, Thresholds
from stable_audio_tools.errors import DataError, UsageError

if TYPE_CHECKING:
    from stable_audio_tools.data.check.run import CheckReport, Checksums
    from stable_audio_tools.data.index import TrackIndex
    from stable_audio_tools.data.leakage import Identity

app = typer.Typer(help="Check a dataset before it is trained on.", no_args_is_help=True)

_LEAKAGE = "Keeping the evaluation out of training"
_COPIES = "Duplicates"
_TABLES = (".csv", ".tsv")
_NO_MODEL = "none"


@app.callback()
def _data() -> None:
    """Check a dataset before it is trained on."""


@app.command("check")
@flags_of(Thresholds)
def check(
    limits: dict[str, Any],
    *,
    dataset: Path = typer.Argument(
        ...,
        help="A folder of recordings, a dataset config (JSON), or a table of tracks (.tsv, .csv).",
    ),
    output_dir: Path = typer.Option(
        Path("outputs/data_check"), help="Where report.html, summary.json and files.jsonl go."
    ),
    fix: Path = typer.Option(
        None, help="Add what must be left out to this list, which exclude_paths_file reads."
    ),
    fix_also: list[str] = typer.Option([], help="Leave out tracks with this problem too. Repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
    strict: bool = typer.Option(False, help="End with exit code 2 if a track must be left out."),
    num_workers: int = typer.Option(None, help="Processes; by default one for each processor."),
    against: list[str] = typer.Option(
        [],
        help="The evaluation set: a config, a folder, or a table such as song_describer.csv. Repeatable.",
        rich_help_panel=_LEAKAGE,
    ),
    rules: str = typer.Option(
        "track,bytes,audio,artist", help="What makes a track too close.", rich_help_panel=_LEAKAGE
    ),
    checksums: list[Path] = typer.Option(
        [],
        help="Published SHA-256 of tracks (*_sha256_tracks.txt): finds twins without the audio. Repeatable.",
        rich_help_panel=_LEAKAGE,
    ),
    duplicates: bool = typer.Option(
        False, help="Also search for altered copies, as `sat dedup` does.", rich_help_panel=_COPIES
    ),
    model_path: str = typer.Option(
        _NO_MODEL,
        help="DAC, a Hugging Face name or folder, to search by its codes too; none: by landmarks only.",
        rich_help_panel=_COPIES,
    ),
    device: str = typer.Option(None, help="Device of the codec.", rich_help_panel=_COPIES),
) -> None:
    """Say what a dataset holds and what is wrong with it; nothing in it is changed.

    Every file is decoded once. A check that was killed goes on where it stopped; a second one reads only what
    changed.
    """
    from stable_audio_tools.data.check import page, summary
    from stable_audio_tools.data.leakage import RULES, read_checksums
    from stable_audio_tools.runtime.progress import say

    chosen_rules = [rule for rule in (part.strip() for part in rules.split(",")) if rule]
    _refuse_unknown(chosen_rules, RULES, "--rules")
    _refuse_unknown(fix_also, KINDS, "--fix-also")
    published = read_checksums(checksums)
    if dataset.suffix.lower() in _TABLES:
        _check_table(dataset, against, chosen_rules, published, output_dir, fix, as_json, strict)
        return
    index = _index(dataset)
    evaluation, heard = _evaluation(against, published, output_dir, num_workers)
    report = _measured(
        str(dataset), index, output_dir, limits, evaluation, chosen_rules, published, num_workers
    )
    if duplicates:
        report = _with_duplicates(report, heard, output_dir / "dedup", model_path, device)
    summary.write_summary(report, output_dir / "summary.json")
    page.write_page(report, output_dir / "report.html")
    lines = summary.text_lines(report)
    typer.echo(json.dumps(summary.summary_of(report), indent=2) if as_json else "\n".join(lines))
    if fix is not None:
        added = summary.write_exclude_list(report, fix, fix_also)
        say(f"{fix}: {added} paths added; name it as exclude_paths_file in the dataset config")
    say(f"{output_dir / 'report.html'}: the page to look at and listen to")
    out = len(report.excluded(fix_also))
    if strict and out:
        raise DataError(f"{dataset}: {out} of {len(index)} tracks must be left out; see {output_dir}")


def _refuse_unknown(names: Sequence[str], known: dict[str, Any], flag: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{flag}: unknown {unknown[0]!r}; expected {', '.join(known)}")


def _index(dataset: Path, apply_excludes: bool = True) -> TrackIndex:
    """The tracks of a folder or config, those that cannot be read among them."""
    from stable_audio_tools.data.webdataset import recordings_of
    from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

    if dataset.is_dir():
        entry = {"id": dataset.resolve().name or "audio", "path": str(dataset)}
        config, base_dir = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]}), None
    elif dataset.suffix.lower() == ".json":
        config, base_dir = read_dataset_config(dataset), dataset.parent
    else:
        what = "is neither a folder nor a .json, .tsv or .csv file" if dataset.exists() else "does not exist"
        raise UsageError(f"{dataset}: {what}; expected a folder of recordings, a dataset config or a table")
    return recordings_of(config, base_dir=base_dir, apply_excludes=apply_excludes, lenient=True)


def _evaluation(
    against: Sequence[str], published: Checksums, output_dir: Path, num_workers: int | None
) -> tuple[list[Identity] | None, list[TrackIndex]]:
    """Who the evaluation tracks are, and those of them whose recordings are there; None without any."""
    from stable_audio_tools.data.check.known import known_of_all
    from stable_audio_tools.data.check.run import identities
    from stable_audio_tools.data.check.survey import survey
    from stable_audio_tools.data.leakage import read_table

    if not against:
        return None, []
    found: list[Identity] = []
    heard: list[TrackIndex] = []
    for number, name in enumerate(against):
        path = Path(name)
        if path.suffix.lower() in _TABLES:
            found += read_table(path, published)
            continue
        index = _index(path, apply_excludes=False)
        journal = output_dir / f"evaluation_{number}_files.jsonl"
        facts = survey(
            [track.source for track in index], journal, num_workers=num_workers, description="evaluation"
        )
        found += identities(index, facts, known_of_all(index, facts), published)
        heard.append(index)
    return found, heard


def _measured(
    title: str,
    index: TrackIndex,
    output_dir: Path,
    limits: dict[str, Any],
    evaluation: list[Identity] | None,
    rules: Sequence[str],
    published: Checksums,
    num_workers: int | None,
) -> CheckReport:
    from stable_audio_tools.data.check.run import check_dataset

    return check_dataset(
        title,
        index,
        output_dir,
        limits=Thresholds(**limits),
        evaluation=evaluation,
        rules=rules,
        checksums=published,
        num_workers=num_workers,
    )


def _with_duplicates(
    report: CheckReport,
    evaluation: Sequence[TrackIndex],
    output_dir: Path,
    model_path: str,
    device: str | None,
) -> CheckReport:
    """With the altered copies that dedup finds, among the tracks and of those of the evaluation."""
    from stable_audio_tools.data.check.run import Recording
    from stable_audio_tools.dedup.run import run_dedup
    from stable_audio_tools.dedup.settings import DedupSettings

    settings = DedupSettings(model_path=None if model_path == _NO_MODEL else model_path, device=device)
    readable = [track for track, facts in zip(report.index, report.facts, strict=True) if facts.measured]
    theirs = [track for index in evaluation for track in index]
    found = run_dedup(readable, output_dir, settings, evaluation=theirs)
    rows = {track.sample_id: track.index for track in readable}
    excluded = set(found.excluded)
    groups = []
    for names in found.groups:
        ours = [name for name in names if name in rows]
        stays = next((rows[name] for name in ours if name not in excluded), None)
        twin = next((found.evaluation_twins[name] for name in ours if name in found.evaluation_twins), None)
        groups.append(Recording([rows[name] for name in ours], stays, twin))
    note = f"{output_dir / 'pairs.html'} has the pairs of altered copies to listen to, with the evidence"
    return replace(report.with_recordings(groups), notes=[*report.notes, note])


def _check_table(
    table: Path,
    against: Sequence[str],
    rules: Sequence[str],
    published: Checksums,
    output_dir: Path,
    fix: Path | None,
    as_json: bool,
    strict: bool,
) -> None:
    """A table of tracks that need not be here yet: what leaks, and what is there twice."""
    from stable_audio_tools.data.check.table import check_table, table_lines, write_table_exclude_list
    from stable_audio_tools.runtime.files import write_json
    from stable_audio_tools.runtime.progress import say

    evaluation, _ = _evaluation(against, published, output_dir, None)
    result = check_table(table, evaluation or [], rules, published)
    write_json(output_dir / "summary.json", result.record())
    typer.echo(json.dumps(result.record(), indent=2) if as_json else "\n".join(table_lines(result)))
    if fix is not None:
        added = write_table_exclude_list(result, fix)
        say(f"{fix}: {added} paths added; name it as exclude_paths_file in the dataset config")
    if strict and result.excluded:
        raise DataError(f"{table}: {len(result.excluded)} of {len(result.tracks)} tracks must be left out")
