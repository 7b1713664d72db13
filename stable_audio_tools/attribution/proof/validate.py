"""The proof on a user's own model and training set, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.attribution.features.extract import source_dataset
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.proof.experiment import Experiment, ProofData, ProofSettings
from stable_audio_tools.attribution.proof.kernels import FeaturePlan, joined, on_device, taken
from stable_audio_tools.attribution.proof.methods import Method
from stable_audio_tools.attribution.proof.report import proof_report, report_text, write_report
from stable_audio_tools.attribution.proof.retrain import RetrainSettings
from stable_audio_tools.attribution.queries import TrackSource, train_source
from stable_audio_tools.attribution.scoring.scores import DEFAULT_LAMBDA
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.data.dataset import make_loader
from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.errors import DataError
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.progress import say, track
from stable_audio_tools.runtime.seeds import generator

BYTES_PER_PARAMETER = 16
"""Weights, gradients and two moments in float32."""
STACK_BYTES = 8 * 2**30
MOST_AT_ONCE = 32
WHOLE_GRADIENT_BYTES = 2 * 2**30
"""Whole gradients are taken as the reference where all rows fit in so much."""
LEAST_TRACKS = 16


@dataclass(frozen=True)
class ValidateSettings:
    """What is validated, and how much is retrained for it.

    Attributes:
        features: the gradients of the attribution to validate; what it says is compared with other ways.
        lambda_scale: its regularisation.
        held_out: tracks kept from all models, to ask about.
        continue_training: all models start from the checkpoint's network, as in fine-tuning, and not from
            weights of their own.
        at_once: models in a stack; None takes as many as fit in 8 GiB, at most 32.
    """

    features: FeatureSettings = field(default_factory=FeatureSettings)
    lambda_scale: float = DEFAULT_LAMBDA
    proof: ProofSettings = field(default_factory=ProofSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    held_out: int = 32
    continue_training: bool = False
    at_once: int | None = None


@dataclass(frozen=True)
class ValidationFiles:
    """What a validation leaves: the report for machines and for people, and its tables in plain text."""

    json: Path
    page: Path
    text: str


def validate_attribution(
    files: ModelFiles,
    train_dataset_config: str | Path,
    output_dir: str | Path,
    settings: ValidateSettings | None = None,
    *,
    num_workers: int = 4,
    device: str | None = None,
) -> ValidationFiles:
    """Retrain the network of ``files`` on halves of its training set, and say what attribution is worth.

    The conditioners and the autoencoder stay those of the checkpoint. A run that was killed goes on from the
    last stack of models that was done; other settings or tracks need another ``output_dir``.

    Raises:
        DataError: there are too few tracks, or one cannot be read.
        StoreError: the folder holds another run.
        UsageError: the model is of another type.
    """
    settings = settings or ValidateSettings()
    source = train_source(train_dataset_config).first(settings.features.max_examples)
    model = files.load_conditional(device)
    place = next(model.model.parameters()).device
    settings = replace(settings, features=settings.features.on(place))
    network = sum(p.numel() for p in model.model.parameters())
    batch, infos = read_tracks(model, source, settings.features, num_workers)
    data = _split(batch, [_artist(info) for info in infos], settings.held_out)
    proof = replace(settings.proof, at_once=settings.at_once or models_that_fit(network))
    start = {k: v.cpu() for k, v in model.model.state_dict().items()} if settings.continue_training else None
    plans, methods, pairs = ways_of_scoring(settings, network * (len(batch) + proof.generated))
    experiment = Experiment(
        Path(output_dir), model, data, settings.retrain, proof, plans, methods[:1], place, start=start
    )
    _announce(experiment, network)
    for stage in (experiment.full, experiment.train, experiment.features, experiment.removal):
        stage()
    report = proof_report(experiment, methods, default=methods[0].name, baseline=methods[0].name, pairs=pairs)
    about = {
        "model": files.name,
        "training set": str(train_dataset_config),
        "parameters of the network": network,
        "tracks": len(data.tracks),
        "held-out tracks": len(data.held_out),
        "device": str(place),
        "start": "the checkpoint" if settings.continue_training else "weights of their own",
        **{f"gradients, {key}": value for key, value in settings.features.to_dict().items()},
        **{f"training, {key}": value for key, value in asdict(settings.retrain).items()},
        **asdict(proof),
    }
    made = write_report(experiment.folder, report, about, "What the attribution of this model is worth")
    return ValidationFiles(*made, report_text(report))


def ways_of_scoring(
    settings: ValidateSettings, gradient_values: int
) -> tuple[list[FeaturePlan], list[Method], list[tuple[str, str]]]:
    """The attribution to validate, first, and what it is compared with; pairs to look at."""
    own = settings.features
    scale = settings.lambda_scale
    square = own.f != "loss"
    other = replace(own, f="mean-squared-l2-norm" if own.f == "loss" else "loss")
    plans = [FeaturePlan("own", own, (own.e_seed,)), FeaturePlan("other", other, (own.e_seed,))]
    theirs = f"gradients of {other.f}"
    methods = [
        Method("as set", ("own",), square=square, lambda_scale=scale),
        Method("as set, without the square" if square else "as set, squared", ("own",), square=not square,
               lambda_scale=scale),
        Method("as set, cosine", ("own",), "gradcos"),
        Method(theirs, ("other",), square=not square, lambda_scale=scale),
        Method(
            f"as set and {theirs}",
            parts=(
                Method("own", ("own",), square=square, lambda_scale=scale),
                Method("other", ("other",), square=not square, lambda_scale=scale),
            ),
        ),
    ]  # fmt: skip
    pairs = [("as set", name) for name in ("latent-cosine", "aligned-cosine", "covariance", "random")]
    exact = own.noise == "shared" and own.cfg_dropout_prob == 0
    if exact and 4 * gradient_values <= WHOLE_GRADIENT_BYTES:
        plans.append(FeaturePlan("whole", own, (own.e_seed,), whole=True))
        methods.append(Method("as set, whole gradients", ("whole",), square=square, lambda_scale=scale))
        pairs.insert(0, ("as set", "as set, whole gradients"))
    return plans, methods, pairs


def read_tracks(
    model: Any, source: TrackSource, settings: FeatureSettings, num_workers: int = 0, batch_size: int = 8
) -> tuple[LatentBatch, list[dict[str, Any]]]:
    """All tracks as latents with their conditioning, on the CPU, and what is known of each.

    A track that training would have had to replace is left out.

    Raises:
        DataError: nothing can be read.
    """
    task = DiffusionTask(model, settings, stored=source.stored)
    cpu = torch.device("cpu")
    keys = [SampleKey(row, 0) for row in range(len(source.index))]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    loader = make_loader(source_dataset(model, source, settings), batches, num_workers)
    parts: list[LatentBatch] = []
    known: list[dict[str, Any]] = []
    for audio, infos in track(loader, "tracks to latents", total=len(batches)):
        kept = [row for row, info in enumerate(infos) if "replaced" not in info]
        if kept:
            parts.append(on_device(task.prepare(audio[kept], [infos[row] for row in kept]), cpu))
            known += [dict(infos[row]) for row in kept]
    if not parts:
        raise DataError("no track of the training set can be read")
    return joined(parts), known


def _artist(info: dict[str, Any]) -> str | None:
    for key in ("artist_id", "artist"):
        if info.get(key):
            return str(info[key])
    return None


def _split(batch: LatentBatch, groups: Sequence[str | None], held_out: int) -> ProofData:
    """Hold out random tracks, at most a fifth of all, and train on the others."""
    count = len(batch)
    held = min(held_out, count // 5)
    if count - held < LEAST_TRACKS:
        raise DataError(
            f"validation needs at least {LEAST_TRACKS} tracks to train on, found {count} with {held} held out"
        )
    order = torch.randperm(count, generator=generator("proof-held-out"))
    asked, kept = sorted(order[:held].tolist()), sorted(order[held:].tolist())
    return ProofData(
        taken(batch, kept), [groups[row] for row in kept], taken(batch, asked), [groups[row] for row in asked]
    )


def models_that_fit(parameters: int) -> int:
    """How many models of so many parameters go in a stack, at most 32."""
    return max(1, min(MOST_AT_ONCE, STACK_BYTES // (BYTES_PER_PARAMETER * parameters)))


def _announce(experiment: Experiment, parameters: int) -> None:
    proof, data = experiment.settings, experiment.data
    halves = proof.subsets * proof.seeds
    asked = min(proof.removal_queries, proof.generated) + min(proof.removal_queries, len(data.held_out))
    left_out = sum(len(stack) for stack in experiment.left_out_jobs().values())
    removed = asked * (2 + len(experiment.removal_baselines)) * proof.seeds
    say(
        f"{proof.full + halves + removed + left_out} models of {parameters / 1e6:.2f} M parameters, each"
        f" {experiment.retrain.steps} steps of {experiment.retrain.batch_size}: {proof.full} of all"
        f" {len(data.tracks)} tracks, {halves} of halves, {removed} without top tracks, {left_out} without an"
        f" artist; {proof.at_once} at once in {BYTES_PER_PARAMETER * parameters * proof.at_once / 2**30:.2f}"
        " GiB and what their activations take"
    )
