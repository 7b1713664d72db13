"""Which tracks of a catalogue to take, decided on its tables before anything large is fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice

from stable_audio_tools.data.download.settings import SELECTIONS
from stable_audio_tools.data.jamendo import JamendoTrack
from stable_audio_tools.data.licenses import TrackLicense
from stable_audio_tools.errors import UsageError

LICENSE_WORDS = ("any", "no-nc", "no-nd")
LICENSE_CODES = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "lal", "other")

Tracks = Mapping[int, JamendoTrack]


def tags_of(track: JamendoTrack) -> list[str]:
    """``genre---jazz`` and so on, in the order of the table."""
    return [f"{category}---{tag}" for category, tags in track.tags.items() for tag in tags]


def with_tags(tracks: Tracks, wanted: Sequence[str]) -> dict[int, JamendoTrack]:
    """The tracks that have any of the tags ``wanted``: ``jazz``, or ``genre---jazz`` for that category only.

    Raises:
        UsageError: no track has one of the tags.
    """
    known = {tag for track in tracks.values() for tag in tags_of(track)}
    short = {tag.partition("---")[2] for tag in known}
    for tag in wanted:
        if tag not in known and tag not in short:
            close = get_close_matches(tag, sorted(known | short), n=3)
            hint = f"; near are {', '.join(close)}" if close else ""
            raise UsageError(f"--tags: no track of this table has the tag {tag!r}{hint}")
    taken = set(wanted)
    return {
        number: track
        for number, track in tracks.items()
        if any(tag in taken or tag.partition("---")[2] in taken for tag in tags_of(track))
    }


def with_license(
    tracks: Tracks, licenses: Mapping[int, TrackLicense], words: Sequence[str]
) -> dict[int, JamendoTrack]:
    """The tracks whose licence is one of the codes in ``words``; ``no-nc`` and ``no-nd`` narrow further.

    A track without a licence in the file is taken only where any will do.

    Raises:
        UsageError: a word is not known.
    """
    unknown = [word for word in words if word not in (*LICENSE_WORDS, *LICENSE_CODES)]
    if unknown:
        expected = ", ".join((*LICENSE_WORDS, *LICENSE_CODES))
        raise UsageError(f"--license: {unknown[0]!r} is not known; expected {expected}")
    if not words or set(words) == {"any"}:
        return dict(tracks)
    codes = {word for word in words if word in LICENSE_CODES}

    def fits(license_: TrackLicense | None) -> bool:
        return (
            license_ is not None
            and (not codes or license_.code in codes)
            and (license_.commercial_use or "no-nc" not in words)
            and (license_.derivatives or "no-nd" not in words)
        )

    return {number: track for number, track in tracks.items() if fits(licenses.get(number))}


def seeded_order(numbers: Collection[int], seed: int) -> list[int]:
    """``numbers`` in an order drawn from ``seed``: each has its own draw, so leaving some out moves none."""
    from stable_audio_tools.runtime.seeds import derive_seed

    return sorted(numbers, key=lambda number: (derive_seed("choose a track", seed, number), number))


def choose(tracks: Tracks, count: int | None, seed: int, kind: str = "plain") -> list[int]:
    """``count`` track ids, or all of them where there are fewer.

    ``plain`` draws evenly, so that the sample looks like the catalogue. ``balanced`` gives each tag its turn:
    again and again the tag with the fewest tracks so far takes its next one, the rarest of the catalogue
    first. Tracks without a tag come last.

    Raises:
        UsageError: ``kind`` is not known.
    """
    if kind not in SELECTIONS:
        raise UsageError(f"--selection: {kind!r} is not known; expected {' or '.join(SELECTIONS)}")
    order = seeded_order(tracks, seed)
    if count is None or count >= len(order):
        return order
    return order[:count] if kind == "plain" else _balanced(tracks, order, count)


def _balanced(tracks: Tracks, order: Sequence[int], count: int) -> list[int]:
    waiting: dict[str, list[int]] = {}
    for number in reversed(order):  # the next of each tag is at the end of its list
        for tag in tags_of(tracks[number]):
            waiting.setdefault(tag, []).append(number)
    rarity = {tag: len(numbers) for tag, numbers in waiting.items()}
    taken: dict[int, None] = {}
    turns: Counter[str] = Counter()
    while waiting and len(taken) < count:
        tag = min(waiting, key=lambda tag: (turns[tag], rarity[tag], tag))
        while waiting[tag] and waiting[tag][-1] in taken:
            waiting[tag].pop()
        if not waiting[tag]:
            del waiting[tag]
            continue
        number = waiting[tag].pop()
        taken[number] = None
        turns.update(tags_of(tracks[number]))
    rest = (number for number in order if number not in taken)
    return [*taken, *islice(rest, count - len(taken))]
