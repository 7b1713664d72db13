"""Clips per second from 4-minute MP3s: decoding only the crop, beside decoding all of the file and cropping.

The files are synthesised and encoded here: constant rate, variable rate with a Xing header, and variable rate
without one. The baseline decodes a whole file in one go, with FFmpeg or with libsndfile, whichever is faster
and knows the file's true length, resamples it where asked, and crops. Both take the same crops. Times
are of the processor, one core, so that what else runs on the machine does not count; ``clips/s`` of the
workers is by the clock.

    python benchmarks/loader.py --seconds 10 47.55 --workers 1 2
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch

from stable_audio_tools.audio.files import _probe, read_audio
from stable_audio_tools.audio.transforms import resample
from stable_audio_tools.data.dataset import create_dataloader_from_config

RATE = 44100
TRACK_SECONDS = 240
KINDS: dict[str, dict[str, Any]] = {
    "cbr": {"bit_rate": 192000},
    "vbr": {"quality": 2},
    "vbr without header": {"quality": 2, "write_xing": "0"},
}


def write_mp3(path: Path, seed: int, bit_rate: int = 0, quality: int = 0, **options: str) -> None:
    """Four minutes of a drone, noise that comes and goes, and beats."""
    draws = np.random.default_rng(seed)
    seconds = np.arange(RATE * TRACK_SECONDS, dtype=np.float32) / RATE
    drone = 0.3 * np.sin(2 * np.pi * (110 + 10 * seed) * seconds * (1 + 0.01 * np.sin(seconds)))
    beats = 0.3 * np.sin(2 * np.pi * 60 * seconds) * np.exp(-8 * (seconds % 0.5))
    noise = draws.standard_normal(len(seconds)) * 0.08 * (np.sin(0.7 * seconds) > 0)
    music = np.stack([drone + beats + noise, 0.8 * drone + beats - 0.5 * noise]).astype(np.float32)
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libmp3lame", rate=RATE, layout="stereo")
        if bit_rate:
            stream.bit_rate = bit_rate
        else:
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = quality * 118
        for begin in range(0, music.shape[1], 115200):
            block = np.ascontiguousarray(music[:, begin : begin + 115200])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def all_by_ffmpeg(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=1)


def all_by_sndfile(path: Path) -> np.ndarray:
    return np.ascontiguousarray(soundfile.read(path, dtype="float32", always_2d=True)[0].T)


def seconds_per_clip(read: Callable[[Path, float], object], clips: list[tuple[Path, float]]) -> float:
    """CPU seconds of this process per clip."""
    start = time.process_time()
    for path, offset in clips:
        read(path, offset)
    return (time.process_time() - start) / len(clips)


def compare(paths: dict[str, list[Path]], crop_seconds: float, rate: int, rounds: int) -> Iterator[str]:
    draws = np.random.default_rng(0)
    for kind, files in paths.items():
        clips = [
            (path, float(draws.uniform(0, TRACK_SECONDS - crop_seconds - 1)))
            for _ in range(rounds)
            for path in files
        ]

        def crop(path: Path, offset: float) -> torch.Tensor:
            return read_audio(path, offset_seconds=offset, duration_seconds=crop_seconds, sample_rate=rate)[0]

        def all_then_crop(path: Path, offset: float, decode: Callable[[Path], np.ndarray]) -> torch.Tensor:
            whole = resample(torch.from_numpy(decode(path)), RATE, rate)
            return whole[:, round(offset * rate) :][:, : round(crop_seconds * rate)].clone()

        decoders = {"FFmpeg": all_by_ffmpeg}
        if abs(all_by_sndfile(files[0]).shape[1] - RATE * TRACK_SECONDS) < RATE:
            decoders["libsndfile"] = all_by_sndfile
        baseline = {
            name: seconds_per_clip(lambda p, o, d=decode: all_then_crop(p, o, d), clips[: 2 * len(files)])
            for name, decode in decoders.items()
        }
        name = min(baseline, key=lambda key: baseline[key])
        _probe.cache_clear()
        first = seconds_per_clip(crop, clips[: len(files)])
        later = seconds_per_clip(crop, clips)
        cells = [
            kind,
            f"{crop_seconds:g} s at {rate / 1000:g} kHz",
            f"{1 / baseline[name]:.1f} ({name})",
            f"{1 / first:.1f} ({baseline[name] / first:.1f}x)",
            f"{1 / later:.1f} ({baseline[name] / later:.1f}x)",
        ]
        yield f"| {' | '.join(cells)} |"


def through_the_loader(folder: Path, crop_seconds: float, rate: int, workers: int, epochs: int) -> str:
    """Whole epochs, so that nothing is decoded in vain; the processor time is that of the workers alone."""
    loader = create_dataloader_from_config(
        {"dataset_type": "audio_dir", "datasets": [{"id": "bench", "path": str(folder)}]},
        batch_size=3,
        sample_size=round(crop_seconds * rate),
        sample_rate=rate,
        num_workers=workers,
    )
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    clips = sum(len(audio) for _ in range(epochs) for audio, _ in loader)
    elapsed = time.perf_counter() - start
    del loader  # its workers end, and their time is known
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        f"| {workers} | {crop_seconds:g} s at {rate / 1000:g} kHz | {clips / elapsed:.1f} |"
        f" {clips / spent:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Clips per second of the loader.")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 2097152 / RATE])
    parser.add_argument("--rates", type=int, nargs="+", default=[44100, 48000])
    parser.add_argument("--files", type=int, default=3, help="of each kind")
    parser.add_argument("--rounds", type=int, default=4, help="crops of each file")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        paths: dict[str, list[Path]] = {}
        for kind, options in KINDS.items():
            for number in range(arguments.files):
                path = Path(temporary) / f"{kind.replace(' ', '_')}_{number}.mp3"
                write_mp3(path, number, **options)
                paths.setdefault(kind, []).append(path)
        print(f"{os.cpu_count()} cores, {arguments.files} files of {TRACK_SECONDS} s of each kind\n")
        print("| MP3 | crop | all, then crop: clips/s | first visit: clips/s | later: clips/s |")
        print("|---|---|---|---|---|")
        for crop_seconds in arguments.seconds:
            for rate in arguments.rates:
                for line in compare(paths, crop_seconds, rate, arguments.rounds):
                    print(line, flush=True)
        print("\n| workers | crop | clips/s | clips per second of processor time |\n|---|---|---|---|")
        for crop_seconds in arguments.seconds:
            for workers in arguments.workers:
                print(through_the_loader(Path(temporary), crop_seconds, RATE, workers, 12), flush=True)


if __name__ == "__main__":
    main()
