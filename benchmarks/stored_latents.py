"""Clips per second of training data from recordings and from stored latents, and how long listing them takes.

``recordings`` decodes a crop and encodes it with the VAE of the demo, as a training step on audio does;
``stored`` reads the same crops as ``sat pre-encode`` stored them. Tracks are noise, 30 s of Ogg Vorbis.

    python benchmarks/stored_latents.py --tracks 24 --listed 10000
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch

import stable_audio_tools
from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.latents import latent_index
from stable_audio_tools.inference.latent_encoder import EncoderFiles
from stable_audio_tools.inference.pre_encode import pre_encode
from stable_audio_tools.inference.pre_encode_settings import PreEncodeSettings
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.schema.dataset import PreEncodedDataset
from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

DEMO = Path(stable_audio_tools.__file__).parent / "demo" / "assets" / "base"
RATE, SECONDS, BATCH = 16000, 30, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Stored latents against recordings.")
    parser.add_argument("--tracks", type=int, default=24)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--listed", type=int, default=10_000, help="crops to list")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.tracks):
            noise = torch.randn(2, RATE * SECONDS, generator=torch.Generator().manual_seed(number)) * 0.1
            save_audio(folder / "music" / f"{number:04d}.ogg", noise, RATE)
        entry = {"id": "music", "path": str(folder / "music")}
        write_json(folder / "audio.json", {"dataset_type": "audio_dir", "datasets": [entry]})
        settings = PreEncodeSettings(
            pretrained_name=str(DEMO),
            dataset_config=str(folder / "audio.json"),
            output_path=str(folder / "latents"),
            crops=options.crops,
            batch_size=BATCH,
            num_workers=0,
            device="cpu",
        )
        pre_encode(settings)
        stored = {"id": "stored", "path": str(folder / "latents")}
        latents = parse_dataset_config({"dataset_type": "pre_encoded", "datasets": [stored]})
        slow = clips_per_second(settings, read_dataset_config(folder / "audio.json"), encode=True)
        fast = clips_per_second(settings, latents, encode=False)
        print(f"recordings {slow:8.1f} clips/s")
        print(f"stored     {fast:8.1f} clips/s, {fast / slow:.0f} times as many")
        assert isinstance(latents, PreEncodedDataset)
        list_many(folder / "latents", latents, options.listed)


def clips_per_second(settings: PreEncodeSettings, dataset: object, encode: bool) -> float:
    """Of batches of training data, decoded and encoded or read, in this process."""
    files = EncoderFiles.find(settings)
    encoder = files.load(torch.device("cpu"))
    loader = create_dataloader_from_config(dataset, BATCH, files.sample_size, RATE, num_workers=0)  # type: ignore[arg-type]
    count, started = 0, time.perf_counter()
    with torch.inference_mode():
        for _ in range(settings.crops):
            for batch, _infos in loader:
                latents = encoder.encode(batch) if encode else encoder.read_stored(batch)
                count += len(latents)
    return count / (time.perf_counter() - started)


def list_many(folder: Path, config: PreEncodedDataset, count: int) -> None:
    """Copy crops until there are ``count`` and time the listing, which reads the JSON of each."""
    first = folder / "0" / "0000000000000.npy"
    for row in range(10_000, 10_000 + count):
        copy = folder / "0" / f"000{row:06d}0000.npy"
        copy.hardlink_to(first)
        shutil.copy(first.with_suffix(".json"), copy.with_suffix(".json"))
    started = time.perf_counter()
    latent_index(config)
    seconds = time.perf_counter() - started
    print(f"listing {count} crops takes {seconds:.2f} s, {seconds / count * 1e6:.0f} us each")


if __name__ == "__main__":
    main()
