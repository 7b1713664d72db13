"""The whole proof in stages that can be cut off, continued and spread over several GPUs.

::

    <folder>/full.pt              models of everything; the first of them is asked and explained
    <folder>/generated.npz        clips it made, which ask
    <folder>/measured/*.npz       losses of retrained models on every query, a stack of models a file
    <folder>/kernels/*.npz        inner products of gradients, a plan a file

Processes share the folder: each takes its part of the models and of the plans, and waits for what another
makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.attribution.gradients.task import LatentBatch
from stable_audio_tools.attribution.proof.jobs import Results, run_jobs
from stable_audio_tools.attribution.proof.kernels import (
    FeaturePlan,
    Kernels,
    joined,
    kernels_of,
    on_device,
    taken,
)
from stable_audio_tools.attribution.proof.lds import Outcomes
from stable_audio_tools.attribution.proof.methods import Method, Scorer
from stable_audio_tools.attribution.proof.removal import Removal, group_jobs, removals
from stable_audio_tools.attribution.proof.retrain import Job, NetworkData, Retrainer, RetrainSettings, Stack
from stable_audio_tools.attribution.proof.similarity import BASELINES
from stable_audio_tools.attribution.proof.subsets import balanced_subsets
from stable_audio_tools.errors import StoreError, UsageError
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.runtime.files import atomic_path, hash_json
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.runtime.seeds import derive_seed

T = TypeVar("T")

MEASURED_TIMES = tuple((k + 0.5) / 10 for k in range(10))
"""Where losses are measured: the middles of ten parts of [0, 1]."""
GENERATED, HELD_OUT, COPY = "generated", "held-out", "copy"
PATIENCE = 420.0
"""Seconds that a process waits for what another makes."""


@dataclass(frozen=True)
class ProofSettings:
    """How much is retrained.

    Attributes:
        subsets: random halves of the training set.
        seeds: models of each half, and of each removal.
        full: models of everything.
        generated: clips to make and ask about.
        at_once: models trained in one stack.
        measure_draws: draws of noise at each of the ten timesteps of a measurement.
        removal_queries: queries of each kind whose tracks are removed; 0 for none.
        removed_share: part of all tracks that is removed.
        groups_left_out: artists who are left out whole, one at a time; 0 for none.
        steps: sampler steps of generated clips, at ``cfg_scale``.
        feature_batch: tracks whose gradients are taken at once.
    """

    subsets: int = 128
    seeds: int = 2
    full: int = 4
    generated: int = 64
    at_once: int = 32
    measure_draws: int = 2
    removal_queries: int = 8
    removed_share: float = 0.05
    groups_left_out: int = 16
    steps: int = 50
    cfg_scale: float = 3.0
    feature_batch: int = 128

    def __post_init__(self) -> None:
        for name, least in (("subsets", 4), ("seeds", 1), ("full", 1), ("at_once", 1), ("generated", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 < self.removed_share < 1:
            raise UsageError(f"removed_share must be between 0 and 1, found {self.removed_share}")


@dataclass(frozen=True)
class ProofData:
    """What is trained on and what is asked about.

    Attributes:
        tracks: the training set; ``groups`` are its artists.
        held_out: tracks that no model sees; ``held_out_groups`` their artists.
        copies: altered copies of training tracks, which no model sees either; ``originals`` are the rows they
            were made from, ``copy_kinds`` how.
    """

    tracks: LatentBatch
    groups: Sequence[str | None]
    held_out: LatentBatch
    held_out_groups: Sequence[str | None]
    copies: LatentBatch | None = None
    originals: Sequence[int] = ()
    copy_kinds: Sequence[str] = ()


@dataclass
class Experiment:
    """One model config, one training set, one folder.

    Attributes:
        model: a ``ConditionedDiffusionModelWrapper`` whose conditioners made ``data``; its network is
            replaced.
        plans: gradients to take.
        removal_methods: whose top tracks are removed.
        start: weights that all models start from, or None.
    """

    folder: Path
    model: Any
    data: ProofData
    retrain: RetrainSettings
    settings: ProofSettings
    plans: Sequence[FeaturePlan]
    removal_methods: Sequence[Method]
    device: torch.device
    removal_baselines: Sequence[str] = ("latent-cosine",)
    start: Stack | None = None
    shard: tuple[int, int] = (0, 1)
    deadline: float | None = None
    _queries: LatentBatch | None = field(default=None, repr=False)
    _retrainer: Retrainer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.results = Results(self.folder / "measured", self._stamp())

    # ------------------------------------------------------------------ stages

    def full(self) -> None:
        """Train the models of everything, and let the first of them make clips."""
        path, clips = self.folder / "full.pt", self.folder / "generated.npz"
        jobs = self.full_jobs()
        if not path.exists():
            trainer = self._trainer(compiled=False)
            weights = trainer.train(jobs, "models of everything")
            states = [trainer.state_dict(weights, i) for i in range(len(jobs))]
            with atomic_path(path) as temporary:
                torch.save([{k: v.cpu() for k, v in state.items()} for state in states], temporary)
        if not clips.exists():
            self._generate(clips)
        if self.results.missing(jobs):
            weights = self._stacked(self._full_states())
            measured = self._trainer(compiled=False).measure(
                weights, self.network_queries(), MEASURED_TIMES, self.settings.measure_draws
            )
            self.results.write(jobs, measured)

    def train(self) -> bool:
        """Train this shard's part of the models of halves; True when none is missing."""
        return self._run(self.subset_jobs(), "models of halves")

    def features(self) -> bool:
        """Take this shard's part of the gradients; True when none is missing."""
        todo = [plan for plan in self._own_plans() if not self._kernel_path(plan.name).exists()]
        if not todo:
            return True
        queries = self.queries()
        states = self._full_states()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # stacks of models leave tens of GiB behind; whole gradients need them
        tracks = on_device(self.data.tracks, self.device)
        asked = on_device(queries, self.device)
        longest = 0.0
        for plan in todo:
            began = time.monotonic()
            if self.deadline is not None and began + longest > self.deadline:
                say(f"features: {plan.name} and what follows is left for the next call")
                return False
            self._load(states[plan.checkpoint % len(states)])
            found = kernels_of(self.model, tracks, asked, plan, self.settings.feature_batch)
            found.save(self._kernel_path(plan.name))
            longest = max(longest, time.monotonic() - began)
            say(f"{plan.name}: {time.monotonic() - began:.1f} s")
        return True

    def removal(self) -> bool:
        """Train this shard's part of the models without tracks or artists; True when none is missing."""
        jobs = [job for made in self.removals() for job in self._removal_jobs(made)]
        jobs += [job for stack in self.left_out_jobs().values() for job in stack]
        return self._run(jobs, "models with something left out")

    # ------------------------------------------------------------------ what is asked

    def queries(self) -> LatentBatch:
        """All queries: generated, held out, copies. Waits for the clips where another process makes them."""
        if self._queries is None:
            parts = [self._generated(), self.data.held_out]
            parts += [] if self.data.copies is None else [self.data.copies]
            self._queries = joined([part for part in parts if len(part)])
        return self._queries

    def rows_of(self, kind: str) -> list[int]:
        """Rows of the queries of a kind."""
        made, held = self.settings.generated, len(self.data.held_out)
        copies = 0 if self.data.copies is None else len(self.data.copies)
        spans = {
            GENERATED: range(made),
            HELD_OUT: range(made, made + held),
            COPY: range(made + held, made + held + copies),
        }
        return list(spans[kind])

    def network_queries(self) -> NetworkData:
        """Those whose loss is measured: generated and held out."""
        asked = [*self.rows_of(GENERATED), *self.rows_of(HELD_OUT)]
        return NetworkData.of(self.model, taken(self.queries(), asked))

    def prompts(self) -> list[int]:
        """Whose prompts the clips are made from: rows of the held-out tracks, or where there are none, of the
        tracks."""
        count = len(self.data.held_out) or len(self.data.tracks)
        return [
            (i * max(1, count // max(1, self.settings.generated))) % count
            for i in range(self.settings.generated)
        ]

    # ------------------------------------------------------------------ jobs

    def full_jobs(self) -> list[Job]:
        """The models of everything."""
        rows = tuple(range(len(self.data.tracks)))
        return [Job("full", rows, seed) for seed in range(self.settings.full)]

    def subsets(self) -> Tensor:
        """(S, N) booleans."""
        return balanced_subsets(self.data.groups, self.settings.subsets)

    def subset_jobs(self) -> list[Job]:
        """The models of halves, all seeds of a half one after the other."""
        parts = [tuple(subset.nonzero()[:, 0].tolist()) for subset in self.subsets()]
        return [
            Job(f"half/{number}", rows, seed)
            for number, rows in enumerate(parts)
            for seed in range(self.settings.seeds)
        ]

    def removals(self) -> list[Removal]:
        """What is removed for whom; waits for the gradients that decide it."""
        if not self.settings.removal_queries:
            return []
        names = {name for method in self.removal_methods for name in method.needs()}
        scorer = Scorer(
            {name: self._wait_for(self._kernel_path(name), Kernels.load) for name in sorted(names)}
        )
        scores = {method.name: scorer.scores(method) for method in self.removal_methods}
        similar = self.baseline_scores()
        scores |= {name: similar[name] for name in self.removal_baselines}
        asked = []
        for kind in (GENERATED, HELD_OUT):
            rows = self.rows_of(kind)
            step = max(1, len(rows) // self.settings.removal_queries)
            asked += rows[::step][: self.settings.removal_queries]
        return removals(scores, asked, self.settings.removed_share)

    def left_out_jobs(self) -> dict[str, list[Job]]:
        """Models without one artist, by artist."""
        return group_jobs(self.data.groups, self.settings.groups_left_out, self.settings.seeds)

    # ------------------------------------------------------------------ results

    def outcomes(self, kind: str) -> Outcomes | None:
        """What the models of halves say of the queries of a kind; halves that lack a seed are left out."""
        found, rows = self.results.read(), self.rows_of(kind)
        jobs = self.subset_jobs()
        seeds = self.settings.seeds
        whole, measured = [], []
        for number in range(self.settings.subsets):
            keys = [Results.key(job) for job in jobs[number * seeds : (number + 1) * seeds]]
            if all(key in found for key in keys):
                whole.append(number)
                measured.append(torch.stack([-found[key].double().mean(1)[rows] for key in keys]))
        if len(whole) < 4 or not rows:
            return None
        return Outcomes(self.subsets()[whole], torch.stack(measured, dim=1))

    def scorer(self) -> Scorer:
        """Scores from all kernels that are there."""
        return Scorer(
            {
                plan.name: Kernels.load(self._kernel_path(plan.name))
                for plan in self.plans
                if self._kernel_path(plan.name).exists()
            }
        )

    def baseline_scores(self) -> dict[str, Tensor]:
        """Scores (Q, N) of every similarity."""
        return {name: score(self.data.tracks, self.queries()) for name, score in BASELINES.items()}

    def groups_of_queries(self) -> list[str | None]:
        """The artist of each query; of a clip, the artist of the track whose prompt it was made from."""
        prompted = self.data.held_out_groups if len(self.data.held_out) else self.data.groups
        of_copies = [self.data.groups[row] for row in self.data.originals]
        return [*(prompted[i] for i in self.prompts()), *self.data.held_out_groups, *of_copies]

    # ------------------------------------------------------------------ inside

    def _own_plans(self) -> list[FeaturePlan]:
        """This shard's part of the plans, in their order: the dearest are dealt out first."""
        number, of = self.shard
        loads, owners = [0.0] * of, {}
        dearest = sorted(self.plans, key=lambda plan: -plan.passes)
        for plan in dearest:
            owner = loads.index(min(loads))
            owners[plan.name], loads[owner] = owner, loads[owner] + plan.passes
        return [plan for plan in self.plans if owners[plan.name] == number]

    def _stamp(self) -> Mapping[str, Any]:
        data = self.data
        return {
            "config": self.model.config.model_dump(exclude={"training"}),
            "training": {"cfg": self.model.config.training.cfg_dropout_prob},
            "retrain": {k: v for k, v in asdict(self.retrain).items() if k != "compile"},
            "tracks": hash_json([data.tracks.sample_ids, data.groups, _size_of(data.tracks)]),
            "held_out": hash_json([data.held_out.sample_ids, _size_of(data.held_out)]),
            "generated": [self.settings.generated, self.settings.steps, self.settings.cfg_scale],
            "measured": [self.settings.measure_draws, MEASURED_TIMES],
            "start": self.start is not None,
        }

    def _trainer(self, compiled: bool) -> Retrainer:
        if self._retrainer is None or self._retrainer.settings.compile != (compiled and self.retrain.compile):
            data = NetworkData.of(self.model, self.data.tracks)
            settings = replace(self.retrain, compile=compiled and self.retrain.compile)
            self._retrainer = Retrainer(self.model.config, data, settings, self.device, self.start)
        return self._retrainer

    def _run(self, jobs: Sequence[Job], description: str) -> bool:
        return run_jobs(
            self._trainer(compiled=True),
            jobs,
            self.results,
            self.network_queries,
            MEASURED_TIMES,
            draws=self.settings.measure_draws,
            at_once=self.settings.at_once,
            shard=self.shard,
            deadline=self.deadline,
            description=description,
        )

    def _removal_jobs(self, removal: Removal) -> list[Job]:
        return removal.jobs(len(self.data.tracks), self.settings.seeds)

    def _full_states(self) -> list[Stack]:
        return self._wait_for(
            self.folder / "full.pt", lambda path: torch.load(path, map_location="cpu", weights_only=True)
        )

    def _stacked(self, states: Sequence[Stack]) -> Stack:
        names = dict(self.model.model.named_parameters())
        return {name: torch.stack([state[name] for state in states]).to(self.device) for name in names}

    def _load(self, state: Stack) -> None:
        self.model.model.load_state_dict(state)
        self.model.to(self.device).eval()

    def _generate(self, path: Path) -> None:
        """Clips of the first model of everything, by prompts of tracks."""
        self._load(self._full_states()[0])
        source = self.data.held_out if len(self.data.held_out) else self.data.tracks
        made = []
        rows = self.prompts()
        for start in range(0, len(rows), 32):
            part = on_device(taken(source, rows[start : start + 32]), self.device)
            made.append(
                generate_diffusion_cond(
                    self.model,
                    steps=self.settings.steps,
                    cfg_scale=self.settings.cfg_scale,
                    conditioning_tensors=part.conditioning,
                    batch_size=len(part),
                    sample_size=self.model.config.sample_size,
                    seed=derive_seed("proof-clips", start) % 2**31,
                    device=self.device,
                    return_latents=True,
                ).float().cpu()
            )  # fmt: skip
        shape = self.data.tracks.latents.shape[1:]
        latents = torch.cat(made) if made else torch.zeros(0, *shape)
        if latents.shape[1:] != shape:
            raise StoreError(f"clips are of shape {tuple(latents.shape[1:])}, tracks of {tuple(shape)}")
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, latents=latents.numpy())

    def _generated(self) -> LatentBatch:
        source = self.data.held_out if len(self.data.held_out) else self.data.tracks

        def read(path: Path) -> Tensor:
            with np.load(path, allow_pickle=False) as held:
                return torch.from_numpy(held["latents"])

        latents = self._wait_for(self.folder / "generated.npz", read)
        prompted = taken(source, self.prompts())
        names = tuple(f"clip {number}" for number in range(len(latents)))
        return LatentBatch(names, latents, torch.ones_like(latents[:, :1]), prompted.conditioning)

    def _kernel_path(self, name: str) -> Path:
        return self.folder / "kernels" / f"{name.replace('/', '_')}.npz"

    def _wait_for(self, path: Path, read: Callable[[Path], T]) -> T:
        """What is in a file, once it is there.

        Raises:
            StoreError: it does not come.
        """
        began = time.monotonic()
        while not path.exists():
            late = self.deadline is not None and time.monotonic() > self.deadline
            if self.shard[1] == 1 or late or time.monotonic() - began > PATIENCE:
                raise StoreError(f"{path}: not there; run the stage that makes it first")
            time.sleep(0.5)
        return read(path)


def _size_of(batch: LatentBatch) -> str:
    """The mean square of the latents to four digits: the same wherever they were encoded."""
    return f"{batch.latents.double().square().mean().item():.4g}"
