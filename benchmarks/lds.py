"""The linear datamodeling score of the shipped attribution, and what is asked of it besides.

About 1,000 short segments by 128 made-up artists, a diffusion transformer of 5.7 M parameters, models trained
again on halves that hold exactly half of each artist's tracks, two seeds each. Queries are clips of the model
trained on everything, pieces by the same artists that no model saw, and altered copies of training pieces.
Whatever is tuned is tuned on one half of the subsets and queries and reported on the other.

Stages, each continued where it was cut off::

    make       compose, play and encode the music (CPU, some minutes): world.npz, 5 MB
    full       train the models of everything, make clips
    train      models of halves
    features   inner products of gradients, by every plan
    removal    models without a query's top tracks, and without an artist
    report     tables, report.json, report.html
    pack       results in a few archives, for another machine

``all`` does full to report, on ``--gpus`` GPUs at once (a process each), and begins nothing that would not
end within ``--minutes``::

    python benchmarks/lds.py make --work outputs/lds
    python benchmarks/lds.py all --work outputs/lds --gpus 4 --minutes 8 --out results
    python benchmarks/lds.py make --work /tmp/lds --smoke
    python benchmarks/lds.py all --work /tmp/lds --smoke
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lds_world import World, WorldSize, load_world, make_world, model_config, save_world

from stable_audio_tools.attribution.gradients.task import DiffusionTask
from stable_audio_tools.attribution.proof.experiment import Experiment, ProofData, ProofSettings
from stable_audio_tools.attribution.proof.kernels import FeaturePlan, taken
from stable_audio_tools.attribution.proof.methods import Method
from stable_audio_tools.attribution.proof.report import proof_report, report_text, write_report
from stable_audio_tools.attribution.proof.retrain import RetrainSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import parse_model_config

MEASUREMENTS = {"msq": "mean-squared-l2-norm", "loss": "loss"}
DEFAULT, BASELINE = "joint", "dtrak squared, K10 whole"
SEEDS = (0, 1, 2, 3)
VARIANTS = ("", " K10", " rank 16", " K10 rank 16", " K10 whole", " K50", " own noise", " bfloat16")
"""What is changed of the shipped settings: K = 5, rank 32 for a model of this size, shared noise, float32."""


def plans(quick: bool) -> list[FeaturePlan]:
    """Gradients to take; the ones that decide about removal come first. In a quick run all K are smaller."""
    K = 2 if quick else 5
    made = []
    for short, f in MEASUREMENTS.items():
        base = FeatureSettings(f=f, K=K, precision="float32")
        more = replace(base, K=2 * K)
        made += [
            FeaturePlan(short, base),
            FeaturePlan(f"{short} K10 whole", more, whole=True),
            FeaturePlan(f"{short} K10", more),
            FeaturePlan(f"{short} rank 16", replace(base, proj_rank=16)),
            FeaturePlan(f"{short} K10 rank 16", replace(more, proj_rank=16)),
        ]
    for short, f in MEASUREMENTS.items():
        base = FeatureSettings(f=f, K=K, precision="float32")
        made += [
            FeaturePlan(f"{short} own noise", replace(base, noise="per-track")),
            FeaturePlan(f"{short} K50", replace(base, K=10 * K)),
            FeaturePlan(f"{short} bfloat16", replace(base, precision="bfloat16")),
            *(FeaturePlan(f"{short} noise {seed}", base, (seed,)) for seed in SEEDS[1:]),
            *(FeaturePlan(f"{short} model {i}", base, checkpoint=i) for i in (1, 2, 3)),
        ]
    made.append(FeaturePlan("l2", FeatureSettings(f="l2-norm", K=K, precision="float32")))
    return made


def methods() -> list[Method]:
    """Everything that is compared."""
    made = []
    for variant in VARIANTS:
        name, (msq, loss) = variant and f",{variant}", (f"{short}{variant}" for short in MEASUREMENTS)
        squares = Method("msq", (msq,), square=True), Method("loss", (loss,), square=True)
        made += [
            Method(f"joint{name}", (msq, loss), square=True, beside=True),
            Method(f"dtrak squared{name}", (msq,), square=True),
            Method(f"dtrak{name}", (msq,)),
            Method(f"trak squared{name}", (loss,), square=True),
            Method(f"trak{name}", (loss,)),
            Method(f"dtrak squared + trak squared{name}", parts=squares),
        ]
    for what, changed in (("noises", "noise {}"), ("models", "model {}")):
        suffixes = ["", *(f" {changed.format(i)}" for i in SEEDS[1:])]
        each = [Method("one", (f"msq{s}", f"loss{s}"), beside=True) for s in suffixes]
        made.append(Method(f"joint, mean of 4 {what}", parts=tuple(each), square=True))
    return [
        *made,
        Method("l2-norm dtrak squared", ("l2",), square=True),
        Method("joint gradcos", ("msq", "loss"), "gradcos", beside=True),
        Method("loss gradcos", ("loss",), "gradcos"),
        Method("loss graddot", ("loss",), "graddot"),
    ]


PAIRS = (
    ("joint", "dtrak squared"), ("joint", "trak"), ("joint", "joint, K10 whole"), ("joint", "joint, K10"),
    ("joint, K10", "joint, K10 whole"), ("joint, K10 rank 16", "joint, K10 whole"),
    ("joint, rank 16", "joint, K10 rank 16"), ("joint, rank 16", "dtrak squared, rank 16"),
    ("joint, K10", "dtrak squared, K10"), ("joint, K10", "dtrak squared, K10 whole (tuned)"),
    ("joint, rank 16", "dtrak squared, K10 whole (tuned)"), ("joint, K10", "trak, K10"),
    ("joint, K10", "dtrak squared + trak squared, K10"), ("joint", "joint, own noise"),
    ("joint, K50", "joint"), ("joint, mean of 4 noises", "joint"), ("joint, mean of 4 models", "joint"),
    ("dtrak squared, K10", "dtrak squared, K10 whole"), ("trak, K10", "trak, K10 whole"),
)  # fmt: skip
"""Both measurements and one, hooked and dense, few timesteps and many, shared and own noise."""

REMOVED_BY = (Method(DEFAULT, ("msq", "loss"), square=True, beside=True), Method("trak", ("loss",)))


def experiment(options: argparse.Namespace, world: World) -> Experiment:
    """The world, the model and the sizes as the package takes them."""
    frames = world.latents.shape[-1]
    width, depth = (64, 2) if options.smoke else (options.width, options.depth)
    config = parse_model_config(model_config(frames, width, depth))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = create_model_from_config(config)
    infos = [{"sample_id": row["id"], "padding_mask": torch.ones(frames), **row} for row in world.rows]
    batch = DiffusionTask(model, FeatureSettings()).prepare(world.latents, infos)
    artists = [row["artist"] for row in world.rows]
    train, held, copies = world.of("train"), world.of("held-out")[: options.held_out], world.of("copy")
    names = {world.rows[row]["id"]: position for position, row in enumerate(train)}
    data = ProofData(
        taken(batch, train),
        [artists[row] for row in train],
        taken(batch, held),
        [artists[row] for row in held],
        taken(batch, copies),
        [names[world.rows[row]["copy_of"]] for row in copies],
        [world.rows[row]["kind"] for row in copies],
    )
    retrain = RetrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        precision=options.precision,
        compile=options.compile and not options.smoke,
    )
    settings = ProofSettings(
        subsets=options.subsets,
        generated=options.generated,
        full=2 if options.smoke else 4,
        at_once=options.at_once,
        removal_queries=options.removal_queries,
        groups_left_out=options.groups_left_out,
        steps=5 if options.smoke else 50,
        feature_batch=16 if options.smoke else 256,
    )
    device = resolve_device(options.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = (
            True  # measurements and clips; gradients turn it off themselves
        )
    return Experiment(
        options.work,
        model,
        data,
        retrain,
        settings,
        [plan for plan in plans(options.smoke) if options.plans is None or plan.name in options.plans],
        REMOVED_BY,
        device,
        removal_baselines=("aligned-cosine",),
        shard=options.shard,
        deadline=None if options.minutes is None else options.began + 60 * options.minutes,
    )


def run_stages(options: argparse.Namespace, stages: list[str]) -> None:
    """The stages of one process."""
    work = experiment(options, load_world(options.work / "world.npz"))
    for stage in stages:
        began = time.monotonic()
        if stage == "full":
            if options.shard[0] == 0:
                work.full()
        elif stage == "report":
            report = proof_report(
                work, methods(), default=DEFAULT, baseline=BASELINE, pairs=PAIRS, draws=options.draws
            )
            about = {**asdict(work.retrain), **asdict(work.settings), "device": _device_name(work.device)}
            about["torch"] = torch.__version__
            about["command"] = " ".join(sys.argv)
            title = "Linear datamodeling score of the shipped attribution"
            for folder in filter(None, (options.work, options.out)):
                write_report(folder, report, about, title)
            print(report_text(report), flush=True)
        else:
            getattr(work, stage)()
        say(f"shard {options.shard[0]} of {options.shard[1]}: {stage} took {time.monotonic() - began:.0f} s")


def run_all(options: argparse.Namespace) -> int:
    """Everything but the report, a process for each GPU."""
    if options.gpus == 1:
        run_stages(options, ["full", "train", "features", "removal"])
        return 0
    command = [sys.executable, __file__, "shard", *sys.argv[2:]]
    threads = str(max(1, len(os.sched_getaffinity(0)) // options.gpus // 2))
    children = [
        subprocess.Popen(
            [*command, "--shard", f"{number}/{options.gpus}"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": str(number), "OMP_NUM_THREADS": threads},
        )
        for number in range(options.gpus)
    ]
    return max(abs(child.wait()) for child in children)


def pack(work: Path, out: Path, limit: int = 15_000_000, total: int = 56_000_000) -> None:
    """What is worth carrying away, in files of at most ``limit`` bytes: the report can be made of it again.

    ``tar xf`` them into one folder beside ``world.npz``. Gradients are left out from the last plan on, where
    they do not fit in ``total``.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = [work / "generated.npz", *sorted((work / "measured").iterdir())]
    names = [plan.name.replace("/", "_") for plan in plans(False)]
    wanted += [work / "kernels" / f"{name}.npz" for name in names]
    parts: list[list[Path]] = [[]]
    size = spent = 0
    for path in wanted:
        if not path.exists() or spent + path.stat().st_size > total:
            continue
        spent += path.stat().st_size
        size += path.stat().st_size
        if size > limit:
            parts.append([])
            size = path.stat().st_size
        parts[-1].append(path)
    for number, paths in enumerate(parts):
        with tarfile.open(out / f"lds-{number}.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(work))
    say(f"{out}: {len(parts)} archives, {spent / 1e6:.0f} MB")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _shard(value: str) -> tuple[int, int]:
    number, of = value.split("/")
    return int(number), int(of)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    stages = ["make", "full", "train", "features", "removal", "report", "pack", "shard", "all"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=Path("outputs/lds"))
    parser.add_argument("--out", type=Path, default=None, help="pack what is worth keeping into this folder")
    parser.add_argument("--device", default=None)
    parser.add_argument("--gpus", type=int, default=1, help="processes of `all`, one a GPU")
    parser.add_argument("--shard", type=_shard, default=(0, 1), help="i/n: this process's part")
    parser.add_argument(
        "--minutes", type=float, default=None, help="begin nothing that would not end by then"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see on a CPU that all runs")
    parser.add_argument("--subsets", type=int, default=None, help="128; smoke 8")
    parser.add_argument("--generated", type=int, default=None, help="64; smoke 4")
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--world-seed", type=int, default=0, help="of the music that `make` composes")
    parser.add_argument("--plans", nargs="+", default=None, help="take only these gradients")
    parser.add_argument("--steps", type=int, default=None, help="of every model: 1000; smoke 20")
    parser.add_argument("--batch-size", type=int, default=None, help="64; smoke 8")
    parser.add_argument("--at-once", type=int, default=None, help="models in a stack: 32; smoke 4")
    parser.add_argument("--removal-queries", type=int, default=None, help="6 of each kind; smoke 1")
    parser.add_argument("--groups-left-out", type=int, default=None, help="16; smoke 3")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    sizes = {"subsets": (128, 8), "generated": (64, 4), "steps": (1000, 20), "batch_size": (64, 8)}
    sizes |= {"at_once": (32, 4), "removal_queries": (6, 1), "groups_left_out": (16, 3)}
    for name, (usual, smoke) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, smoke if options.smoke else usual)
    return options


def main() -> int:
    options = arguments()
    options.began = time.monotonic()
    if options.stage == "make":
        size = WorldSize(8, 4, 8, 2) if options.smoke else WorldSize()
        size = replace(size, seed=options.world_seed)
        path = options.work / "world.npz"
        if not path.exists():
            save_world(path, make_world(size), size)
        say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        return 0
    if options.stage == "pack":
        pack(options.work, options.out)
        return 0
    if options.stage == "all":
        code = run_all(options)
        if options.out is not None:
            pack(options.work, options.out)  # before the report, which can be made elsewhere
        run_stages(options, ["report"])
        return code
    stages: list[Any] = [options.stage]
    if options.stage == "shard":
        stages = ["full", "train", "features", "removal"]
    run_stages(options, stages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
