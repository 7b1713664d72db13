"""CLAP scores of the averaged weights while training, against stored Song Describer embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.evaluation.reference import ReferenceSet
from stable_audio_tools.evaluation.run import require_same_clap, score_clips
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.schema.training import SongDescriberEvalConfig
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.side_jobs import SideJob


class SongDescriberScores(SideJob):
    """Renders stored prompts and scores them: CLAP-FAD and alignment, in ``evals/step=<n>/results.json``.

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

    @staticmethod
    def wanted(config: SongDescriberEvalConfig) -> bool:
        """Whether scores are asked for and the embeddings they need are there; says so if they are not."""
        if not config.enabled:
            return False
        path = config.precomputed_embeddings_path
        if path is None or not Path(path).is_file():
            warn(
                f"training.song_describer_eval: no embeddings at {path}, so it is left out; make them with"
                " scripts/precompute_song_describer_clap_embeddings.py"
            )
            return False
        return True

    def work(self, model: Any, module: DiffusionCondTrainer, step: int) -> dict[str, float]:
        """Render, score and write down."""
        config = self.config
        reference = ReferenceSet.load(str(config.precomputed_embeddings_path))
        # unless the config names one, the CLAP that made the set is the one to use
        name = config.clap_model_name if "clap_model_name" in config.model_fields_set else reference.clap
        clap = ClapEmbedder(name, module.device, batch_size=config.clap_batch_size)
        require_same_clap(reference, clap)
        target = self.folder / f"step={step:08d}"
        chosen = list(zip(reference.prompts, reference.track_ids, strict=True))[: config.num_prompts]
        length = module.config.duration_seconds
        clips = generate_clips(
            model,
            [ClipRequest(prompt, seconds_total=length, name=track) for prompt, track in chosen],
            target / "clips",
            batch_size=config.gen_batch_size,
            steps=config.eval_steps,
            cfg_scale=config.eval_cfg_scale,
            seed=self.seed,
            device=module.device,
        )
        prompts = {clip: prompt for clip, (prompt, _) in zip(clips, chosen, strict=True)}
        scores = score_clips(clips, prompts, reference, clap)
        write_json(target / "results.json", scores)
        found = {f"eval/{key}": scores[key] for key in ("fad", "alignment") if scores[key] is not None}
        say(
            f"step {step}: "
            + ", ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in found.items())
        )
        return found
