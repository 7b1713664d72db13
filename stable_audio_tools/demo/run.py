"""The whole chain on a small catalogue: dedup, fine-tuning, generation, attribution, evaluation, a page.

Every stage is the code that a real run uses; only the models are tiny. What a stage has finished is kept, so
a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.jamendo import JamendoFolder
from stable_audio_tools.demo.assets import asset, write_starting_point
from stable_audio_tools.demo.catalogue import CatalogueSettings, write_catalogue
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import hash_json, write_json, write_text
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.runtime.seeds import derive_seed
from stable_audio_tools.schema.reader import parse_dataset_config, read_json

TABLES = ("raw_30s.tsv", "raw.meta.tsv")
METADATA_MODULE = (
    Path(__file__).parents[1] / "configs" / "dataset_configs" / "custom_metadata" / "custom_md_fma.py"
)


@dataclass(frozen=True)
class DemoSettings:
    """How much to do. ``clips`` prompts are taken from the catalogue, each by another artist."""

    catalogue: CatalogueSettings = field(default_factory=CatalogueSettings)
    steps: int = 160
    batch_size: int = 4
    clips: int = 6
    sampler_steps: int = 40
    cfg_scale: float = 4.0
    seed: int = 42


@dataclass
class DemoResult:
    """What the stages found, for the table and the page. Paths are those of the files they left."""

    folder: Path
    settings: DemoSettings
    catalogue: Path
    own_dataset: bool
    seconds: dict[str, float] = field(default_factory=dict)
    dedup: dict[str, Any] = field(default_factory=dict)
    planted: list[dict[str, str]] = field(default_factory=list)
    run_folder: Path = Path()
    checkpoint: Path = Path()
    asked: list[dict[str, Any]] = field(default_factory=list)
    clips: list[Path] = field(default_factory=list)
    ranking: list[dict[str, str]] = field(default_factory=list)
    artists: list[dict[str, str]] = field(default_factory=list)
    control: list[dict[str, str]] = field(default_factory=list)
    control_track: str = ""
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def audio(self) -> Path:
        """The catalogue's recordings."""
        inner = self.catalogue / "audio"
        return inner if inner.is_dir() else self.catalogue


def run_demo(
    out_dir: str | Path = "demo-run",
    dataset: str | Path | None = None,
    settings: DemoSettings | None = None,
    device: str | None = "cpu",
) -> DemoResult:
    """Run every stage into ``out_dir`` and write ``index.html`` there.

    Args:
        dataset: a folder of one's own in MTG-Jamendo layout (``audio/``, ``raw_30s.tsv``, ``raw.meta.tsv``);
            None composes and plays the built-in catalogue.
        device: where models run.

    Raises:
        DataError: ``dataset`` is not such a folder, or ``out_dir`` holds the demo of another one.
    """
    settings = settings or DemoSettings()
    folder = Path(out_dir)
    catalogue = folder / "catalogue" if dataset is None else _checked(Path(dataset))
    _claim(folder, catalogue, settings)
    result = DemoResult(folder, settings, catalogue, own_dataset=dataset is not None)
    stages: dict[str, Callable[[DemoResult, str | None], None]] = {
        "catalogue": _catalogue,
        "dedup": _dedup,
        "train": _train,
        "generate": _generate,
        "attribute": _attribute,
        "evaluate": _evaluate,
    }
    for number, (name, stage) in enumerate(stages.items(), start=1):
        say(f"\n[{number}/{len(stages) + 1}] {name}")
        started = time.monotonic()
        stage(result, device)
        result.seconds[name] = time.monotonic() - started
    from stable_audio_tools.demo.page import write_page

    say(f"\n[{len(stages) + 1}/{len(stages) + 1}] page")
    write_page(result)
    return result


def _checked(dataset: Path) -> Path:
    if not dataset.is_dir():
        raise DataError(f"{dataset}: no such folder; --dataset takes a folder in MTG-Jamendo layout")
    missing = [name for name in TABLES if not (dataset / name).is_file()]
    if missing:
        raise DataError(
            f"{dataset}: has no {' and no '.join(missing)}; --dataset takes a folder in MTG-Jamendo layout:"
            f" audio/NN/<id>.mp3 with {' and '.join(TABLES)} beside audio"
        )
    return dataset.resolve()


def _claim(folder: Path, catalogue: Path, settings: DemoSettings) -> None:
    """Say what this folder is a demo of, and refuse to mix two."""
    claim = {"catalogue": str(catalogue), "settings": hash_json(asdict(settings))}
    marker = folder / "demo.json"
    if not marker.exists():
        write_json(marker, claim)
    elif read_json(marker) != claim:
        raise DataError(
            f"{folder}: holds a demo of another catalogue or other settings; choose another --out-dir"
        )


def _catalogue(result: DemoResult, device: str | None) -> None:
    if not result.own_dataset:
        write_catalogue(result.catalogue, result.settings.catalogue)
        result.planted = read_json(result.catalogue / "planted.json")
    write_json(result.folder / "dataset.json", dataset_config(result))


def dataset_config(result: DemoResult) -> dict[str, Any]:
    """The training set: the catalogue without what dedup excludes."""
    return {
        "dataset_type": "audio_dir",
        "datasets": [
            {
                "id": "catalogue",
                "path": str(result.audio.resolve()),
                "custom_metadata_module": str(METADATA_MODULE),
            }
        ],
        "exclude_paths_file": str((result.folder / "dedup" / "exclude_paths.txt").resolve()),
        "random_crop": True,
        "on_error": "skip" if result.own_dataset else "raise",
    }


def _dedup(result: DemoResult, device: str | None) -> None:
    from stable_audio_tools.dedup.run import run_dedup

    config = parse_dataset_config(dataset_config(result))
    output = result.folder / "dedup"
    run_dedup(
        TrackIndex.from_config(config, apply_excludes=False),
        output,
        model_path=asset("dac"),
        device=device,
        similarity_threshold=0.75,  # 13 s hold few codes, so histograms of copies differ; alignment decides
        max_audio_seconds=60.0,
        num_workers=2,
    )
    result.dedup = read_json(output / "summary.json")


def _train(result: DemoResult, device: str | None) -> None:
    """Fine-tune the tiny base model, then unwrap the averaged weights; continued if it was stopped."""
    from stable_audio_tools.models.unwrap import unwrap_checkpoint
    from stable_audio_tools.training.checkpoints import newest_checkpoint
    from stable_audio_tools.training.run import train
    from stable_audio_tools.training.settings import TrainSettings

    settings, start = result.settings, result.folder / "start"
    model_config, base, vae = write_starting_point(start)
    runs = result.folder / "runs"
    done = newest_checkpoint(runs / "demo")
    if done is None or done.stem != f"step={settings.steps:08d}":
        train(
            TrainSettings(
                model_config=str(model_config),
                dataset_config=str(result.folder / "dataset.json"),
                pretrained_ckpt_path=str(base),
                pretransform_ckpt_path=str(vae),
                recover=done is not None,
                name="demo",
                save_dir=str(runs),
                seed=settings.seed,
                max_steps=settings.steps,
                log_every=10,
                checkpoint_every=40,
                save_top_k=1,
                batch_size=settings.batch_size,
                num_workers=0,
                precision="32-true" if device == "cpu" else "16-mixed",
                device=device or "auto",
            )
        )
        done = newest_checkpoint(runs / "demo")
    assert done is not None
    result.run_folder = done.parents[1]
    result.checkpoint = unwrap_checkpoint(done, str(model_config), result.folder / "demo_model")


def _generate(result: DemoResult, device: str | None) -> None:
    """Clips for prompts of the catalogue, each by another artist, so that there is somebody to find."""
    from stable_audio_tools.inference.clips import ClipRequest, generate_clips
    from stable_audio_tools.models.checkpoints import load_checkpoint, model_sha256
    from stable_audio_tools.models.factory import create_model_from_config

    config = read_json(result.folder / "start" / "model_config.json")
    model = create_model_from_config(config)
    load_checkpoint(model, result.checkpoint)
    result.asked = _prompts(result)
    window = config["sample_size"] / config["sample_rate"]
    result.clips = generate_clips(
        model,
        [ClipRequest(asked["prompt"], seconds_total=window) for asked in result.asked],
        result.folder / "generated",
        batch_size=result.settings.clips,
        steps=result.settings.sampler_steps,
        cfg_scale=result.settings.cfg_scale,
        sampler_options={"sigma_min": 0.03, "sigma_max": 80.0},
        seed=result.settings.seed,
        device=device or "auto",
        checkpoint=result.checkpoint.name,
        model_sha256=model_sha256(result.checkpoint),
    )


def _training_set(result: DemoResult) -> list[tuple[str, dict[str, Any]]]:
    """Path and metadata of every training track, in the order of the index."""
    index = TrackIndex.from_config(parse_dataset_config(dataset_config(result)))
    tables = JamendoFolder()
    return [(str(track.path), tables.metadata(track.path)) for track in index]


def _prompts(result: DemoResult) -> list[dict[str, Any]]:
    """One track of each of several artists, chosen by the seed; its prompt is what we ask the model for."""
    by_artist: dict[str, list[dict[str, Any]]] = {}
    for _, metadata in _training_set(result):
        by_artist.setdefault(str(metadata["artist"]), []).append(metadata)
    names = sorted(by_artist, key=lambda name: derive_seed("demo artist", result.settings.seed, name))
    chosen = []
    for name in sorted(names[: result.settings.clips]):
        tracks = by_artist[name]
        track = tracks[derive_seed("demo prompt", result.settings.seed, name) % len(tracks)]
        chosen.append({"prompt": track["prompt"], "artist": name})
    return chosen


def _attribute(result: DemoResult, device: str | None) -> None:
    """D-TRAK on the clips, and on a control whose answer is known: a copy of one training track."""
    from stable_audio_tools.attribution.run import ModelFiles, extract, run_attribution, score_stores

    files = ModelFiles(result.folder / "start" / "model_config.json", result.checkpoint)
    output = result.folder / "attribution"
    common: dict[str, Any] = {"batch_size": 8, "num_workers": 0, "device": device}
    tables = run_attribution(
        files, result.folder / "dataset.json", result.folder / "generated", output, **common
    )
    result.ranking, result.artists = _rows(tables.ranking), _rows(tables.artists)
    control = _write_control(result)
    extract(files, output / "control_features", queries=control, **common)
    tables = score_stores(output / "train_features", output / "control_features", output / "control")
    result.control = _rows(tables.ranking)


def _write_control(result: DemoResult) -> Path:
    """A folder with a copy of one training track under another name, and its prompt in ``prompts.csv``."""
    tracks = _training_set(result)
    source, metadata = tracks[derive_seed("demo control", result.settings.seed) % len(tracks)]
    result.control_track = source
    folder = result.folder / "control"
    copy = folder / f"control{Path(source).suffix}"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source, copy)
    prompt = str(metadata["prompt"]).replace('"', '""')
    write_text(folder / "prompts.csv", f'file,prompt\n{copy.name},"{prompt}"\n')
    return folder


def _evaluate(result: DemoResult, device: str | None) -> None:
    from stable_audio_tools.evaluation.run import evaluate_folder
    from stable_audio_tools.evaluation.song_describer import precompute

    reference = result.audio
    if not result.own_dataset:
        held_out, reference = (
            result.catalogue / "song_describer",
            result.folder / "evaluation" / "reference.npz",
        )
        if not reference.exists():
            csv_path = held_out / "song_describer.csv"
            precompute(csv_path, held_out / "audio", reference, clap=asset("clap"), device=device)
    result.scores = evaluate_folder(
        result.folder / "generated",
        reference,
        clap=asset("clap"),
        device=device,
        output_path=result.folder / "evaluation" / "scores.json",
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def summary(result: DemoResult) -> list[tuple[str, str, float]]:
    """Stage, what came out, and its seconds: the short table at the end."""
    dedup, scores = result.dedup, result.scores
    found = f"{len(dedup['groups'])} groups, {len(dedup['excluded'])} tracks left out"
    if result.planted:
        found += f"; {planted_found(result)} of {len(result.planted)} planted copies found"
    first = [row for row in result.ranking if row["rank"] == "1"]
    right = sum(row["artist"] == asked["artist"] for row, asked in zip(first, result.asked, strict=True))
    chance = expected_by_chance(result)
    control = result.control[0]["path"] == result.control_track
    lines = {
        "catalogue": f"{dedup['tracks']} tracks",
        "dedup": found,
        "train": f"{result.settings.steps} steps, loss {_last_loss(result)}",
        "generate": f"{len(result.clips)} clips",
        "attribute": f"first track is by the prompt's artist in {right} of {len(first)} clips"
        f" (chance {chance:.1f}); control {'found itself' if control else 'did not find itself'}",
        "evaluate": f"CLAP-FAD {_figure(scores['fad'])}, alignment {_figure(scores['alignment'])}"
        f" (other prompts {_figure(scores['alignment_mismatched'])})",
    }
    return [(name, lines[name], seconds) for name, seconds in result.seconds.items()]


def planted_found(result: DemoResult) -> int:
    """How many planted copies dedup put into one group with their originals."""
    groups = [set(group) for group in result.dedup["groups"]]
    pairs = [{f"catalogue/{row['original']}", f"catalogue/{row['duplicate']}"} for row in result.planted]
    return sum(any(pair <= group for group in groups) for pair in pairs)


def expected_by_chance(result: DemoResult) -> float:
    """How often a track drawn at random is by the artist of the clip's prompt, summed over clips."""
    by_artist = [str(metadata["artist"]) for _, metadata in _training_set(result)]
    return sum(by_artist.count(asked["artist"]) / len(by_artist) for asked in result.asked)


def loss_curve(result: DemoResult) -> dict[str, list[float]]:
    """Columns ``step`` and ``loss`` of the run's metrics."""
    rows = [row for row in _rows(result.run_folder / "metrics.csv") if row.get("train/loss")]
    return {"step": [float(row["step"]) for row in rows], "loss": [float(row["train/loss"]) for row in rows]}


def _last_loss(result: DemoResult) -> str:
    curve = loss_curve(result)["loss"]
    return f"{curve[-1]:.3f}" if curve else "not logged"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
