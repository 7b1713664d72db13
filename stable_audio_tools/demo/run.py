"""The whole chain on a small catalogue: dedup, fine-tuning, generation, attribution, evaluation, a page.

Every stage is the code that a real run uses; only the models are tiny. What a stage has finished is kept, so
a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.demo.assets import asset, write_starting_point
from stable_audio_tools.demo.catalogue import write_catalogue
from stable_audio_tools.demo.page import write_page
from stable_audio_tools.demo.result import CONTROL, DemoResult, DemoSettings, read_rows
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import hash_json, write_json, write_text
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.runtime.seeds import derive_seed
from stable_audio_tools.schema.reader import parse_dataset_config, read_json

TABLES = ("raw_30s.tsv", "raw.meta.tsv")


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
    write_json(result.folder / "dataset.json", result.dataset_config())


def _dedup(result: DemoResult, device: str | None) -> None:
    from stable_audio_tools.dedup.run import run_dedup
    from stable_audio_tools.dedup.settings import DedupSettings

    config = parse_dataset_config(result.dataset_config())
    output = result.folder / "dedup"
    run_dedup(
        TrackIndex.from_config(config, apply_excludes=False),
        output,
        DedupSettings(
            model_path=str(asset("dac")),
            device=device,
            similarity_threshold=0.75,  # 13 s hold few codes, so histograms of copies differ
            max_audio_seconds=60.0,
            num_workers=2,
        ),
    )
    result.dedup = read_json(output / "summary.json")


def _train(result: DemoResult, device: str | None) -> None:
    """Fine-tune the tiny base model, then unwrap the averaged weights; continued if it was stopped."""
    from stable_audio_tools.models.unwrap import unwrap_checkpoint
    from stable_audio_tools.training.checkpoints import newest_first
    from stable_audio_tools.training.run import train
    from stable_audio_tools.training.settings import TrainSettings

    settings, start = result.settings, result.folder / "start"
    model_config, base, vae = write_starting_point(start)
    runs = result.folder / "runs"
    done = next(iter(newest_first(runs / "demo")), None)
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
        done = next(iter(newest_first(runs / "demo")), None)
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


def _prompts(result: DemoResult) -> list[dict[str, Any]]:
    """One track of each of several artists, chosen by the seed; its prompt is what we ask the model for."""
    by_artist: dict[str, list[dict[str, Any]]] = {}
    for _, metadata in result.training_set:
        by_artist.setdefault(str(metadata["artist"]), []).append(metadata)
    names = sorted(by_artist, key=lambda name: derive_seed("demo artist", result.settings.seed, name))
    chosen = []
    for name in sorted(names[: result.settings.clips]):
        tracks = by_artist[name]
        track = tracks[derive_seed("demo prompt", result.settings.seed, name) % len(tracks)]
        chosen.append({"prompt": track["prompt"], "artist": name})
    return chosen


def _attribute(result: DemoResult, device: str | None) -> None:
    """D-TRAK on the clips, and on controls whose answer is known: copies of training tracks."""
    from stable_audio_tools.attribution.evidence.gather import ReportSettings
    from stable_audio_tools.attribution.run import ModelFiles, extract, run_attribution, score_stores

    files = ModelFiles(result.folder / "start" / "model_config.json", result.checkpoint)
    output = result.folder / "attribution"
    common: dict[str, Any] = {"batch_size": 8, "num_workers": 0, "device": device}
    tables = run_attribution(
        files,
        result.folder / "dataset.json",
        result.folder / "generated",
        output,
        report=ReportSettings(
            report_top=3,
            segments=4,
            segment_tracks=1,
            dedup=str(result.folder / "dedup"),
            membership_reference=_outsiders(result),
        ),
        **common,
    )
    result.ranking, result.artists = read_rows(tables.ranking), read_rows(tables.artists)
    result.exported = read_rows(output / "attribution.csv")
    control = _write_control(result)
    extract(files, output / "control_features", queries=control, **common)
    tables = score_stores(output / "train_features", output / "control_features", output / "control")
    rows = read_rows(tables.ranking)
    result.control = [row for row in rows if Path(row["query"]).stem == CONTROL]
    result.copies = [row for row in rows if Path(row["query"]).stem != CONTROL and row["rank"] == "1"]


def _write_control(result: DemoResult) -> Path:
    """A folder with a copy of one training track under another name, the planted copies that dedup left out
    of training, and their prompts in ``prompts.csv``."""
    tracks = result.training_set
    source, metadata = tracks[derive_seed("demo control", result.settings.seed) % len(tracks)]
    result.control_track = source
    folder = result.folder / "control"
    folder.mkdir(exist_ok=True)
    copies = [(Path(source), CONTROL, metadata)]
    trained = dict(tracks)
    for row in result.planted:
        original = trained.get(str(result.audio.resolve() / row["original"]))
        copy = result.audio.resolve() / row["duplicate"]
        if original is not None and str(copy) not in trained:
            copies.append((copy, f"left-out-{copy.stem}", original))
    lines = ["file,prompt"]
    for path, name, known in copies:
        target = folder / f"{name}{path.suffix}"
        shutil.copyfile(path, target)
        prompt = str(known["prompt"]).replace('"', '""')
        lines.append(f'{target.name},"{prompt}"')
    write_text(folder / "prompts.csv", "\n".join(lines) + "\n")
    return folder


def _outsiders(result: DemoResult) -> str | None:
    """A dataset config of the evaluation set, which was not trained on; a dataset of one's own has none."""
    if result.own_dataset:
        return None
    entry = {
        "id": "outside",
        "path": str((result.catalogue / "song_describer" / "audio").resolve()),
        "metadata_sources": ["song_describer"],
    }
    path = result.folder / "outside.json"
    write_json(path, {"dataset_type": "audio_dir", "datasets": [entry]})
    return str(path)


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
