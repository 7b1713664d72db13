"""The artists of the two worlds: eight with a style of their own, and many generic ones to pretrain on.

The demo catalogue is by :data:`DEMO_ARTISTS`. The tiny models learned from :func:`pretraining_artists`, who
play the same instruments with other progressions, tempi and timbres, so that there is something left to
fine-tune.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.styles import STYLES
from stable_audio_tools.demo.theory import Key
from stable_audio_tools.runtime.seeds import derive_seed

Range = tuple[float, float]


@dataclass(frozen=True)
class Genre:
    """What a style is called and made of, in the words of MTG-Jamendo tags, and its tempi."""

    genres: tuple[str, ...]
    instruments: tuple[str, ...]
    moods: tuple[str, ...]
    tempo: Range
    beats_per_bar: int = 4


GENRES: dict[str, Genre] = {
    "ambient": Genre(
        ("ambient", "atmospheric"),
        ("synthesizer", "pad", "bell"),
        ("calm", "dreamy", "meditative", "space"),
        (55, 84),
    ),
    "breaks": Genre(
        ("drumnbass", "breakbeat"),
        ("drums", "bass", "electricpiano"),
        ("energetic", "dark", "fast", "powerful"),
        (160, 180),
    ),
    "chiptune": Genre(
        ("chiptune", "8bit"),
        ("computer", "synthesizer", "drummachine"),
        ("fun", "game", "happy", "positive"),
        (118, 160),
    ),
    "chorale": Genre(
        ("classical", "soundtrack"),
        ("strings", "violin", "cello"),
        ("emotional", "sad", "romantic", "epic"),
        (60, 90),
    ),
    "dub": Genre(
        ("dub", "reggae"), ("bass", "organ", "drums"), ("deep", "groovy", "relaxing", "heavy"), (66, 82)
    ),
    "folk": Genre(
        ("folk", "singersongwriter"),
        ("acousticguitar", "guitar", "percussion"),
        ("warm", "nature", "happy", "hopeful"),
        (84, 120),
    ),
    "house": Genre(
        ("house", "dance"),
        ("synthesizer", "drummachine", "bass"),
        ("party", "uplifting", "energetic", "groovy"),
        (116, 130),
    ),
    "waltz": Genre(
        ("classical", "jazz"), ("piano",), ("romantic", "melancholic", "elegant", "soft"), (96, 156), 3
    ),
}


@dataclass(frozen=True)
class Artist:
    """Someone with narrow habits in one style; the pieces differ in key, tempo, progression and notes."""

    artist_id: int
    name: str
    style: str
    albums: tuple[str, ...]
    titles: tuple[str, ...]
    modes: tuple[str, ...]
    progressions: tuple[tuple[int, ...], ...]
    tempo: Range
    tonics: tuple[int, ...] = tuple(range(12))
    character: dict[str, Range] = field(default_factory=dict)
    """Ranges of the playing parameters of :class:`Song`; a parameter that is not named takes any value."""

    def plan(self, world: str, number: int, target_seconds: float) -> Song:
        """The plan of piece ``number``: as many whole bars as come closest to ``target_seconds``."""
        rng = np.random.default_rng(derive_seed("demo piece", world, self.artist_id, number))
        tempo = round(float(rng.uniform(*self.tempo)), 1)
        beats = GENRES[self.style].beats_per_bar
        bars = max(2, 2 * round((target_seconds - 1) / (beats * 60 / tempo) / 2))
        playing = {
            name: float(rng.uniform(*self.character.get(name, default)))
            for name, default in (
                ("brightness", (0, 1)),
                ("density", (0, 1)),
                ("space", (0, 1)),
                ("grit", (0, 0.8)),
                ("swing", (0, 0.6)),
            )
        }
        return Song(
            key=Key(int(rng.choice(self.tonics)), str(rng.choice(self.modes))),
            tempo=tempo,
            progression=self.progressions[int(rng.integers(len(self.progressions)))],
            bars=bars,
            beats_per_bar=beats,
            seed=derive_seed("demo notes", world, self.artist_id, number),
            **playing,
        )


DEMO_ARTISTS: tuple[Artist, ...] = (
    Artist(
        501,
        "Halcyon Drift",
        "ambient",
        ("Tidewater", "Slow Weather"),
        ("Saltmarsh", "Low Lantern", "Ebb", "Grey Harbour", "Driftglass", "Moth Hour"),
        ("dorian", "minor"),
        ((0, 3, 6, 3), (0, 5, 2, 6)),
        (60, 70),
        (2, 4, 9),
        {"brightness": (0.25, 0.5), "density": (0.4, 0.7), "space": (0.8, 1.0)},
    ),
    Artist(
        502,
        "Pixel Orchard",
        "chiptune",
        ("Cartridge Season", "Bonus Stage"),
        ("Coin Hopper", "Turnip Boss", "Level Plum", "Save Point", "Wall Jump", "Gravel Race"),
        ("major", "mixolydian"),
        ((0, 4, 5, 2), (0, 3, 6, 4)),
        (138, 152),
        (0, 5, 7),
        {"brightness": (0.0, 0.25), "density": (0.6, 0.9), "swing": (0, 0)},
    ),
    Artist(
        503,
        "Marble Basement",
        "house",
        ("After the Lift", "Night Desk"),
        ("Fluorescent", "Stairwell", "Concierge", "Fire Door", "Mezzanine", "Basement Key"),
        ("dorian", "minor"),
        ((0, 0, 3, 4), (0, 6, 3, 3)),
        (121, 125),
        (5, 7, 10),
        {"brightness": (0.55, 0.85), "density": (0.45, 0.75), "swing": (0.2, 0.5)},
    ),
    Artist(
        504,
        "Rowan Tellard",
        "folk",
        ("Hedge School", "Peat and Paper"),
        ("Three Stiles", "Wren Morning", "The Ferryman", "Long Acre", "Barley Letter", "Crooked Gate"),
        ("major", "mixolydian"),
        ((0, 3, 0, 4), (0, 5, 3, 0)),
        (92, 106),
        (2, 7, 9),
        {"brightness": (0.55, 0.85), "density": (0.35, 0.8), "grit": (0, 0.1)},
    ),
    Artist(
        505,
        "Odette Varga",
        "waltz",
        ("Letters in Three", "Parlour Music"),
        ("Ferris", "Blue Banister", "For M.", "The Last Guest", "Porcelain", "November Waltz"),
        ("minor", "major"),
        ((0, 3, 4, 0), (0, 5, 1, 4)),
        (128, 148),
        (0, 4, 9),
        {"brightness": (0.3, 0.6), "density": (0.4, 0.8), "grit": (0, 0.3)},
    ),
    Artist(
        506,
        "Deep Ledger",
        "dub",
        ("Copper Tape", "Under Accounting"),
        ("Balance Carried", "Red Column", "Receipt", "Night Audit", "Petty Cash", "Carbon Copy"),
        ("minor",),
        ((0, 0, 6, 0), (0, 3, 0, 4)),
        (70, 76),
        (4, 7, 9),
        {"brightness": (0.2, 0.5), "density": (0.4, 0.8), "space": (0.7, 1.0), "swing": (0.3, 0.6)},
    ),
    Artist(
        507,
        "Kestrel Unit",
        "breaks",
        ("Talon Logic", "Updraft"),
        ("Stoop", "Wingbar", "Hover State", "Kite Wire", "Ridge Lift", "Primary Feather"),
        ("minor", "dorian"),
        ((0, 5, 0, 6), (0, 2, 5, 4)),
        (170, 176),
        (0, 3, 5),
        {"brightness": (0.5, 0.9), "density": (0.4, 0.8), "grit": (0.4, 0.8)},
    ),
    Artist(
        508,
        "Ansel Quartet",
        "chorale",
        ("Four Windows", "Winter Order"),
        ("North Window", "Threnody", "Procession", "Vesper", "Snow Ledger", "Reliquary"),
        ("minor", "major"),
        ((0, 4, 5, 3), (0, 3, 1, 4)),
        (66, 78),
        (2, 5, 7),
        {"brightness": (0.3, 0.6), "density": (0.3, 0.9), "grit": (0, 0.1), "space": (0.5, 0.9)},
    ),
)

_COMMON_PROGRESSIONS = (
    (0, 3, 4, 4), (0, 5, 3, 4), (0, 4, 3, 3), (5, 3, 0, 4), (0, 2, 3, 4), (0, 0, 4, 4), (3, 0, 4, 0),
    (0, 6, 5, 4),
    (1, 4, 0, 0), (0, 3, 5, 4),
)  # fmt: skip


def pretraining_artists(per_style: int = 4) -> tuple[Artist, ...]:
    """Generic artists: every style at any of its tempi, in any key and mode, over common progressions."""
    artists = []
    for index, style in enumerate(sorted(STYLES)):
        for variant in range(per_style):
            artists.append(
                Artist(
                    artist_id=100 + index * per_style + variant,
                    name=f"Generic {style} {variant + 1}",
                    style=style,
                    albums=("Studies",),
                    titles=("Study",),
                    modes=("major", "minor", "dorian", "mixolydian"),
                    progressions=_COMMON_PROGRESSIONS,
                    tempo=GENRES[style].tempo,
                )
            )
    return tuple(artists)
