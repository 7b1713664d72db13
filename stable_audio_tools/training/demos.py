"""Clips from the averaged weights while training, to listen to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.audio.plots import spectrogram_png
from stable_audio_tools.inference.generation import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
)
from stable_audio_tools.inference.unconditional import generate_diffusion_uncond
from stable_audio_tools.report.page import Card, Page, cards, link, linked_image, linked_player
from stable_audio_tools.runtime import seeds
from stable_audio_tools.schema.training import DemoConfig
from stable_audio_tools.training.autoencoder import AutoencoderTrainer, cut_alike
from stable_audio_tools.training.diffusion import DiffusionCondTrainer, DiffusionUncondTrainer
from stable_audio_tools.training.diffusion_autoencoder import DiffusionAutoencoderTrainer
from stable_audio_tools.training.inpainting import DiffusionCondInpaintTrainer
from stable_audio_tools.training.language_model import LanguageModelTrainer
from stable_audio_tools.training.media import ShownClip, show_clip
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.side_jobs import SideJob

MAX_PAGE_STEPS = 20
"""How many demos the page shows, the newest. All files stay in their folders."""
TOP_P = 0.95
"""A language model draws from the likeliest codes of this probability, as in the public demos."""


class Clip(NamedTuple):
    """Audio ``(C, T)`` to show: ``name`` of its files without suffix, and the prompt, if it has one."""

    name: str
    audio: Tensor
    prompt: str = ""


class Demos(SideJob):
    """Every ``demo_every`` steps, writes ``demos/step=<n>/*.wav`` with spectrograms and ``demos/index.html``,
    and shows the clips to the trackers that can play them.

    The same prompts get the same noise every time, so that what changes is the model. A subclass makes the
    clips of one kind of model.

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
        self.seed = seeds.derive_seed("demo", seed) % 2**31
        self.audio: Tensor | None = None
        self.infos: Sequence[dict[str, Any]] = ()
        self.loggers: Sequence[Logger] = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn who else wants to hear."""
        self.loggers = trainer.loggers

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch."""
        self.take(batch)

    def take(self, batch: Any) -> None:
        """Keep the prompts of ``batch``, for ``demo_cond_from_batch``, and its audio."""
        self.audio, self.infos = batch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Act on the step, then let go of the batch."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        self.audio, self.infos = None, ()

    @abstractmethod
    def clips(self, model: Any, module: Any) -> Iterator[Clip]:
        """Make the clips; names sort in the order that they are shown in."""

    def work(self, model: Any, module: Any, step: int) -> dict[str, float]:
        """Generate, save and show the clips of ``step``."""
        target = self.folder / f"step={step:08d}"
        found = False
        for clip in self.clips(model, module):
            show_clip(self.loggers, self._save(clip, target, module.config.sample_rate), step)
            found = True
        if found:
            self._write_page()
        return {}

    def batch_audio(self, module: ModelTrainer) -> Tensor:
        """Audio ``(B, C, T)`` of the first ``num_demos`` clips of the batch, on the module's device."""
        assert self.audio is not None
        return self.audio[: self.config.num_demos].to(module.device)

    def conditions(self) -> list[dict[str, Any]]:
        """What to ask for: the config's list, repeated or cut to ``num_demos``, or what is in the batch."""
        source = list(self.infos) if self.config.demo_cond_from_batch else self.config.demo_cond
        count = self.config.num_demos
        return [source[i % len(source)] for i in range(count)] if source else []

    def _save(self, clip: Clip, target: Path, sample_rate: int) -> ShownClip:
        audio = clip.audio.float().cpu()
        audio = audio / audio.abs().max().clamp(min=1.0)
        wav = target / f"{clip.name}.wav"
        png = wav.with_suffix(".png")
        save_audio(wav, audio, sample_rate, tags={"title": clip.prompt})
        png.write_bytes(spectrogram_png(audio, sample_rate, title=clip.prompt or None))
        wav.with_suffix(".txt").write_text(clip.prompt, encoding="utf-8")
        return ShownClip(clip.name, clip.prompt, audio, sample_rate, wav, png)

    def _write_page(self) -> None:
        # clips are long, so they stay in their files: the page goes with its folder
        page = Page("Demos", "Clips from the averaged weights, newest first.")
        if (self.folder.parent / "index.html").exists():
            page.section("Run", link("../index.html", "curves of this run"))
        for step_folder in sorted(self.folder.glob("step=*"), reverse=True)[:MAX_PAGE_STEPS]:
            shown = []
            for path in sorted(step_folder.glob("*.wav")):
                beside = f"{step_folder.name}/{path.stem}"
                shown.append(
                    Card(
                        path.with_suffix(".txt").read_text(encoding="utf-8") or path.stem,
                        [linked_image(f"{beside}.png", path.stem), linked_player(f"{beside}.wav", path.stem)],
                        path.stem.replace("_", ", "),
                    )
                )
            page.section(f"Step {int(step_folder.name.removeprefix('step='))}", cards(shown))
        page.write(self.folder / "index.html")


class PromptDemos(Demos):
    """Of a conditional diffusion model: each prompt at each strength of guidance."""

    def clips(self, model: Any, module: DiffusionCondTrainer) -> Iterator[Clip]:
        """Generate from the prompts."""
        conditioning = self.conditions()
        for cfg_scale in self.config.demo_cfg_scales if conditioning else []:
            audio = generate_diffusion_cond(
                model,
                steps=self.config.demo_steps,
                cfg_scale=cfg_scale,
                conditioning=conditioning,
                batch_size=len(conditioning),
                sample_size=module.config.sample_size,
                sample_rate=module.config.sample_rate,
                seed=self.seed,
                device=module.device,
            )
            yield from _named(audio, f"cfg{cfg_scale:g}", conditioning)


class InpaintDemos(Demos):
    """Of an inpainting model: the middle half of recordings made anew, with their own prompts."""

    def clips(self, model: Any, module: DiffusionCondInpaintTrainer) -> Iterator[Clip]:
        """Keep the first and the last quarter."""
        infos = list(self.infos[: self.config.num_demos])
        length = module.config.sample_size
        if not infos:
            return
        audio = self._recordings(model, module)
        yield from _named(audio[..., :length], "original", infos)
        mask = torch.ones(length)
        mask[length // 4 : 3 * length // 4] = 0
        for cfg_scale in self.config.demo_cfg_scales:
            made = generate_diffusion_cond_inpaint(
                model,
                steps=self.config.demo_steps,
                cfg_scale=cfg_scale,
                conditioning=infos,
                batch_size=len(infos),
                sample_size=length,
                seed=self.seed,
                device=module.device,
                inpaint_audio=(module.config.sample_rate, audio),
                inpaint_mask=mask,
            )
            yield from _named(made, f"inpainted_cfg{cfg_scale:g}", infos)

    def _recordings(self, model: Any, module: DiffusionCondInpaintTrainer) -> Tensor:
        """The audio of the batch, decoded where the batch holds latents."""
        audio = self.batch_audio(module)
        if model.pretransform is None or not module.options.pre_encoded:
            return audio
        decoded: Tensor = model.pretransform.decode(module.encode(audio, module.validation_key(0)))
        return decoded


class UnconditionalDemos(Demos):
    """Of an unconditional diffusion model: clips from noise alone."""

    def clips(self, model: Any, module: DiffusionUncondTrainer) -> Iterator[Clip]:
        """Generate ``num_demos`` of them."""
        if not self.config.num_demos:
            return
        audio = generate_diffusion_uncond(
            model,
            steps=self.config.demo_steps,
            batch_size=self.config.num_demos,
            sample_size=module.config.sample_size,
            seed=self.seed,
            device=module.device,
        )
        yield from _named(audio, "clip", [{}] * len(audio))


class ReconstructionDemos(Demos):
    """Of an autoencoder: recordings of the batch, and what comes back."""

    def clips(self, model: Any, module: AutoencoderTrainer) -> Iterator[Clip]:
        """Encode and decode the first ``num_demos`` recordings."""
        audio = self.batch_audio(module)
        if len(audio) == 0:
            return
        yield from _pairs(audio, self.reconstruct(model, module, audio))

    def reconstruct(self, model: Any, module: Any, audio: Tensor) -> Tensor:
        """The audio ``(B, C, T)`` through the model and back."""
        draws = seeds.generator("vae", self.seed)
        decoded: Tensor = model.decode(model.encode(module.heard(audio), generator=draws))
        return decoded


class DiffusionReconstructionDemos(ReconstructionDemos):
    """Of an autoencoder that decodes by diffusion."""

    def reconstruct(self, model: Any, module: DiffusionAutoencoderTrainer, audio: Tensor) -> Tensor:
        """The audio ``(B, C, T)`` through latents and back, in ``demo_steps`` steps."""
        made: Tensor = model.reconstruct(audio, steps=self.config.demo_steps, seed=self.seed)
        return made


class LanguageModelDemos(Demos):
    """Of a language model: each prompt at each strength of guidance; without conditioning, from nothing."""

    def clips(self, model: Any, module: LanguageModelTrainer) -> Iterator[Clip]:
        """Generate codes as long as the training window, and decode them."""
        conditioning = self.conditions() if model.conditioner is not None else [{}] * self.config.num_demos
        frames = -(-module.config.sample_size // model.pretransform.downsampling_ratio)
        scales = self.config.demo_cfg_scales if model.conditioner is not None else [1.0]
        for cfg_scale in scales if conditioning else []:
            audio = model.generate_audio(
                batch_size=len(conditioning),
                max_gen_len=frames,
                conditioning=None if model.conditioner is None else conditioning,
                cfg_scale=cfg_scale,
                top_p=TOP_P,
                seed=self.seed,
            )
            yield from _named(audio[..., : module.config.sample_size], f"cfg{cfg_scale:g}", conditioning)


DEMOS: dict[type[ModelTrainer], type[Demos]] = {
    AutoencoderTrainer: ReconstructionDemos,
    DiffusionAutoencoderTrainer: DiffusionReconstructionDemos,
    DiffusionCondInpaintTrainer: InpaintDemos,
    DiffusionCondTrainer: PromptDemos,
    DiffusionUncondTrainer: UnconditionalDemos,
    LanguageModelTrainer: LanguageModelDemos,
}
"""What is heard of each trainer's model."""


def create_demos(module: ModelTrainer, run_folder: Path, seed: int) -> Demos:
    """The demos of what ``module`` trains, as its ``training.demo`` block says."""
    return DEMOS[type(module)](module.options.demo, run_folder, seed)


def _named(audio: Tensor, label: str, infos: Sequence[dict[str, Any]]) -> Iterator[Clip]:
    """Clips ``00_label``, ``01_label`` and so on, with their prompts."""
    for position, (clip, info) in enumerate(zip(audio, infos, strict=True)):
        yield Clip(f"{position:02d}_{label}", clip, str(info.get("prompt", "")))


def _pairs(audio: Tensor, made: Tensor) -> Iterator[Clip]:
    """Each recording before what became of it."""
    made, audio = cut_alike(made, audio)
    nothing: list[dict[str, Any]] = [{}] * len(audio)
    yield from _named(audio, "original", nothing)
    yield from _named(made, "reconstruction", nothing)
