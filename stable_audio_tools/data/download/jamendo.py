"""MTG-Jamendo (Bogdanov et al. 2019): choose tracks by the tables, fetch them, write what belongs to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stable_audio_tools.data.download.catalogue import Catalogue, fetch_catalogue, tar_checksums
from stable_audio_tools.data.download.listing import (
    copy_licenses,
    copy_rows,
    license_counts,
    write_attribution,
)
from stable_audio_tools.data.download.meter import size_text
from stable_audio_tools.data.download.pool import Outcome
from stable_audio_tools.data.download.selection import choose, with_license, with_tags
from stable_audio_tools.data.download.session import (
    keep_verified,
    make_fetcher,
    only_run,
    raise_if_lacking,
    warn_of_room,
)
from stable_audio_tools.data.download.settings import JamendoSettings, listed
from stable_audio_tools.data.download.transfer import Fetcher
from stable_audio_tools.data.download.ways import BYTES_PER_SECOND, Ways
from stable_audio_tools.data.jamendo import JamendoNames, JamendoTrack, read_raw_meta
from stable_audio_tools.data.licenses import LICENSES_FILE
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.runtime.manifest import write_manifest
from stable_audio_tools.runtime.progress import say, warn

_ASKED = 40
"""How many sizes are asked for in a dry run; those of the others follow from their durations."""


@dataclass(frozen=True)
class JamendoResult:
    """What lies in the folder after a run, and what the run would be or was."""

    table: str
    chosen: int
    hours: float
    licenses: str
    bytes_to_come: float
    exact: bool
    """Whether every size was asked for, or some follow from durations."""
    fetched: int
    verified: int
    """Recordings in the folder whose checksum is right, of this choice or of others."""

    def lines(self) -> list[str]:
        """For people."""
        about = "" if self.exact else "about "
        return [
            f"chosen: {self.chosen} tracks of {self.table}, {self.hours:.1f} hours",
            f"licences: {self.licenses}",
            f"here already: {self.verified}; to come: {about}{size_text(self.bytes_to_come)}",
        ]


def download_jamendo(audio_dir: str | Path, settings: JamendoSettings) -> JamendoResult:
    """Get tracks of MTG-Jamendo into ``audio_dir`` and the tables of all that lies there beside it.

    Beside ``audio_dir`` are written ``raw_30s.tsv`` and ``raw.meta.tsv`` (the rows of the recordings here,
    letter for letter), ``audio_licenses.txt``, ``LICENSES.md``, ``ATTRIBUTION.tsv`` and ``download.json``.
    The same call goes on where an earlier one ended.

    Raises:
        UsageError: a setting does not fit, or no track fits the filters.
        DataError: a table cannot be had, or some tracks could not: the others and the tables are there.
    """
    audio_dir = Path(audio_dir)
    home = audio_dir.absolute().parent
    tables = make_fetcher(settings.metadata_url, "--metadata-url", settings)
    fetcher = make_fetcher(settings.base_url, "--base-url", settings)
    with only_run(home) as work:
        catalogue = fetch_catalogue(tables, work / "tables", settings)
        chosen = [catalogue.tracks[number] for number in choose_tracks(catalogue, settings)]
        present = _present(catalogue, audio_dir, settings.workers, look_only=settings.dry_run)
        missing = [track for track in chosen if catalogue.file_of(track) not in present]
        plan = _plan(catalogue, fetcher, chosen, missing, settings)
        if settings.dry_run:
            return plan
        for line in plan.lines():
            say(line)
        warn_of_room(audio_dir, plan.bytes_to_come)
        write_manifest(home, "download", {**asdict(settings), "tracks": [track.track_id for track in chosen]})
        ways = Ways(catalogue, fetcher, audio_dir, work, settings.workers)
        outcome = _fetch(ways, missing, tables, settings)
        here = present | {name for name in map(catalogue.file_of, missing) if (audio_dir / name).is_file()}
        if here:
            write_tables(catalogue, home, here)
        for line in ways.refused:
            warn(f"refused {line}")
        _say_end(audio_dir, chosen, missing, here, catalogue, outcome)
        return replace(
            plan, bytes_to_come=0.0, exact=True, fetched=len(here) - len(present), verified=len(here)
        )


def choose_tracks(catalogue: Catalogue, settings: JamendoSettings) -> list[int]:
    """The ids to get, by the filters and the selection of ``settings``.

    Raises:
        UsageError: no track fits, or a tag or licence is not known.
    """
    tracks: Mapping[int, JamendoTrack] = {
        number: track
        for number, track in catalogue.tracks.items()
        if catalogue.file_of(track) in catalogue.checksums
    }
    unlisted = len(catalogue.tracks) - len(tracks)
    if unlisted:
        warn(f"{unlisted} tracks of the table have no published checksum and are left out")
    if wanted := listed(settings.tags):
        tracks = with_tags(tracks, wanted)
    tracks = with_license(tracks, catalogue.licenses, listed(settings.license))
    if not tracks:
        raise UsageError(
            f"no track of {settings.subset} ({settings.split}) has the tags {settings.tags or 'any'} and the"
            f" licence {settings.license}"
        )
    if settings.target is not None and settings.target > len(tracks):
        warn(f"only {len(tracks)} tracks fit, not {settings.target}; all of them are taken")
    if settings.mode == "tar" and settings.target is not None:
        tracks = _in_few_tars(catalogue, tracks, settings.target, settings.seed)
    return choose(tracks, settings.target, settings.seed, settings.selection)


def write_tables(catalogue: Catalogue, home: Path, recordings: set[str]) -> None:
    """Write the tables of ``recordings`` (paths in the audio folder) into ``home``."""
    numbers = {int(Path(path).name.split(".")[0]): path for path in recordings}
    for table, source in catalogue.tables.items():
        if table == LICENSES_FILE:
            copy_licenses(source, home / table, numbers)
        else:
            copy_rows(source, home / table, numbers)
    seconds = sum(catalogue.all_tracks[number].duration_seconds for number in numbers)
    try:
        names: dict[int, JamendoNames] = read_raw_meta(home / "raw.meta.tsv")
    except DataError as error:
        warn(f"{error}; titles and artists are left to {LICENSES_FILE}")
        names = {}
    write_attribution(home, numbers, names, catalogue.licenses, seconds)


def _in_few_tars(
    catalogue: Catalogue, tracks: Mapping[int, JamendoTrack], target: int, seed: int
) -> dict[int, JamendoTrack]:
    """The tracks of the first tars, in an order drawn from ``seed``, that hold ``target`` between them.

    A tar holds the tracks whose ids end in its two digits, so a few of them are as good a sample as any.
    """
    from stable_audio_tools.runtime.seeds import derive_seed

    by_tar: dict[str, dict[int, JamendoTrack]] = {}
    for number, track in tracks.items():
        by_tar.setdefault(catalogue.tar_of(track), {})[number] = track
    kept: dict[int, JamendoTrack] = {}
    for tar in sorted(by_tar, key=lambda tar: derive_seed("choose a tar", seed, tar)):
        if len(kept) >= target:
            break
        kept.update(by_tar[tar])
    return kept


def _present(catalogue: Catalogue, audio_dir: Path, workers: int, *, look_only: bool) -> set[str]:
    """Recordings that lie here already and are right.

    Raises:
        UsageError: some are of the other quality: the same track would be there twice.
    """
    found = sorted(path.relative_to(audio_dir).as_posix() for path in audio_dir.glob("[0-9][0-9]/[!.]*.mp3"))
    low = [name for name in found if name.endswith(".low.mp3")]
    other = low if catalogue.quality == "audio" else sorted(set(found) - set(low))
    if other:
        raise UsageError(
            f"{audio_dir}: holds {len(other)} files of the other quality, {other[0]} first; take another"
            " folder, or every track would be there twice"
        )
    known = [name for name in found if name in catalogue.checksums]
    if len(known) < len(found):
        warn(f"{audio_dir}: {len(found) - len(known)} files are not of this catalogue and are not listed")
    return set(known) if look_only else keep_verified(audio_dir, catalogue.checksums, known, workers)


def _plan(
    catalogue: Catalogue,
    fetcher: Fetcher,
    chosen: Sequence[JamendoTrack],
    missing: Sequence[JamendoTrack],
    settings: JamendoSettings,
) -> JamendoResult:
    """What there is to do; in a dry run some sizes are asked for."""
    rate = BYTES_PER_SECOND[catalogue.quality]
    parts = {catalogue.file_of(track): track.duration_seconds * rate for track in missing}
    if settings.mode == "tar":
        tars = {catalogue.tar_of(track) for track in missing}
        parts = {tar: Ways.tar_bytes(catalogue) for tar in sorted(tars)}
    asked: dict[str, int] = {}
    for name in list(parts)[:_ASKED] if settings.dry_run and settings.mode != "member" else []:
        try:
            length = fetcher.length(catalogue.remote(name))
        except DataError as error:
            warn(f"the size is a guess: {error}")
            break
        if length is not None:
            asked[name] = length
    guessed = sum(parts[name] for name in asked)
    scale = sum(asked.values()) / guessed if guessed else 1.0
    total = sum(asked.values()) + scale * sum(size for name, size in parts.items() if name not in asked)
    return JamendoResult(
        f"{settings.subset} ({settings.split})",
        len(chosen),
        sum(track.duration_seconds for track in chosen) / 3600,
        license_counts([track.track_id for track in chosen], catalogue.licenses),
        total,
        len(asked) == len(parts),
        0,
        len(chosen) - len(missing),
    )


def _fetch(
    ways: Ways, missing: Sequence[JamendoTrack], tables: Fetcher, settings: JamendoSettings
) -> Outcome:
    if not missing:
        return Outcome()
    if settings.mode == "tar":
        return ways.tars(missing, tar_checksums(tables, ways.catalogue), keep=settings.keep_tars)
    return ways.members(missing) if settings.mode == "member" else ways.tracks(missing)


def _say_end(
    audio_dir: Path,
    chosen: Sequence[JamendoTrack],
    missing: Sequence[JamendoTrack],
    here: set[str],
    catalogue: Catalogue,
    outcome: Outcome,
) -> None:
    lacking = {
        name: str(outcome.failed.get(name, "not reached before the end"))
        for name in map(catalogue.file_of, missing)
        if name not in here
    }
    say(
        f"{audio_dir}: {len(chosen) - len(lacking)} of the {len(chosen)} chosen tracks are here and verified;"
        f" the tables beside it list all {len(here)} recordings"
    )
    raise_if_lacking(lacking, len(chosen), outcome.fatal)
