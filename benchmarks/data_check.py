"""What a check of a track costs beside decoding it: processor seconds for each hour of audio, and the ratio.

Takes recordings of your own, or makes two minutes of stereo noise as FLAC.

    python benchmarks/data_check.py ../shared/data/jamendo-mini/audio
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from stable_audio_tools.audio.files import AUDIO_SUFFIXES, probe, read_audio
from stable_audio_tools.data.check.measure import check_file

RATE = 44100


def make_track(folder: Path) -> Path:
    """Two minutes of noise whose level changes."""
    draws = np.random.default_rng(0)
    level = np.repeat(draws.uniform(0.01, 0.3, 240), RATE // 2)
    path = folder / "noise.flac"
    soundfile.write(path, draws.uniform(-1, 1, (len(level), 2)) * level[:, None], RATE)
    return path


def processor_seconds(work: Callable[[Path], object], paths: list[Path], repeats: int) -> float:
    """The least over ``repeats`` of what one pass over ``paths`` takes of the processor."""
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        for path in paths:
            work(path)
        spent.append(time.process_time() - begun)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if arguments.folder is None:
            paths = [make_track(Path(made))]
        else:
            paths = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        hours = sum(probe(path).duration_seconds for path in paths) / 3600
        decode = processor_seconds(read_audio, paths, arguments.repeats) / hours
        check = processor_seconds(check_file, paths, arguments.repeats) / hours
    print(f"{len(paths)} tracks, {hours:.3f} hours; of one processor, for an hour of audio:")
    print(f"decoding alone  {decode:6.1f} s, {3600 / decode:.0f} x real time")
    print(f"the check       {check:6.1f} s, {3600 / check:.0f} x real time")
    print(f"ratio           {check / decode:6.2f}")


if __name__ == "__main__":
    main()
