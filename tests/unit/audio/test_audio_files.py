"""Decoding: every span of every format is exactly that span of the whole file, and a bad file is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stable_audio_tools.audio.files import AUDIO_SUFFIXES, probe, read_audio, read_tags, save_audio
from stable_audio_tools.audio.transforms import resample
from stable_audio_tools.errors import AudioError

RATE = 44100
SECONDS = 6


def _music(seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    """A stereo sweep with noise, so that no two spans are alike, and a bit rate that varies."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((len(time), 2)) * 0.05 * (np.sin(3 * time) > 0)[:, None]
    sweep = 0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    return (sweep[:, None] * [1.0, 0.5] + noise).astype(np.float32)


def _with_pyav(path: Path, codec: str, **options: str) -> None:
    """Encode with FFmpeg; without AAC's noise substitution, which is other noise from another start."""
    import av

    samples = _music()
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(
            codec, rate=RATE, layout="stereo", options={"aac_pns": "0"} if codec == "aac" else {}
        )
        stream.bit_rate = 128000
        for begin in range(0, len(samples), 4096):
            block = np.ascontiguousarray(samples[begin : begin + 4096].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _with_soundfile(path: Path, **options: object) -> None:
    soundfile.write(path, _music(), RATE, **options)


def _vbr_without_index(path: Path) -> None:
    """The variable-rate MP3 that libsndfile cannot seek in: its index frame is cut off."""
    _with_soundfile(path, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    data = path.read_bytes()
    header = int.from_bytes(data[:4], "big")
    kilobits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[header >> 12 & 15]
    path.write_bytes(data[144000 * kilobits // RATE + (header >> 9 & 1) :])


WRITERS: dict[str, Callable[[Path], None]] = {
    "pcm.wav": lambda path: _with_soundfile(path, subtype="PCM_16"),
    "float.wav": lambda path: _with_soundfile(path, subtype="FLOAT"),
    "a.flac": _with_soundfile,
    "a.aiff": _with_soundfile,
    "vorbis.ogg": _with_soundfile,
    "a.opus": lambda path: soundfile.write(path, _music(rate=48000), 48000, format="OGG", subtype="OPUS"),
    "cbr.mp3": lambda path: _with_soundfile(path, format="MP3", bitrate_mode="CONSTANT"),
    "vbr.mp3": lambda path: _with_soundfile(path, format="MP3", bitrate_mode="VARIABLE"),
    "vbr_no_index.mp3": _vbr_without_index,
    "cbr_no_index.mp3": lambda path: _with_pyav(path, "libmp3lame", write_xing="0"),
    "a.m4a": lambda path: _with_pyav(path, "aac"),
    "alac.m4a": lambda path: _with_pyav(path, "alac"),
    "a.aac": lambda path: _with_pyav(path, "aac"),
}


@pytest.fixture(scope="module")
def audio_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("formats")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            try:
                WRITERS[name](path)
            except Exception as error:
                if "alac" in name or "UnknownCodec" in type(error).__name__:
                    pytest.skip(f"this FFmpeg cannot write {name}: {error}")
                raise
        return path

    return make


@pytest.mark.parametrize("name", WRITERS)
def test_a_span_is_that_span_of_the_whole_file(audio_file: Callable[[str], Path], name: str) -> None:
    path = audio_file(name)
    info = probe(path)
    whole, rate = read_audio(path)
    assert rate == info.sample_rate
    assert whole.shape == (2, info.num_frames)
    assert info.duration_seconds == pytest.approx(SECONDS, abs=0.06)
    for start, length in [
        (0, 500),
        (1, 4096),
        (1000, 20000),
        (44100, 1),
        (100_001, 50_000),
        (200_003, 30_000),
    ]:
        span, _ = read_audio(path, offset_seconds=start / rate, duration_seconds=length / rate)
        torch.testing.assert_close(span, whole[:, start : start + length], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        # libsndfile seeks wrongly in one of about 30 places of a Vorbis file.
        ("seeks.ogg", 22050, {}),
        # At 8 kbit/s an MP3 frame may need those of the second and a half before it.
        ("reservoir.mp3", 22050, {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.99}),
        ("variable.mp3", 16000, {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.9}),
    ],
)
def test_seeks_are_exact_anywhere(tmp_path: Path, name: str, rate: int, options: dict[str, object]) -> None:
    soundfile.write(tmp_path / name, _music(20.0, rate), rate, **options)
    whole, _ = read_audio(tmp_path / name)
    for start in np.random.default_rng(0).integers(0, whole.shape[1] - 3000, 60):
        span, _ = read_audio(tmp_path / name, offset_seconds=start / rate, duration_seconds=3000 / rate)
        torch.testing.assert_close(span, whole[:, start : start + 3000], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in WRITERS if "no_index" not in name and name != "a.aac"])
def test_the_music_is_where_it_was_put(audio_file: Callable[[str], Path], name: str) -> None:
    path = audio_file(name)
    decoded, rate = read_audio(path)
    original = torch.from_numpy(_music(rate=rate).T)
    assert abs(decoded.shape[1] - original.shape[1]) <= 1
    part = slice(rate, rate + 8192)
    lags = range(-3, 4)
    alike = [
        float((decoded[0, part.start + lag : part.stop + lag] * original[0, part]).sum()) for lag in lags
    ]
    assert lags[int(np.argmax(alike))] == 0


def test_the_end_of_a_file_gives_fewer_samples_and_beyond_it_none(audio_file: Callable[[str], Path]) -> None:
    for name in ("pcm.wav", "cbr.mp3"):
        path = audio_file(name)
        info = probe(path)
        span, _ = read_audio(path, offset_seconds=(info.num_frames - 100) / RATE, duration_seconds=1.0)
        assert span.shape == (2, 100)
        span, _ = read_audio(path, offset_seconds=SECONDS + 5, duration_seconds=1.0)
        assert span.shape == (2, 0)
        span, _ = read_audio(path, offset_seconds=SECONDS + 5, duration_seconds=1.0, sample_rate=16000)
        assert span.shape == (2, 0)


@pytest.mark.parametrize("rate", [48000, 32000, 16000])
@pytest.mark.parametrize("name", ["pcm.wav", "vbr.mp3"])
def test_a_resampled_span_is_that_span_of_the_resampled_file(
    audio_file: Callable[[str], Path], name: str, rate: int
) -> None:
    path = audio_file(name)
    native, _ = read_audio(path)
    whole = resample(native, RATE, rate)
    entire, _ = read_audio(path, sample_rate=rate)
    torch.testing.assert_close(entire, whole, atol=1e-4, rtol=0)
    for start, length in [(0, 5000), (12_345, 9999), (50_001, 16_000)]:
        span, found_rate = read_audio(
            path, offset_seconds=start / rate, duration_seconds=length / rate, sample_rate=rate
        )
        assert found_rate == rate
        torch.testing.assert_close(span, whole[:, start : start + length], atol=1e-3, rtol=0)


def test_channels_are_mixed_when_asked(audio_file: Callable[[str], Path]) -> None:
    stereo, _ = read_audio(audio_file("float.wav"), duration_seconds=0.5)
    mono, _ = read_audio(audio_file("float.wav"), duration_seconds=0.5, channels=1)
    torch.testing.assert_close(mono, stereo.mean(0, keepdim=True))


def test_aiff_and_m4a_are_known_suffixes() -> None:
    assert {
        ".mp3",
        ".flac",
        ".ogg",
        ".opus",
        ".wav",
        ".aiff",
        ".aif",
        ".m4a",
        ".mp4",
        ".aac",
    } <= AUDIO_SUFFIXES


@pytest.mark.parametrize("name", ["cbr.mp3", "vbr.mp3", "pcm.wav", "a.aiff", "a.flac"])
def test_a_file_cut_in_the_middle_is_called_truncated(
    audio_file: Callable[[str], Path], name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = audio_file(name).read_bytes()
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(data[: len(data) // 2])
    for reader in (probe, read_audio, lambda path: read_audio(path, duration_seconds=0.1)):
        with pytest.raises(
            AudioError, match=rf"cut_{name}: truncated: .*promises 6\.\d+ s.* only [23]\.\d+ s"
        ):
            reader(cut)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [1, 100, 300, 700])
@pytest.mark.parametrize("name", ["cbr.mp3", "a.m4a", "a.flac", "pcm.wav", "vorbis.ogg"])
def test_a_stump_of_a_file_is_named(
    audio_file: Callable[[str], Path], name: str, size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stump = tmp_path / name
    stump.write_bytes(audio_file(name).read_bytes()[:size])
    with pytest.raises(AudioError, match=name) as caught:
        read_audio(stump)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_not_audio_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.mp3").write_text("not music " * 500)
    (tmp_path / "text.wav").write_text("not music " * 500)
    (tmp_path / "folder.wav").mkdir()
    for name in ("empty.mp3", "text.mp3", "text.wav", "folder.wav", "missing.flac"):
        with pytest.raises(AudioError, match=name):
            probe(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_garbage_inside_an_mp3_is_an_error_and_a_tag_after_it_is_not(
    audio_file: Callable[[str], Path], tmp_path: Path
) -> None:
    data = audio_file("cbr.mp3").read_bytes()
    tagged = tmp_path / "tagged.mp3"
    tagged.write_bytes(
        b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10) + data + b"TAG" + b"title".ljust(125, b"\0")
    )
    torch.testing.assert_close(read_audio(tagged)[0], read_audio(audio_file("cbr.mp3"))[0], atol=1e-5, rtol=0)
    spoiled = tmp_path / "spoiled.mp3"
    noise = np.random.default_rng(1).bytes(4000).replace(b"\xff", b"\x00")
    spoiled.write_bytes(data[: len(data) // 2] + noise + data[len(data) // 2 :])
    with pytest.raises(AudioError, match=r"spoiled\.mp3: cannot be decoded at [23]\."):
        read_audio(spoiled)


def test_a_name_that_lies_about_the_format_does_not_matter(
    audio_file: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "really_mp3.wav"
    wrong.write_bytes(audio_file("cbr.mp3").read_bytes())
    assert probe(wrong).format == "mp3"
    assert read_audio(wrong)[0].shape == (2, SECONDS * RATE)
    wrong = tmp_path / "really_wav.mp3"
    wrong.write_bytes(audio_file("pcm.wav").read_bytes())
    torch.testing.assert_close(read_audio(wrong)[0], read_audio(audio_file("pcm.wav"))[0])


def test_probe_sees_that_a_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    save_audio(path, torch.zeros(1, 1000), 8000)
    assert probe(path).num_frames == 1000
    save_audio(path, torch.zeros(1, 3000), 8000)
    assert probe(path).num_frames == 3000


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 2e-4), (".flac", 2e-4), (".ogg", 0.2)])
def test_saved_audio_and_tags_come_back(tmp_path: Path, suffix: str, tolerance: float) -> None:
    audio = torch.from_numpy(_music(2.0).T)
    tags = {"title": "A 🎵", "comment": '{"seed": 1}'}
    path = save_audio(tmp_path / f"clip{suffix}", audio, RATE, tags=tags)
    back, rate = read_audio(path)
    assert rate == RATE
    torch.testing.assert_close(back, audio, atol=tolerance, rtol=0)
    assert read_tags(path).items() >= tags.items()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_int16_comes_back_to_the_last_bit(tmp_path: Path, suffix: str) -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randint(-(2**15), 2**15, (2, 70_000), dtype=torch.int16, generator=generator)
    path = save_audio(tmp_path / f"clip{suffix}", audio, RATE)
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(samples.T, audio.numpy())


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("length", [3000, 4000, 4100, 4300, 32000, 40000])
def test_a_short_ogg_of_one_page_is_whole(tmp_path: Path, rate: int, length: int) -> None:
    tone = torch.sin(torch.arange(length) * 0.05)[None] * 0.5
    path = save_audio(tmp_path / "short.ogg", tone, rate)
    assert probe(path).num_frames == length
    audio, _ = read_audio(path)
    assert audio.shape == tone.shape
    reference = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    torch.testing.assert_close(audio[0], reference, atol=1e-4, rtol=0)
    span, _ = read_audio(path, offset_seconds=1000 / rate, duration_seconds=1500 / rate)
    torch.testing.assert_close(span, audio[:, 1000:2500], atol=1e-4, rtol=0)


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are Unicode")
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_name_that_is_not_utf_8_is_only_a_name(tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / f"plain{suffix}"
    tone = 0.5 * torch.sin(torch.arange(8000) * 0.05)[None]
    if suffix == ".mp3":
        soundfile.write(plain, tone[0].numpy(), 16000, format="MP3")
    else:
        save_audio(plain, tone, 16000, tags={"title": "Café"})
    latin = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    try:
        shutil.copy(plain, latin)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert probe(latin).num_frames == probe(plain).num_frames
    assert torch.equal(read_audio(latin)[0], read_audio(plain)[0])
    assert read_tags(latin) == read_tags(plain)
    if suffix != ".mp3":
        again = save_audio(tmp_path / os.fsdecode(b"new\xe9" + suffix.encode()), tone, 16000)
        assert torch.equal(read_audio(again)[0], read_audio(plain)[0])
    latin.write_bytes(b"not audio" * 100)
    with pytest.raises(AudioError, match=r"caf\udce9"):
        read_audio(latin)


def test_saving_clips_peaks_and_refuses_nan(tmp_path: Path) -> None:
    path = save_audio(tmp_path / "loud.wav", torch.tensor([[2.0, -2.0, 0.5]]), 8000)
    torch.testing.assert_close(read_audio(path)[0], torch.tensor([[1.0, -1.0, 0.5]]), atol=1e-4, rtol=0)
    for bad, reason in [(torch.tensor([[float("nan")]]), "NaN"), (torch.zeros(5), "expected floats")]:
        with pytest.raises(AudioError, match=reason):
            save_audio(tmp_path / "bad.wav", bad, 8000)
    with pytest.raises(AudioError, match=r"\.xyz"):
        save_audio(tmp_path / "bad.xyz", torch.zeros(1, 5), 8000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loud.wav"]


def test_real_recordings_decode_by_span(jamendo_mini: Path) -> None:
    for path in sorted(jamendo_mini.glob("audio/*/*.mp3"))[:3]:
        whole, rate = read_audio(path)
        start = whole.shape[1] // 2
        span, _ = read_audio(path, offset_seconds=start / rate, duration_seconds=1.0)
        torch.testing.assert_close(span, whole[:, start : start + rate], atol=1e-4, rtol=0)
