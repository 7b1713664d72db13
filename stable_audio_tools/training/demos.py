"""Clips from the averaged weights while training, to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.audio.plots import spectrogram_png
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.report.page import Card, Page, cards, image, player
from stable_audio_tools.runtime import seeds
from stable_audio_tools.schema.training import DemoConfig
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.side_jobs import SideJob

MAX_PAGE_STEPS = 3
"""How many demos the page shows, the newest: their sound lies inside it. All WAVs stay in their folders."""


class Demos(SideJob):
    """Every ``demo_every`` steps, writes ``demos/step=<n>/*.wav`` with spectrograms and ``demos/index.html``.

    The same prompts get the same noise every time, so that what changes is the model.

    Args:
        config: the ``training.demo`` block.
        run_folder: where ``demos/`` goes.
        seed: seed of the run.
    """

    name = "the demo"

    def __init__(self, config: DemoConfig, run_folder: Path, seed: int) -> None:
        super().__init__(config.demo_every)
        self.config = config
        self.folder = run_folder / "demos"
        self.seed = seed
        self._infos: Sequence[dict[str, Any]] = ()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the prompts of the batch, for ``demo_cond_from_batch``."""
        self._infos = batch[1]

    def work(
        self, model: ConditionedDiffusionModelWrapper, module: DiffusionCondTrainer, step: int
    ) -> dict[str, float]:
        """Generate, save and show the clips of ``step``."""
        conditioning = self._conditioning()
        for cfg_scale in self.config.demo_cfg_scales if conditioning else []:
            audio = generate_diffusion_cond(
                model,
                steps=self.config.demo_steps,
                cfg_scale=cfg_scale,
                conditioning=conditioning,
                batch_size=len(conditioning),
                sample_size=module.config.sample_size,
                sample_rate=module.config.sample_rate,
                seed=seeds.derive_seed("demo", self.seed) % 2**31,
                device=module.device,
            )
            target = self.folder / f"step={step:08d}"
            self._save(audio, cfg_scale, conditioning, target, module.config.sample_rate)
        if conditioning:
            self._write_page()
        return {}

    def _conditioning(self) -> list[dict[str, Any]]:
        """What to ask for: the config's list, repeated or cut to ``num_demos``, or what is in the batch."""
        source = list(self._infos) if self.config.demo_cond_from_batch else self.config.demo_cond
        count = self.config.num_demos
        return [source[i % len(source)] for i in range(count)] if source else []

    def _save(
        self,
        audio: Tensor,
        cfg_scale: float,
        conditioning: list[dict[str, Any]],
        target: Path,
        sample_rate: int,
    ) -> None:
        for position, (clip, wanted) in enumerate(zip(audio.float().cpu(), conditioning, strict=True)):
            peak = clip.abs().max().clamp(min=1e-8)
            prompt = str(wanted.get("prompt", ""))
            path = target / f"{position:02d}_cfg{cfg_scale:g}.wav"
            save_audio(path, clip / peak.clamp(min=1.0), sample_rate, tags={"title": prompt})
            path.with_suffix(".png").write_bytes(spectrogram_png(clip, sample_rate, title=prompt or None))
            path.with_suffix(".txt").write_text(prompt, encoding="utf-8")

    def _write_page(self) -> None:
        page = Page("Demos", "Clips from the averaged weights, newest first.")
        for step_folder in sorted(self.folder.glob("step=*"), reverse=True)[:MAX_PAGE_STEPS]:
            shown = [
                Card(
                    path.with_suffix(".txt").read_text(encoding="utf-8") or path.stem,
                    [image(path.with_suffix(".png").read_bytes(), path.stem), player(path, path.stem)],
                    path.stem.replace("_", ", "),
                )
                for path in sorted(step_folder.glob("*.wav"))
            ]
            page.section(f"Step {int(step_folder.name.removeprefix('step='))}", cards(shown))
        page.write(self.folder / "index.html")
