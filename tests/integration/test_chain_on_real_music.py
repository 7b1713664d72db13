"""The whole chain on six real recordings, with the shipped dataset configs as they are and the tiny models.

The recordings lie where ``local_training_custom.json`` expects them, beside a copy of one of them that was
encoded again and made quieter. Then what the README tells the user to do: drop the duplicate, fine-tune,
unwrap, generate, ask which track shaped which clip, measure.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from workshop import run_sat

from stable_audio_tools.audio.files import read_audio, read_tags, save_audio
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.demo.assets import asset, write_starting_point
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.schema.generation import ClipSidecar
from stable_audio_tools.schema.reader import read_dataset_config

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "stable_audio_tools" / "configs" / "dataset_configs"
TRAINING_SET, QUERIES = CONFIGS / "local_training_custom.json", CONFIGS / "dtrak_generated_queries.json"
ORIGINAL, COPY = "05/1000405.mp3", "07/1000507.ogg"
PROMPTS = ("Jazz and ragtime music with piano. Mood: happy.", "Folk music with acoustic guitar and voice.")
STEPS = 12


@dataclass(frozen=True)
class Chain:
    """The working folder after the chain, and what some of its commands said."""

    root: Path
    first_training: str
    scores: dict[str, object]

    @property
    def run(self) -> Path:
        """The run folder of the training that counts."""
        (folder,) = (self.root / "runs" / "real").iterdir()
        return folder

    @property
    def clips(self) -> list[Path]:
        return sorted((self.root / "outputs" / "generated").glob("*.wav"))


def lay_out(source: Path, root: Path) -> None:
    """The recordings under ``dataset/small-5000``, with the planted copy and its lines in the tables."""
    home = root / "dataset" / "small-5000"
    for path in source.rglob("*"):
        if path.is_file():
            target = home / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    audio, rate = read_audio(home / "audio" / ORIGINAL)
    save_audio(home / "audio" / COPY, 0.7 * audio, rate)
    for name in ("raw_30s.tsv", "raw.meta.tsv"):
        lines = (home / name).read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in lines if line.startswith("track_1000405"))
        copy = line.replace("1000405", "1000507").replace("05/1000507.mp3", COPY)
        (home / name).write_text("\n".join([*lines, copy]) + "\n", encoding="utf-8")


def script(name: str, *arguments: str) -> str:
    """Run a documented script in the working folder; returns what it said on standard error."""
    command = [sys.executable, str(REPOSITORY / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def sat(*arguments: str) -> None:
    """Run ``sat`` in this process; it must succeed."""
    assert run_sat(list(arguments)) == 0


def train(name: str, steps: int) -> str:
    return script(
        "train.py",
        *("--model-config", "start/model_config.json", "--dataset-config", str(TRAINING_SET)),
        *("--pretrained-ckpt-path", "start/base.ckpt", "--pretransform-ckpt-path", "start/vae.ckpt"),
        *("--name", name, "--max-steps", str(steps), "--batch-size", "2", "--num-workers", "1"),
        *("--checkpoint-every", "6", "--log-every", "4", "--device", "cpu"),
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, jamendo_mini: Path) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("real-music")
    lay_out(jamendo_mini, root)
    write_starting_point(root / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        first_training = train("too-early", steps=1)
        script(
            "scripts/dac_hist_dedup.py",
            *("--dataset-config", str(TRAINING_SET), "--model-path", str(asset("dac")), "--device", "cpu"),
            *("--max-audio-seconds", "45", "--num-workers", "1"),
        )
        train("real", STEPS)
        (last,) = root.glob(f"runs/real/*/checkpoints/step={STEPS:08d}.ckpt")
        model = ("--model-config", "start/model_config.json")
        script("unwrap_model.py", *model, "--ckpt-path", str(last), "--name", "tuned")
        tuned = (*model, "--ckpt-path", "tuned.ckpt", "--device", "cpu")
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        sat("generate", *tuned, *prompts, "--seconds", "5", "--steps", "20")
        attribute = ("attribute", "run", *tuned, "--train-dataset-config", str(TRAINING_SET))
        sat(*attribute, "--queries", str(QUERIES), "--num-workers", "0")
        folder_with_a_copy(root / "copy", root / "dataset" / "small-5000")
        sat(*attribute, "--queries", "copy", "--output-dir", "outputs/of-a-copy", "--num-workers", "0")
        reference = ("--reference", "dataset/small-5000/audio", "--clap-model", str(asset("clap")))
        sat(
            "evaluate",
            "folder",
            "--generated-dir",
            "outputs/generated",
            *reference,
            "--output-path",
            "s.json",
        )
        yield Chain(root, first_training, json.loads((root / "s.json").read_text(encoding="utf-8")))


def folder_with_a_copy(folder: Path, dataset: Path) -> None:
    """A track of the training set as a clip, with the prompt that it was trained with."""
    folder.mkdir()
    shutil.copyfile(dataset / "audio" / ORIGINAL, folder / "copy.mp3")
    prompt = "Jazz and ragtime music with piano. Mood: happy. Title: Pistachio Ice Cream Ragtime."
    (folder / "prompts.csv").write_text(f'file,prompt\ncopy.mp3,"{prompt}"\n', encoding="utf-8")


def ranking(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of ``ranking.csv`` by clip."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "ranking.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["query"], []).append(row)
    return rows


def test_before_dedup_training_warns_and_names_the_command(chain: Chain) -> None:
    (line,) = (line for line in chain.first_training.splitlines() if "exclude list" in line)
    assert line.startswith("warning: ")
    assert "sat dedup" in line
    assert "scripts/dac_hist_dedup.py" in line
    assert "on 7 tracks" in chain.first_training


def test_the_planted_copy_is_found_and_nothing_else_is(chain: Chain) -> None:
    folder = chain.root / "outputs" / "dac_dedup"
    lines = (folder / "exclude_paths.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [COPY]
    pairs = [json.loads(line) for line in (folder / "similar_pairs.jsonl").read_text().splitlines()]
    (pair,) = (pair for pair in pairs if pair["duplicate"])
    assert (pair["a"], pair["b"]) == (f"fma/{ORIGINAL}", f"fma/{COPY}")
    assert not pair["identical_bytes"]
    assert abs(pair["offset_seconds"]) < 0.05
    assert json.loads((folder / "failed_files.json").read_text()) == []
    assert json.loads((folder / "summary.json").read_text())["tracks"] == 7


def test_training_leaves_the_copy_out_and_its_loss_is_finite(chain: Chain) -> None:
    tracks = [json.loads(line)["relpath"] for line in (chain.run / "tracks.jsonl").read_text().splitlines()]
    assert len(tracks) == 6
    assert ORIGINAL in tracks
    assert COPY not in tracks
    with (chain.run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert all(0 < float(row["train/loss"]) < 2 for row in rows)
    names = [path.name for path in sorted((chain.run / "checkpoints").iterdir())]
    assert names == ["step=00000006.ckpt", "step=00000012.ckpt"]


def test_training_moved_the_network_and_left_the_vae_alone(chain: Chain) -> None:
    before, after = (
        torch.load(chain.root / name, weights_only=True)["state_dict"]
        for name in ("start/base.ckpt", "tuned.ckpt")
    )
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("model.model.") for key in moved)
    assert not {key for key in moved if key.startswith("pretransform.")}


def test_the_clips_are_music_and_say_how_they_were_made(chain: Chain) -> None:
    assert len(chain.clips) == 2
    for position, (clip, prompt) in enumerate(zip(chain.clips, PROMPTS, strict=True)):
        audio, rate = read_audio(clip)
        assert (rate, tuple(audio.shape)) == (16000, (2, 5 * 16000))
        assert audio.abs().max() == pytest.approx(1.0, abs=1e-3)
        levels = audio.unflatten(1, (10, -1)).square().mean(dim=(0, 2)).sqrt()
        assert (levels > 0.003).sum() >= 6, "sounds for most of its length"
        assert spectral_flatness(audio) < 0.3, "notes and beats, not white noise"
        sidecar = ClipSidecar.model_validate_json(clip.with_suffix(".json").read_text(encoding="utf-8"))
        assert (sidecar.prompt, sidecar.seed, sidecar.steps) == (prompt, 42 + position, 20)
        assert (sidecar.seconds_start, sidecar.seconds_total, sidecar.duration_seconds) == (0, 5, 5)
        assert sidecar.model_sha256 == sha256_file(chain.root / "tuned.ckpt")
        assert sidecar.checkpoint is not None
        assert sidecar.checkpoint.endswith("tuned.ckpt")
        assert ClipSidecar.model_validate_json(read_tags(clip)["comment"]) == sidecar


def spectral_flatness(audio: torch.Tensor) -> float:
    """Geometric over arithmetic mean of the power spectrum: 1 for white noise, near 0 for tones."""
    window = torch.hann_window(1024)
    power = torch.stft(audio.mean(0), 1024, window=window, return_complex=True).abs().square().mean(1) + 1e-12
    return float(power.log().mean().exp() / power.mean())


def test_every_clip_ranks_every_training_track_once(chain: Chain) -> None:
    index = TrackIndex.from_config(read_dataset_config(TRAINING_SET), base_dir=CONFIGS)
    rows = ranking(chain.root / "outputs" / "attribution")
    assert list(rows) == [f"generated/{clip.name}" for clip in chain.clips]
    for ranked, prompt in zip(rows.values(), PROMPTS, strict=True):
        assert sorted(row["sample_id"] for row in ranked) == [track.sample_id for track in index]
        assert [int(row["rank"]) for row in ranked] == [1, 2, 3, 4, 5, 6]
        squares = [float(row["score_squared"]) for row in ranked]
        assert squares == sorted(squares, reverse=True)
        assert all(math.isfinite(value) for value in squares)
        assert {row["query_prompt"] for row in ranked} == {prompt}
        assert all(row["artist"] and row["title"] for row in ranked)
    assert np.load(chain.root / "outputs" / "attribution" / "scores.npy").shape == (2, 6)


def test_a_copy_of_a_training_track_is_attributed_to_it(chain: Chain) -> None:
    (ranked,) = ranking(chain.root / "outputs" / "of-a-copy").values()
    assert ranked[0]["sample_id"] == f"fma/{ORIGINAL}"
    assert float(ranked[0]["score_squared"]) > 4 * float(ranked[1]["score_squared"])


def test_quality_is_measured_and_its_limits_are_said(chain: Chain) -> None:
    scores = chain.scores
    assert (scores["clips"], scores["clips_with_prompt"], scores["reference_recordings"]) == (2, 2, 7)
    assert isinstance(scores["fad"], float)
    assert scores["fad"] > 0
    assert isinstance(scores["alignment"], float)
    assert -1 <= scores["alignment"] <= 1
    assert any("biased" in note for note in scores["notes"])  # type: ignore[attr-defined]
    assert not scores["failed"]
