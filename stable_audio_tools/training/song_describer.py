"""CLAP scores of the averaged weights while training, against stored Song Describer embeddings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.evaluation.reference import ReferenceSet
from stable_audio_tools.evaluation.run import require_same_clap, score_clips
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.schema.training import SongDescriberEvalConfig
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.sharding import whole_networks
from stable_audio_tools.training.side_jobs import SideJob


class SongDescriberScores(SideJob):
    """Renders stored prompts and scores them: CLAP-FAD and alignment, in ``evals/step=<n>/results.json``.

    All ranks render, each its share, with the sampler and the seeds of ``sat generate``; the first one
    scores. The CLAP is loaded once and waits in main memory. Clips of the newest evaluation are kept: a
    hundred of 47 s take 0.8 GB.

    Args:
        config: the ``training.song_describer_eval`` block.
        run_folder: where ``evals/`` goes.
        seed: seed of the run.
    """

    name = "the Song Describer evaluation"

    def __init__(self, config: SongDescriberEvalConfig, run_folder: Path, seed: int) -> None:
        super().__init__(config.eval_every)
        self.config = config
        self.folder = run_folder / "evals"
        self.seed = seed
        self.rank, self.world_size = 0, 1
        self._off = False
        self._reference: ReferenceSet | None = None
        self._clap: ClapEmbedder | None = None

    @staticmethod
    def wanted(config: SongDescriberEvalConfig) -> bool:
        """Whether scores are asked for and the embeddings they need are there; says so if they are not."""
        if not config.enabled:
            return False
        path = config.precomputed_embeddings_path
        if path is None or not Path(path).is_file():
            warn(
                f"training.song_describer_eval: no embeddings at {path}, so it is left out; make them with"
                " scripts/precompute_song_describer_clap_embeddings.py, or set 'enabled' to false"
            )
            return False
        return True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn which share of the prompts is this rank's."""
        self.rank, self.world_size = trainer.global_rank, trainer.world_size

    def do(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Render on every rank and score on the first. All ranks learn whether all of them are well."""
        if self._off:
            return
        with whole_networks(trainer):
            self._evaluate(trainer, module, step)
        self.cut_short = not self._all(trainer, not self.cut_short)  # on one rank, so it is for all

    def _evaluate(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        if not self._all(trainer, self.attempt(trainer, module, step, self._prepare) is not None):
            self._off = True  # what is missing will be missing next time
            return
        if self._all(trainer, self.attempt(trainer, module, step, self._render) is not None):
            if trainer.is_global_zero:
                self.send(trainer, self.attempt(trainer, module, step, self.work), step)
        elif trainer.is_global_zero and self.world_size > 1:
            warn(f"step {step}: {self.name} is left out this time, since a process could not render")

    def work(self, model: Any, module: DiffusionCondTrainer, step: int) -> dict[str, float]:
        """Score the clips of ``step`` and write down what was found."""
        assert self._reference is not None
        assert self._clap is not None
        target = self.folder / f"step={step:08d}"
        prompts = {target / "clips" / f"{track}.wav": prompt for prompt, track in self._chosen()}
        self._clap.to(module.device)
        try:
            scores = score_clips(list(prompts), prompts, self._reference, self._clap)
        finally:
            self._clap.to("cpu")
        write_json(target / "results.json", scores)
        for older in self.folder.glob("step=*/clips"):
            if older.parent != target:
                shutil.rmtree(older)
        found = {f"eval/{key}": scores[key] for key in ("fad", "alignment") if scores[key] is not None}
        say(
            f"step {step}: "
            + ", ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in found.items())
        )
        return found

    def _prepare(self, model: Any, module: DiffusionCondTrainer, step: int) -> bool:
        """Read the set, and on the first rank load the CLAP, once."""
        config = self.config
        if self._reference is None:
            reference = ReferenceSet.load(str(config.precomputed_embeddings_path))
            if not reference.prompts:
                raise DataError(
                    f"{config.precomputed_embeddings_path}: holds no prompts; make it from a caption table"
                )
            self._reference = reference
        if self._clap is None and self.rank == 0:
            # unless the config names one, the CLAP that made the set is the one to use
            named = "clap_model_name" in config.model_fields_set
            name = config.clap_model_name if named else self._reference.clap
            clap = ClapEmbedder(name, "cpu", batch_size=config.clap_batch_size)
            require_same_clap(self._reference, clap)
            self._clap = clap
        return True

    def _render(self, model: Any, module: DiffusionCondTrainer, step: int) -> bool:
        """Render this rank's share: every so many'th prompt, each with the seed of its place among all."""
        length = module.config.duration_seconds
        requests = [
            ClipRequest(prompt, seconds_total=length, seed=self.seed + place, name=track)
            for place, (prompt, track) in enumerate(self._chosen())
        ]
        generate_clips(
            model,
            requests[self.rank :: self.world_size],
            self.folder / f"step={step:08d}" / "clips",
            batch_size=self.config.gen_batch_size,
            steps=self.config.eval_steps,
            cfg_scale=self.config.eval_cfg_scale,
            device=module.device,
        )
        return True

    def _chosen(self) -> list[tuple[str, str]]:
        """Prompts and the names of their clips."""
        assert self._reference is not None
        pairs = zip(self._reference.prompts, self._reference.track_ids, strict=True)
        return list(pairs)[: self.config.num_prompts]

    def _all(self, trainer: pl.Trainer, well: bool) -> bool:
        """Whether all ranks are well; each waits here for the others."""
        if self.world_size == 1:
            return well
        ill = torch.tensor(0.0 if well else 1.0, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(ill, reduce_op="sum")) == 0
