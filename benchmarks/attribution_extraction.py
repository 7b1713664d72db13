"""Tracks a second of a whole extraction: read, encode, condition, differentiate, write; on one or more GPUs.

The model has the shape of a shipped config and random weights, with a text encoder of t5-base's size; the
music is noise. ``recordings`` decodes FLAC and encodes it, ``latents`` reads what was stored before. Several
GPUs fill one store under torchrun, as the command does. Loading, compiling and the first batches are not
counted.

    python benchmarks/attribution_extraction.py --gpus 1 2 --tracks 128
    python benchmarks/attribution_extraction.py --model-config tiny.json --device cpu --tracks 8
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from random_models import OPEN_1_0, with_random_text_encoder

from stable_audio_tools.attribution.features.extract import extract_features
from stable_audio_tools.attribution.queries import train_source
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.attribution.sharing import ALONE, device_of, share_of
from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.inference.pre_encode import pre_encode
from stable_audio_tools.inference.pre_encode_settings import PreEncodeSettings
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.schema.reader import read_model_config

SOURCES = ("latents", "recordings")
CATALOGUE = 5000
RECORDINGS = 16
"""Different ones; writing more would take longer than reading them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tracks a second of attribution's extraction.")
    parser.add_argument("--model-config", type=Path, default=OPEN_1_0)
    parser.add_argument("--tracks", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-workers", type=int, default=4)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--gpus", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default=None)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)  # of the processes below
    options = parser.parse_args()
    if options.work is not None:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options)
        base: dict[str, float] = {}
        for gpus in options.gpus:
            for source, rate in run(folder, gpus).items():
                base.setdefault(source, rate)
                print(
                    f"{source:10s} {gpus} at once {rate:8.2f} tracks/s, {rate / base[source]:.2f} x;"
                    f" {CATALOGUE} tracks in {CATALOGUE / rate / 60:.1f} minutes",
                    flush=True,
                )


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The model's weights, the music, and its latents."""
    config = with_random_text_encoder(json.loads(options.model_config.read_text()), folder / "t5")
    config["model"]["pretransform"]["model_half"] = options.precision == "bfloat16"
    write_json(folder / "model.json", config)
    torch.manual_seed(0)
    with resolve_device(options.device):
        model = create_model_from_config(read_model_config(folder / "model.json"))
    torch.save({"state_dict": model.state_dict()}, folder / "model.ckpt")
    del model
    shape = config["audio_channels"], config["sample_size"]
    for number in range(options.tracks):
        path = folder / "music" / f"{number:04d}.flac"
        if number < RECORDINGS:
            save_audio(path, torch.randn(shape) * 0.1, config["sample_rate"])
        else:
            shutil.copy(folder / "music" / f"{number % RECORDINGS:04d}.flac", path)
        path.with_suffix(".txt").write_text(f"noise number {number}")
    entry = {"id": "music", "path": str(folder / "music")}
    write_json(folder / "recordings.json", {"dataset_type": "audio_dir", "datasets": [entry]})
    if "latents" in options.sources:
        settings = PreEncodeSettings(
            model_config=str(folder / "model.json"),
            ckpt_path=str(folder / "model.ckpt"),
            dataset_config=str(folder / "recordings.json"),
            output_path=str(folder / "stored"),
            batch_size=min(8, options.tracks),
            num_workers=options.num_workers,
            device=options.device or "auto",
        )
        pre_encode(settings)
        stored = {"id": "stored", "path": str(folder / "stored")}
        write_json(folder / "latents.json", {"dataset_type": "pre_encoded", "datasets": [stored]})


def run(folder: Path, gpus: int) -> dict[str, float]:
    """Tracks a second by source, of ``gpus`` processes together."""
    command = [sys.executable]
    if gpus > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    subprocess.run([*command, __file__, *sys.argv[1:], "--work", str(folder)], check=True)
    found: dict[str, float] = json.loads((folder / "rates.json").read_text())
    return found


def measure(options: argparse.Namespace) -> None:
    """What one process does: its part of the tracks, once all processes are ready."""
    share = share_of()
    device = device_of(share, options.device)
    if share.world_size > 1:
        dist.init_process_group("gloo")
    model = ModelFiles(options.work / "model.json", options.work / "model.ckpt").load_conditional(device)
    settings = FeatureSettings(precision=options.precision)
    rates = {}
    for name in options.sources:
        source = train_source(options.work / f"{name}.json")
        for what, tracks, part in (
            ("warm-up", source.first(options.batch_size), ALONE),
            ("all", source, share),
        ):
            folder = options.work / f"{name}-{what}-{share.world_size}"
            if part is ALONE:
                folder = folder.with_name(f"{folder.name}-{share.rank}")
            began = _together(share.world_size, device)
            extract_features(
                model,
                tracks,
                folder,
                settings,
                stamp={},
                batch_size=options.batch_size,
                num_workers=options.num_workers,
                compile=options.compile and device.type == "cuda",
                share=part,
            )
            took = _together(share.world_size, device) - began
        rates[name] = len(source.index) / took
    if share.rank == 0:
        write_json(options.work / "rates.json", rates)


def _together(processes: int, device: torch.device) -> float:
    """The time when all processes have come here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if processes > 1:
        dist.barrier()
    return time.perf_counter()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    main()
