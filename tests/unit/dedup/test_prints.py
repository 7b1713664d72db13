"""Listening: every file decoded once, told apart from nothing to hear, and kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from dedup_music import RATE, compose

from stable_audio_tools.dedup import prints
from stable_audio_tools.dedup.prints import Print, listen, load_print, save_print
from stable_audio_tools.dedup.spectra import ANALYSIS_RATE, SpectrumStream
from stable_audio_tools.errors import AudioError


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("original.wav", None),
        ("a/quieter.wav", None),
        ("silent_1.wav", "silent"),
        ("constant.wav", "constant"),
        ("anti_phase.wav", "anti-phase"),
    ],
)
def test_what_cannot_be_compared_is_named(music_folder: Path, name: str, flaw: str | None) -> None:
    assert listen(music_folder / name).facts.flaw == flaw


def test_pieces_do_not_change_the_maps() -> None:
    audio = torch.from_numpy(compose(1)[: 5 * ANALYSIS_RATE])
    whole, parts = SpectrumStream(), SpectrumStream()
    whole.feed(audio)
    for piece in audio.split([100, 7, 30_000, 1, 29_892]):
        parts.feed(piece)
    for one, other in zip(whole.finish(), parts.finish(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_long_file_is_heard_like_a_short_one(music_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = listen(music_folder / "original.wav")
    monkeypatch.setattr(prints, "_PIECE_SECONDS", 2.5)
    pieces = listen(music_folder / "original.wav")
    assert pieces.facts == whole.facts
    np.testing.assert_allclose(pieces.onsets, whole.onsets, atol=1)
    np.testing.assert_array_equal(pieces.peaks.frames, whole.peaks.frames)


def test_equal_sound_has_an_equal_hash_in_another_container(tmp_path: Path) -> None:
    audio = (32000 * compose(1, seconds=3.0)).astype(np.int16)
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, audio, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "c.wav", audio[1:], RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "d.wav", audio, RATE + 1, subtype="PCM_16")
    a, b, c, d = (listen(path).facts.audio_sha256 for path in sorted(tmp_path.iterdir()))
    assert a == b
    assert len({a, c, d}) == 3


def test_the_kind_of_file_is_known(music_folder: Path) -> None:
    wav, mp3 = (listen(music_folder / name).facts for name in ("original.wav", "a/reencoded.mp3"))
    assert wav.lossless
    assert not mp3.lossless
    assert (wav.sample_rate, wav.channels) == (RATE, 1)
    assert wav.duration_seconds == pytest.approx(12.0)


def test_a_broken_file_is_named(music_folder: Path) -> None:
    with pytest.raises(AudioError, match=r"broken\.mp3"):
        listen(music_folder / "broken.mp3")


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    audio = compose(1, seconds=1.0)
    audio[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", audio, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav.*not finite"):
        listen(tmp_path / "nan.wav")


@pytest.mark.parametrize("samples", [1, 100, RATE // 4])
def test_a_file_too_short_for_a_window_has_an_empty_print(tmp_path: Path, samples: int) -> None:
    soundfile.write(tmp_path / "short.wav", compose(1)[:samples] + 0.1, RATE)
    found = listen(tmp_path / "short.wav")
    assert len(found.peaks) == 0 or samples == RATE // 4
    assert len(found.evidence().constellations.hashes) == 0


def test_silence_at_the_ends_is_not_sound(tmp_path: Path) -> None:
    music, quiet = compose(1, seconds=6.0), np.zeros(3 * RATE, np.float32)
    soundfile.write(tmp_path / "plain.wav", music, RATE)
    soundfile.write(tmp_path / "padded.wav", np.concatenate([quiet, music, quiet]), RATE)
    plain, padded = (listen(tmp_path / name) for name in ("plain.wav", "padded.wav"))
    assert plain.sounding_seconds == pytest.approx(6.0, abs=0.1)
    assert padded.sounding_seconds == pytest.approx(plain.sounding_seconds, abs=0.2)
    assert padded.facts.duration_seconds == pytest.approx(12.0)


def same(one: Print, other: Print) -> bool:
    arrays = [(p.onsets, p.peaks.frames, p.peaks.semitones) for p in (one, other)]
    return one.facts == other.facts and all(map(np.array_equal, *arrays))


def test_a_stored_print_comes_back_whole(tmp_path: Path, music_folder: Path) -> None:
    made = listen(music_folder / "original.wav")
    save_print(tmp_path / "p.npz", made)
    found = load_print(tmp_path / "p.npz")
    assert found is not None
    assert same(found, made)


def test_stale_damaged_and_absent_prints_are_made_again(
    tmp_path: Path, music_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.npz"
    assert load_print(path) is None
    save_print(path, listen(music_folder / "silent_1.wav"))
    assert load_print(path) is not None
    with monkeypatch.context() as patch:
        patch.setattr(prints, "PRINT_FORMAT", "print 0")
        assert load_print(path) is None
    path.write_bytes(path.read_bytes()[:200])
    assert load_print(path) is None
