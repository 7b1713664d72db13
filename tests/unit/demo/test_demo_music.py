"""The synthesiser, the styles and what the composer knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stable_audio_tools.demo import synth
from stable_audio_tools.demo.artists import DEMO_ARTISTS, GENRES, pretraining_artists
from stable_audio_tools.demo.pieces import compose, prompts_of
from stable_audio_tools.demo.styles import STYLES
from stable_audio_tools.demo.theory import Key, euclid, lead_voices, write_melody


def _fundamental(sound: np.ndarray, near: float) -> float:
    """The frequency of the strongest partial within a tone of ``near``, by parabolic interpolation."""
    size = 1 << 18
    power = np.log(np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size)) + 1e-12)
    frequency = np.fft.rfftfreq(size, 1 / synth.SAMPLE_RATE)
    power[(frequency < near / 1.12) | (frequency > near * 1.12)] = -np.inf
    return float(frequency[int(power.argmax())])


@pytest.mark.parametrize("note", [40, 52, 64, 76, 84])
def test_plucked_strings_are_in_tune(note: int) -> None:
    tone = synth.pluck(note, 1.5, np.random.default_rng(0), 0.8)
    cents = 1200 * np.log2(_fundamental(tone, synth.hz(note)) / synth.hz(note))
    assert abs(cents) < 8


@pytest.mark.parametrize("note", [45, 69, 93])
def test_sawtooth_has_its_harmonics_and_hardly_any_aliases(note: int) -> None:
    frequency = synth.hz(note)
    wave = synth.saw(frequency, 1 << 15)
    spectrum = np.abs(np.fft.rfft(wave * np.blackman(len(wave)))) ** 2
    bins = np.fft.rfftfreq(len(wave), 1 / synth.SAMPLE_RATE)
    distance = np.abs(bins / frequency - np.round(bins / frequency)) * frequency
    aliases = spectrum[(distance > 5) & (bins > 10)].sum() / spectrum.sum()
    assert aliases < 0.02
    naive = 2 * ((frequency * np.arange(1, len(wave) + 1) / synth.SAMPLE_RATE) % 1.0) - 1
    naive_spectrum = np.abs(np.fft.rfft(naive * np.blackman(len(naive)))) ** 2
    assert aliases < 0.7 * naive_spectrum[(distance > 5) & (bins > 10)].sum() / naive_spectrum.sum()


def test_envelopes_start_and_end_in_silence_at_any_length() -> None:
    for n in (50, 500, 50_000):
        envelope = synth.adsr(n, 0.05, 0.1, 0.7, 0.2)
        assert envelope.shape == (n,)
        assert envelope[0] == 0
        assert envelope[-1] < 0.3
        assert 0 <= envelope.min() <= envelope.max() <= 1


def test_sweeping_filter_that_is_wide_open_changes_nothing() -> None:
    sound = np.random.default_rng(0).standard_normal(5000)
    assert np.allclose(synth.sweeping_lowpass(sound, np.array([1e7, 1e7])), sound, atol=1e-6)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_style_sounds_and_repeats_exactly(style: str) -> None:
    artist = next(a for a in DEMO_ARTISTS if a.style == style)
    song = artist.plan("test", 0, 5.0)
    first, second = STYLES[style](song), STYLES[style](song)
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert first.shape == (2, synth.samples(song.seconds))
    assert np.isfinite(first).all()
    assert np.abs(first).max() < 0.91
    level = 20 * np.log10(np.sqrt(np.mean(first**2)))
    assert -20 < level < -14
    quietest = min(np.sqrt(np.mean(part**2)) for part in np.array_split(first[:, :-16000], 8, axis=1))
    assert quietest > 0.01  # no part of a piece falls silent before its end


def test_pieces_of_one_artist_differ() -> None:
    for artist in DEMO_ARTISTS:
        songs = [artist.plan("test", number, 12.0) for number in range(4)]
        assert len({(song.key, song.tempo, song.progression) for song in songs}) == 4


def test_artists_sound_unlike_each_other() -> None:
    """The average spectrum of a piece is nearest to that of the same artist, for nearly all artists."""
    profiles = []
    for artist in DEMO_ARTISTS:
        for number in range(2):
            mono = STYLES[artist.style](artist.plan("test", number, 6.0)).mean(0)
            frames = np.lib.stride_tricks.sliding_window_view(mono, 1024)[::512] * np.hanning(1024)
            power = np.log(np.abs(np.fft.rfft(frames)) + 1e-3)
            profiles.append(np.concatenate([power.mean(0), power.std(0)]))
    table = np.array(profiles)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 1e9 * np.eye(len(table))
    right = sum(int(nearest // 2 == index // 2) for index, nearest in enumerate(distance.argmin(1)))
    assert right >= 0.8 * len(table)


def test_the_two_worlds_share_styles_but_no_progression() -> None:
    generic = pretraining_artists()
    known = {progression for artist in generic for progression in artist.progressions}
    assert not known & {progression for artist in DEMO_ARTISTS for progression in artist.progressions}
    assert {artist.style for artist in generic} == {artist.style for artist in DEMO_ARTISTS} == set(GENRES)


def test_a_world_holds_the_same_pieces_every_time_and_worlds_differ() -> None:
    one, again = (compose(DEMO_ARTISTS, 2, world="a", first_id=1) for _ in range(2))
    other = compose(DEMO_ARTISTS, 2, world="b", first_id=1)
    assert one == again
    assert [piece.song for piece in one] != [piece.song for piece in other]


def test_every_prompt_of_a_piece_says_what_it_is() -> None:
    for piece in compose(DEMO_ARTISTS, 2, world="a", first_id=1):
        spoken = {"drumnbass": "drum and bass", "singersongwriter": "singer-songwriter", "8bit": "8-bit"}
        for prompt in prompts_of(piece, 6):
            assert spoken.get(piece.genres[0], piece.genres[0]) in prompt.lower()


def test_voices_stay_in_range_and_keep_their_pitch_classes() -> None:
    key = Key(3, "minor")
    chords = [key.chord(degree, 4) for degree in (0, 5, 2, 6, 3, 4)]
    for chord, voices in zip(chords, lead_voices(chords, 50, 74), strict=True):
        assert {note % 12 for note in voices} == {note % 12 for note in chord}
        assert 50 - 12 <= min(voices) <= max(voices) <= 74 + 12


def test_melodies_fill_their_bars_and_end_on_the_chord() -> None:
    key = Key(0, "major")
    for seed in range(10):
        notes = write_melody(key, (0, 3, 4, 0), 4, np.random.default_rng(seed), density=0.7)
        assert sum(note.length for note in notes) == pytest.approx(16)
        assert all(note.pitch % 12 in {0, 2, 4, 5, 7, 9, 11} for note in notes)
        assert notes[-1].pitch % 12 in {0, 4, 7}


def test_euclidean_rhythms_are_the_known_ones() -> None:
    assert euclid(3, 8) == [0, 2, 5]
    assert euclid(4, 16) == [0, 4, 8, 12]
    assert [len(euclid(hits, 16, 3)) for hits in range(1, 9)] == list(range(1, 9))


def test_playing_leaves_the_global_generators_alone() -> None:
    np_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    DEMO_ARTISTS[0].plan("test", 0, 4.0)
    STYLES["dub"](DEMO_ARTISTS[5].plan("test", 0, 4.0))
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
