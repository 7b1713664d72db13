"""From an artist's habits to a catalogue entry: title, tags, caption, and the sound itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.artists import GENRES, Artist
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.styles import STYLES
from stable_audio_tools.runtime.seeds import derive_seed

_SPELLED_OUT = {
    "acousticguitar": "acoustic guitar",
    "electricpiano": "electric piano",
    "drummachine": "drum machine",
    "singersongwriter": "singer-songwriter",
    "drumnbass": "drum and bass",
    "8bit": "8-bit",
    "computer": "game console",
}


@dataclass(frozen=True)
class Piece:
    """One piece of an artist, ready to be played and described."""

    artist: Artist
    song: Song
    track_id: int
    number: int
    title: str
    album: str
    album_id: int
    genres: tuple[str, ...]
    instruments: tuple[str, ...]
    moods: tuple[str, ...]
    caption: str

    @property
    def tags(self) -> list[str]:
        """Tags as MTG-Jamendo spells them: ``category---tag``."""
        return [
            *(f"genre---{tag}" for tag in self.genres),
            *(f"instrument---{tag}" for tag in self.instruments),
            *(f"mood/theme---{tag}" for tag in self.moods),
        ]

    def play(self) -> NDArray[np.float32]:
        """The sound, shape ``(2, n)`` at :data:`~stable_audio_tools.demo.synth.SAMPLE_RATE`."""
        return STYLES[self.artist.style](self.song)


def compose(
    artists: Sequence[Artist],
    per_artist: int,
    *,
    world: str,
    first_id: int,
    seconds: tuple[float, float] = (12.0, 18.0),
) -> list[Piece]:
    """``per_artist`` pieces of every artist; the same ``world`` always holds the same pieces."""
    pieces: list[Piece] = []
    for artist in artists:
        for number in range(per_artist):
            rng = np.random.default_rng(derive_seed("demo words", world, artist.artist_id, number))
            song = artist.plan(world, number, float(rng.uniform(*seconds)))
            genre = GENRES[artist.style]
            album = number % len(artist.albums)
            genres = genre.genres[: int(rng.integers(1, len(genre.genres) + 1))]
            instruments = tuple(i for i in genre.instruments if rng.random() < 0.75) or genre.instruments[:1]
            moods = tuple(
                str(m) for m in rng.choice(genre.moods, size=int(rng.integers(1, 3)), replace=False)
            )
            pieces.append(
                Piece(
                    artist=artist,
                    song=song,
                    track_id=first_id + len(pieces),
                    number=number,
                    title=artist.titles[number % len(artist.titles)],
                    album=artist.albums[album],
                    album_id=10 * artist.artist_id + album,
                    genres=genres,
                    instruments=instruments,
                    moods=moods,
                    caption=describe(song, genres, instruments, moods, rng),
                )
            )
    return pieces


def describe(
    song: Song,
    genres: Sequence[str],
    instruments: Sequence[str],
    moods: Sequence[str],
    rng: np.random.Generator,
) -> str:
    """A sentence about a piece, as a listener would put it; it only says what can be heard."""
    genre, mood = _words(genres[0]), " and ".join(moods)
    played = " and ".join(_words(i) for i in instruments[:2])
    speed = "slow" if song.tempo < 85 else "fast" if song.tempo > 135 else "mid-tempo"
    mode = "minor" if song.key.mode in ("minor", "dorian") else "major"
    timbre = "bright" if song.brightness > 0.6 else "dark" if song.brightness < 0.35 else "soft"
    texture = "busy" if song.density > 0.65 else "sparse" if song.density < 0.3 else "steady"
    forms = (
        f"A {mood} {genre} track with {played}, {speed} and in a {mode} key.",
        f"{_upper(speed)} {genre} in {mode}, {timbre} sound, {played}.",
        f"{_upper(mood)} {genre} piece, {texture} {played} at a {speed} pace.",
        f"This is a {texture} {genre} tune played on {played} with a {mood} mood and a {timbre} tone.",
        f"{_upper(timbre)} {played} in a {speed} {mode} {genre} song that feels {mood}.",
    )
    return forms[int(rng.integers(len(forms)))]


def prompts_of(piece: Piece, count: int, seed: int = 0) -> list[str]:
    """Several ways to ask for a piece: its caption, other captions, and lists of its tags."""
    prompts = [piece.caption]
    for number in range(1, count):
        rng = np.random.default_rng(derive_seed("demo prompt", seed, piece.track_id, number))
        if number % 2:
            prompts.append(describe(piece.song, piece.genres, piece.instruments, piece.moods, rng))
            continue
        groups = [
            ("genre", [_words(g) for g in piece.genres]),
            ("instrument", [_words(i) for i in piece.instruments]),
            ("mood", list(piece.moods)),
        ]
        if rng.random() < 0.5:
            words = [word for _, group in groups for word in group]
            prompts.append(", ".join(str(word) for word in rng.permutation(words)))
        else:
            prompts.append(", ".join(f"{name}: {', '.join(group)}" for name, group in groups))
    return prompts


def _words(tag: str) -> str:
    return _SPELLED_OUT.get(tag, tag)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
