"""Does training learn what it is shown? Eight clips, and the model must give each back by its name.

Eight artists of the built-in catalogue each give a clip, and the demo's base model is trained on them, whole
or with adapters, from stored latents. Then it is asked for each by name, and what it makes is held against
all eight by the mean distance of log-mel spectrograms in dB. A clip has found its own where no other target
is nearer; the margin says how much further away the next one is. Chance is one in eight.

    python benchmarks/overfit.py                   # whole, then LoRA
    python benchmarks/overfit.py --kinds lora --steps 400
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.features import log_mel
from stable_audio_tools.audio.files import read_audio, save_audio
from stable_audio_tools.demo.artists import DEMO_ARTISTS
from stable_audio_tools.demo.assets import base_model_config, write_starting_point
from stable_audio_tools.demo.pieces import compose
from stable_audio_tools.demo.synth import SAMPLE_RATE
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.inference.pre_encode import pre_encode
from stable_audio_tools.inference.pre_encode_settings import PreEncodeSettings
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.runtime.files import write_json, write_text
from stable_audio_tools.training.checkpoints import step_checkpoints
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings

RATES = {"full": 1e-3, "lora": 3e-3}
"""Learning rates to begin with, for some hundred steps on a tiny model; they fall to zero by a cosine.
Adapters have no average, and at a constant rate miss two of the eight. A large model wants the rates of its
config."""
SAMPLER = {"sigma_min": 0.03, "sigma_max": 80.0}


@dataclass(frozen=True)
class Lesson:
    """Eight clips on disk as stored latents, and the model that is to learn them.

    Attributes:
        folder: where everything goes.
        names: what each clip is called, which is its prompt.
        targets: their audio ``(8, C, T)``.
        window: T.
    """

    folder: Path
    names: list[str]
    targets: Tensor
    window: int


@dataclass(frozen=True)
class Outcome:
    """Distances in dB ``(8, 8)``, clips down and targets across, and what training took."""

    distances: Tensor
    first_loss: float
    last_loss: float
    seconds: float

    @property
    def found(self) -> int:
        """Clips to which their own target is the nearest."""
        own = torch.arange(len(self.distances))
        return int((self.distances.argmin(dim=1) == own).sum())

    @property
    def margins(self) -> Tensor:
        """The nearest other target over the own one, ``(8,)``: above 1 where a clip has found its own."""
        own = self.distances.diagonal()
        others = self.distances.masked_fill(torch.eye(len(own), dtype=torch.bool), math.inf)
        return others.min(dim=1).values / own


def prepare(folder: Path, window: int) -> Lesson:
    """Compose the clips, store their latents, and write the base model, its VAE and the configs."""
    pieces = compose(DEMO_ARTISTS, 1, world="overfit", first_id=1)
    names, targets = [], []
    for piece in pieces:
        audio = torch.as_tensor(piece.play())[:, :window]
        name = f"{piece.title} by {piece.artist.name}"
        save_audio(folder / "music" / f"{piece.track_id:02d}.flac", audio, SAMPLE_RATE)
        write_text(folder / "music" / f"{piece.track_id:02d}.txt", name)
        names.append(name)
        targets.append(audio)
    write_starting_point(folder / "start")
    config = base_model_config() | {"sample_size": window}
    write_json(folder / "model.json", config)
    entry = {"id": "music", "path": str(folder / "music")}
    write_json(
        folder / "audio.json", {"dataset_type": "audio_dir", "random_crop": False, "datasets": [entry]}
    )
    pre_encode(
        PreEncodeSettings(
            model_config=str(folder / "model.json"),
            ckpt_path=str(folder / "start" / "base.ckpt"),
            dataset_config=str(folder / "audio.json"),
            output_path=str(folder / "latents"),
            batch_size=8,
            num_workers=0,
            device="cpu",
        )
    )
    stored = {"id": "latents", "path": str(folder / "latents")}
    write_json(folder / "latents.json", {"dataset_type": "pre_encoded", "datasets": [stored]})
    return Lesson(folder, names, torch.stack(targets).float(), window)


def learn(
    lesson: Lesson, kind: str, steps: int, rate: float, sampler_steps: int = 50, device: str = "cpu"
) -> Outcome:
    """Train ``full`` or ``lora``, ask for every clip by name, and measure."""
    folder = lesson.folder / kind
    config: dict[str, Any] = copy.deepcopy(base_model_config() | {"sample_size": lesson.window})
    falling = {"type": "CosineAnnealingLR", "config": {"T_max": steps}}
    optimizer = {"type": "AdamW", "config": {"lr": rate}}
    config["training"] = {
        "use_ema": True,
        "pre_encoded": True,
        "optimizer_configs": {"diffusion": {"optimizer": optimizer, "scheduler": falling}},
    }
    config["lora"] = {"rank": 64, "alpha": 64, "lr": rate}
    write_json(folder / "model.json", config)
    base = lesson.folder / "start" / "base.ckpt"
    started = time.monotonic()
    run = train(
        TrainSettings(
            model_config=str(folder / "model.json"),
            dataset_config=str(lesson.folder / "latents.json"),
            pretrained_ckpt_path=str(base),
            save_dir=str(folder / "runs"),
            max_steps=steps,
            log_every=max(1, steps // 10),
            batch_size=8,
            num_workers=0,
            precision="32",
            gradient_clip_val=1.0,
            device=device,
        ),
        lora=kind == "lora",
    )
    seconds = time.monotonic() - started
    checkpoint = step_checkpoints(run / "checkpoints")[-1]
    if kind == "lora":
        files = ModelFiles(folder / "model.json", base, checkpoint.with_suffix(".adapter"))
    else:
        files = ModelFiles(folder / "model.json", unwrap_checkpoint(checkpoint, None, folder / "learned"))
    clips = generate_clips(
        files.load_conditional(torch.device(device)),
        [_request(name, lesson.window) for name in lesson.names],
        folder / "clips",
        batch_size=8,
        steps=sampler_steps,
        cfg_scale=2.0,
        sampler_options=SAMPLER,
        normalize=False,
        device=device,
    )
    made = torch.stack([read_audio(clip)[0] for clip in clips])
    losses = _losses(run)
    return Outcome(distances(made, lesson.targets), losses[0], losses[-1], seconds)


def distances(made: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute differences of log-mel spectrograms in dB, of each of ``made`` to each of ``targets``."""
    first, second = (
        log_mel(audio, SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=64, floor_db=-80.0)
        for audio in (made, targets)
    )
    return torch.stack([(clip - second).abs().mean(dim=(1, 2, 3)) for clip in first])


def _request(name: str, window: int) -> ClipRequest:
    seconds = window / SAMPLE_RATE
    # what training said of the clip: its length in whole seconds
    return ClipRequest(name, seconds, conditioning={"seconds_total": math.ceil(seconds)})


def _losses(run: Path) -> list[float]:
    import csv

    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Eight clips must come back by name.")
    parser.add_argument("--kinds", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--frames", type=int, default=125, help="latent frames of a clip, 32 ms each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out-dir", type=Path, help="keep the runs and the clips here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lesson = prepare(options.out_dir or Path(scratch), options.frames * 512)
        for kind in options.kinds:
            report(
                kind, options.steps, learn(lesson, kind, options.steps, RATES[kind], device=options.device)
            )


def report(kind: str, steps: int, outcome: Outcome) -> None:
    """Print the table of distances and what it says."""
    print(f"{kind}: {steps} steps in {outcome.seconds:.0f} s, loss {outcome.first_loss:.3f}", end="")
    print(f" -> {outcome.last_loss:.3f}")
    for row, margin in zip(outcome.distances.tolist(), outcome.margins.tolist(), strict=True):
        print("  " + " ".join(f"{value:6.2f}" for value in row) + f"   margin {margin:.2f}")
    own = outcome.distances.diagonal()
    print(f"  {outcome.found} of {len(own)} clips are nearest to their own; mean distance to it", end="")
    print(f" {own.mean():.2f} dB, least margin {outcome.margins.min():.2f}", flush=True)


if __name__ == "__main__":
    main()
