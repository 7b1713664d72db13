"""Every seek gives what a full decode by FFmpeg has there, and files are read no further than the span."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from stable_audio_tools.audio import files, mp3, packets
from stable_audio_tools.audio.files import probe, read_audio, save_audio
from stable_audio_tools.errors import AudioError

SECONDS = 12
SPAN = 3000


def _music(rate: int, channels: int, seconds: float = SECONDS) -> np.ndarray:
    """A sweep with noise that comes and goes, so that a variable rate varies; float32 ``(C, T)``."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(time))) * 0.1 * (np.sin(2 * time) > 0)
    sweep = 0.4 * np.sin(2 * np.pi * (200 + 40 * time) * time)
    return (sweep * np.linspace(1, 0.5, channels)[:, None] + noise).astype(np.float32)


def _encode(
    path: Path,
    codec: str,
    rate: int = 44100,
    channels: int = 2,
    *,
    bit_rate: int | None = 128000,
    quality: int | None = None,
    seconds: float = SECONDS,
    **container_options: str,
) -> Path:
    samples = _music(rate, channels, seconds)
    layout = "stereo" if channels == 2 else "mono"
    options = {"aac_pns": "0"} if codec == "aac" else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if quality is None:
            stream.bit_rate = bit_rate
        else:  # FFmpeg counts in steps of 1/118
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = quality * 118
        planar = codec != "flac"
        for begin in range(0, samples.shape[1], 4096):
            block = np.ascontiguousarray(samples[:, begin : begin + 4096])
            kind = "fltp" if planar else "s16"
            if not planar:
                block = np.ascontiguousarray((block.T * 32767).astype(np.int16).reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format=kind, layout=layout)
            frame.sample_rate, frame.pts = rate, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _vorbis(path: Path) -> Path:
    return save_audio(path, torch.from_numpy(_music(44100, 2)), 44100)


def _alac(path: Path) -> Path:
    samples = (_music(44100, 2) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("alac", rate=44100, layout="stereo")
        stream.format = "s16p"
        for begin in range(0, samples.shape[1], 4096):
            block = np.ascontiguousarray(samples[:, begin : begin + 4096])
            frame = av.AudioFrame.from_ndarray(block, format="s16p", layout="stereo")
            frame.sample_rate, frame.pts = 44100, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


FILES: dict[str, Callable[[Path], Path]] = {
    "cbr.mp3": lambda path: _encode(path, "libmp3lame", bit_rate=192000),
    "vbr_with_xing.mp3": lambda path: _encode(path, "libmp3lame", quality=4),
    "vbr_headerless.mp3": lambda path: _encode(path, "libmp3lame", quality=4, write_xing="0"),
    "cbr_headerless.mp3": lambda path: _encode(path, "libmp3lame", write_xing="0"),
    "mono.mp3": lambda path: _encode(path, "libmp3lame", channels=1, bit_rate=64000),
    "mpeg2_low_rate.mp3": lambda path: _encode(path, "libmp3lame", 22050, bit_rate=16000),
    "mpeg2_5.mp3": lambda path: _encode(path, "libmp3lame", 11025, 1, bit_rate=8000),
    "a.ogg": _vorbis,
    "a.flac": lambda path: _encode(path, "flac"),
    "aac.m4a": lambda path: _encode(path, "aac"),
    "aac_mono.m4a": lambda path: _encode(path, "aac", 32000, 1, bit_rate=48000),
    "alac.m4a": _alac,
    "a.aac": lambda path: _encode(path, "aac"),
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("coded")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            if "mp3" in name and "libmp3lame" not in av.codecs_available:
                pytest.skip("this FFmpeg cannot write MP3")
            FILES[name](path)
        return path

    return make


def _whole_by_ffmpeg(path: Path) -> np.ndarray:
    """All of a file as FFmpeg decodes it from its start, without anything of ours."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        frames = [out for frame in container.decode(stream) for out in to_float.resample(frame)]
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


@pytest.mark.parametrize("name", FILES)
def test_every_seek_is_a_part_of_the_full_decode(coded: Callable[[str], Path], name: str) -> None:
    path = coded(name)
    info = probe(path)
    reference = torch.from_numpy(_whole_by_ffmpeg(path)[:, : info.num_frames])
    assert info.num_frames - reference.shape[1] < 10
    whole, rate = read_audio(path)
    assert whole.shape == (info.channels, info.num_frames)
    torch.testing.assert_close(whole[:, : reference.shape[1]], reference, atol=1e-4, rtol=0)
    draws = np.random.default_rng(1)
    starts = [0, 1, 575, 1105, 1152, 2881, info.num_frames - SPAN, info.num_frames - SPAN - 1]
    for start in [*starts, *draws.integers(0, info.num_frames - SPAN, 24)]:
        span, _ = read_audio(path, offset_seconds=start / rate, duration_seconds=SPAN / rate)
        assert span.shape[1] == SPAN
        torch.testing.assert_close(span, whole[:, start : start + SPAN], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_memory_is_read_as_one_on_disk(coded: Callable[[str], Path], name: str) -> None:
    path = coded(name)
    in_memory = probe(Path("nowhere") / name, path.read_bytes())
    assert (in_memory.num_frames, in_memory.format) == (probe(path).num_frames, probe(path).format)
    for offset in (0.0, 7.3):
        options = {"offset_seconds": offset, "duration_seconds": 1.1, "sample_rate": 16000, "channels": 1}
        assert torch.equal(read_audio(in_memory, **options)[0], read_audio(path, **options)[0])
    with pytest.raises(AudioError, match=f"nowhere/{name}: "):
        probe(Path("nowhere") / name, path.read_bytes()[:100])
    with pytest.raises(AudioError, match=f"nowhere/{name}: the file is empty"):
        probe(Path("nowhere") / name, b"")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".mp3")])
def test_the_index_counts_what_the_demuxer_counts(coded: Callable[[str], Path], name: str) -> None:
    path = coded(name)
    index = probe(path).frame_index
    assert index is not None
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(audio=0) if packet.size]
    assert index.num_frames == len(found)
    assert index.anchors.tolist() == [packet.pos for packet in found[::32]]
    assert index.end == found[-1].pos + found[-1].size
    assert index.anchors.nbytes < 4 * (SECONDS * 100 / 32 + 1)


def test_a_length_is_scanned_once_and_then_remembered(
    coded: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "own.mp3"
    path.write_bytes(coded("vbr_headerless.mp3").read_bytes())
    scans = []
    real_scan = packets.scan
    monkeypatch.setattr(packets, "scan", lambda *args: (scans.append(args), real_scan(*args))[1])
    for offset in (3.0, 9.0, 0.0):
        read_audio(path, offset_seconds=offset, duration_seconds=0.5)
    assert len(scans) == 1
    path.write_bytes(coded("mono.mp3").read_bytes())
    assert read_audio(path, duration_seconds=0.5)[0].shape[0] == 1
    assert len(scans) == 2


def test_other_processes_need_not_scan_where_a_folder_for_scans_is_named(
    coded: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAT_SCAN_CACHE", str(tmp_path / "scans"))
    path = tmp_path / "own.mp3"
    path.write_bytes(coded("vbr_headerless.mp3").read_bytes())
    before, expected = probe(path), read_audio(path, offset_seconds=5.0, duration_seconds=1.0)[0]
    scans = []
    real_scan = packets.scan
    monkeypatch.setattr(packets, "scan", lambda *args: (scans.append(args), real_scan(*args))[1])
    files._probe.cache_clear()  # as in another process
    after = probe(path)
    assert after == before
    assert after.frame_index is not None
    assert before.frame_index is not None
    assert after.frame_index.anchors.tolist() == before.frame_index.anchors.tolist()
    assert torch.equal(read_audio(path, offset_seconds=5.0, duration_seconds=1.0)[0], expected)
    assert not scans
    files._probe.cache_clear()
    (kept,) = (tmp_path / "scans").rglob("*.json")
    kept.write_text(kept.read_text()[:50])
    assert probe(path) == before
    path.write_bytes(coded("mono.mp3").read_bytes())
    assert probe(path).channels == 1
    assert len(scans) == 2


@pytest.mark.parametrize("name", ["cbr.mp3", "vbr_with_xing.mp3", "vbr_headerless.mp3", "mpeg2_low_rate.mp3"])
def test_a_short_span_of_an_mp3_reads_a_small_part_of_it(
    coded: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = coded(name)
    info = probe(path)
    read = []
    real_read = mp3._read
    monkeypatch.setattr(mp3, "_read", lambda path, a, b: (read.append(b - a), real_read(path, a, b))[1])
    read_audio(info, offset_seconds=SECONDS / 2, duration_seconds=0.5)
    assert len(read) == 1
    assert read[0] < 0.3 * path.stat().st_size


def test_what_follows_the_last_frame_does_not_matter_and_a_gap_does(
    coded: Callable[[str], Path], tmp_path: Path
) -> None:
    data = coded("cbr.mp3").read_bytes()
    whole, rate = read_audio(coded("cbr.mp3"))
    for number, tail in enumerate(
        [b"TAG" + b"x" * 125, b"APETAGEX" + bytes(range(32, 120)), bytes(4000), b"LYRICSBEGINla la"]
    ):
        path = tmp_path / f"tail_{number}.mp3"
        path.write_bytes(data + tail)
        assert probe(path).frame_index is not None
        assert torch.equal(read_audio(path)[0], whole)
    middle = probe(coded("cbr.mp3")).frame_index.anchors[12]  # type: ignore[union-attr]
    gap = tmp_path / "gap.mp3"
    gap.write_bytes(data[:middle] + bytes(300) + data[middle:])
    assert probe(gap).frame_index is None
    before, _ = read_audio(gap, duration_seconds=8.0)
    torch.testing.assert_close(before, whole[:, : 8 * rate], atol=1e-4, rtol=0)


def test_a_file_that_changes_between_probe_and_read_is_named(
    coded: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "changed.mp3"
    path.write_bytes(coded("cbr.mp3").read_bytes())
    info = probe(path)
    path.write_bytes(coded("vbr_with_xing.mp3").read_bytes())
    with pytest.raises(AudioError, match=r"changed\.mp3: has changed while it was in use"):
        read_audio(info, offset_seconds=9.0, duration_seconds=1.0)
    path.unlink()
    with pytest.raises(AudioError, match=r"changed\.mp3: No such file"):
        read_audio(info, offset_seconds=9.0, duration_seconds=1.0)


def test_ogg_in_two_streams_and_ogg_that_was_cut_are_counted_page_by_page(
    coded: Callable[[str], Path], tmp_path: Path
) -> None:
    data = coded("a.ogg").read_bytes()
    cut = tmp_path / "cut.ogg"
    cut.write_bytes(data[: len(data) * 2 // 3])
    info = probe(cut)
    assert 0.5 * SECONDS < info.duration_seconds < 0.8 * SECONDS
    audio, rate = read_audio(cut)
    assert audio.shape[1] == info.num_frames
    torch.testing.assert_close(
        audio[:, : 5 * rate], read_audio(coded("a.ogg"))[0][:, : 5 * rate], atol=1e-4, rtol=0
    )


def test_real_recordings_have_an_index_and_exact_seeks(jamendo_mini: Path) -> None:
    for path in sorted(jamendo_mini.glob("audio/*/*.mp3")):
        info = probe(path)
        assert info.frame_index is not None
        reference = torch.from_numpy(_whole_by_ffmpeg(path)[:, : info.num_frames])
        for start in np.random.default_rng(0).integers(0, info.num_frames - SPAN, 10):
            span, _ = read_audio(
                info, offset_seconds=start / info.sample_rate, duration_seconds=SPAN / info.sample_rate
            )
            torch.testing.assert_close(span, reference[:, start : start + SPAN], atol=1e-4, rtol=0)
