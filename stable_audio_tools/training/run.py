"""A training run, from settings to a folder of checkpoints."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytorch_lightning as pl

from stable_audio_tools.data.dataset import AudioLoader, KeyedBatchSampler, create_dataloader_from_config
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.checkpoints import LoadReport
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.runtime.manifest import installed_versions
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.dataset import DatasetConfig
from stable_audio_tools.schema.model import DiffusionCondModelConfig, ModelConfig
from stable_audio_tools.schema.reader import read_dataset_config, read_model_config
from stable_audio_tools.training.callbacks import BadBatchReport, MetricsLog, StepProgress
from stable_audio_tools.training.catching_up import CatchingUp, begin_record
from stable_audio_tools.training.checkpoints import (
    CheckpointKeeper,
    require_same_weights,
    warn_of_little_space,
)
from stable_audio_tools.training.demos import create_demos
from stable_audio_tools.training.factory import create_training_wrapper_from_config, trains_by_turns
from stable_audio_tools.training.gauges import Gauges, loader_advice
from stable_audio_tools.training.hardware import Hardware, choose_hardware
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.run_folder import Resume, find_resume, make_run_folder
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.sharding import MODEL_TYPES
from stable_audio_tools.training.side_jobs import SideJob
from stable_audio_tools.training.song_describer import SongDescriberScores
from stable_audio_tools.training.speed import make_fast
from stable_audio_tools.training.start import (
    hold_frozen_base,
    prepare_model,
    require_same_form,
    write_load_reports,
)
from stable_audio_tools.training.stopping import StopOnSignal, Stopped, leave_signals_to_us
from stable_audio_tools.training.trackers import check_logger, create_loggers


def train(settings: TrainSettings, *, lora: bool = False) -> Path:
    """Train as ``settings`` say; returns the run folder.

    The folder ``<save-dir>/<name>/<run_id>`` holds ``checkpoints/``, ``manifest.json``, the resolved
    ``model_config.json`` and ``dataset_config.json``, ``tracks.jsonl`` (row i is track i), ``metrics.csv``,
    ``demos/`` and ``evals/``. What can be wrong with the input is found before the folder is made.

    Args:
        lora: train low-rank adapters on a frozen base, as the config's ``lora`` block says.

    Raises:
        StableAudioError: a config, a checkpoint, a file or a flag is wrong, or a loss is not finite.
        SystemExit: SIGTERM, SIGUSR1 or SIGUSR2 ended the run, with 128 and its number as the code; the last
            whole step is saved.
        KeyboardInterrupt: Ctrl-C did, and the step is saved; a second one does not wait for that.
    """
    check_logger(settings.logger)
    model_config = _read_model_config(settings.model_config, lora)
    hardware = choose_hardware(settings, lora or trains_by_turns(model_config))
    if hardware.strategy == "fsdp" and model_config.model_type not in MODEL_TYPES:
        raise UsageError(f"--strategy fsdp: cannot shard a {model_config.model_type!r} model; use ddp")
    dataset_config = read_dataset_config(settings.dataset_config)
    require_same_form(model_config, dataset_config, settings.dataset_config)
    resume = find_resume(settings)
    start_batch = resume.start_batch(settings.batch_size, hardware.world_size) if resume else 0
    loader = _loader(settings, hardware, model_config, dataset_config, start_batch)
    index = loader.dataset.dataset.index  # type: ignore[attr-defined]
    val_loader = _val_loader(settings, hardware, model_config)
    reports: list[LoadReport] = []
    model = prepare_model(model_config, settings, lora, resuming=resume is not None, reports=reports)
    if lora:
        hold_frozen_base(model, model_config, hardware)
    module = create_training_wrapper_from_config(
        model_config,
        model,
        seed=settings.seed,
        accum_batches=settings.accum_batches,
        gradient_clip_val=settings.gradient_clip_val,
        lora=lora,
        ema_on_cpu=settings.ema_on_cpu,
    )
    make_fast(module, settings, hardware)
    data = {"sha256": index.hash, "batch_size": settings.batch_size, "world_size": hardware.world_size}
    _check_before_the_folder(module, resume)
    base = _base(settings) if lora else None
    if base is not None:
        data["base_sha256"] = base[1]
    module.run_facts = {
        "dataset_config": dataset_config.model_dump(mode="json"),
        "seed": settings.seed,
        "data": data,
        "versions": installed_versions(),
    }
    warn_of_little_space(module, Path(settings.save_dir))
    folder = make_run_folder(settings, hardware, resume, model_config, dataset_config, index)
    if hardware.rank == 0:
        write_load_reports(folder, reports)
        begin_record(folder, resume.step if resume else 0)
    with _quiet():
        trainer = _trainer(settings, hardware, folder, module, val_loader is not None, resume, base)
    _announce(module, index, hardware, folder)
    if resume is not None:
        resume.warn_of_changes({"seed": settings.seed, **data})
        say(f"continuing from step {resume.step} of {resume.path}")
    with _quiet(), _interrupts(module, trainer):
        trainer.fit(module, loader, val_loader, ckpt_path=str(resume.path) if resume else None)
    say(f"trained to step {module.steps_done}; checkpoints are in {folder / 'checkpoints'}")
    return folder


def _read_model_config(path: str, lora: bool) -> ModelConfig:
    config = read_model_config(path)
    if config.training is None:
        raise ConfigError(
            f"{path}: training: missing; expected a block with optimizer_configs or learning_rate"
        )
    if lora and not isinstance(config, DiffusionCondModelConfig):
        raise ConfigError(
            f"{path}: model_type: adapters are for a 'diffusion_cond' model, found {config.model_type!r};"
            " train it whole with train.py"
        )
    return config


def _loader(
    settings: TrainSettings,
    hardware: Hardware,
    model_config: ModelConfig,
    dataset_config: DatasetConfig,
    start_batch: int,
) -> AudioLoader:
    return create_dataloader_from_config(
        dataset_config,
        settings.batch_size,
        model_config.sample_size,
        model_config.sample_rate,
        audio_channels=model_config.audio_channels,
        num_workers=settings.num_workers,
        seed=settings.seed,
        base_dir=Path(settings.dataset_config).parent,
        start_batch=start_batch,
        infinite=True,
        rank=hardware.rank,
        world_size=hardware.world_size,
    )


def _val_loader(settings: TrainSettings, hardware: Hardware, model_config: ModelConfig) -> AudioLoader | None:
    """The validation set: every track once, always the same crops."""
    if settings.val_dataset_config is None:
        return None
    dataset_config = read_dataset_config(settings.val_dataset_config)
    require_same_form(model_config, dataset_config, settings.val_dataset_config)
    loader = create_dataloader_from_config(
        dataset_config,
        settings.batch_size,
        model_config.sample_size,
        model_config.sample_rate,
        audio_channels=model_config.audio_channels,
        num_workers=0,
        shuffle=False,
        seed=settings.seed,
        base_dir=Path(settings.val_dataset_config).parent,
        rank=hardware.rank,
        world_size=hardware.world_size,
        drop_last=False,
    )
    # a loader draws new crops each epoch; here they must stay
    first_epoch = list(cast(KeyedBatchSampler, loader.batch_sampler))
    return AudioLoader(
        loader.dataset,
        batch_sampler=first_epoch,
        collate_fn=loader.collate_fn,
        num_workers=min(settings.num_workers, len(first_epoch)),
    )


def _check_before_the_folder(module: ModelTrainer, resume: Resume | None) -> None:
    """Find what Lightning would find only after the run folder is made, and say it in one line."""
    module.configure_optimizers()
    if resume is not None:
        require_same_weights(resume.path, resume.record["shapes"], module)


def _base(settings: TrainSettings) -> tuple[str, str] | None:
    """Name and SHA-256 of the checkpoint that adapters are trained on."""
    path = settings.pretrained_ckpt_path
    return (Path(path).name, sha256_file(path)) if path is not None else None


def _trainer(
    settings: TrainSettings,
    hardware: Hardware,
    folder: Path,
    module: ModelTrainer,
    validates: bool,
    resume: Resume | None,
    base: tuple[str, str] | None,
) -> pl.Trainer:
    keeper = CheckpointKeeper(folder / "checkpoints", settings.checkpoint_every, settings.save_top_k, base)
    stored = bool(getattr(module.options, "pre_encoded", False))
    advice = loader_advice(settings.num_workers, stored)
    # shards of a gradient have norms of their own
    whole = not hardware.strategy.startswith(("fsdp", "deepspeed"))
    gauges = Gauges(settings.log_every, settings.max_steps, advice, norms=whole)
    metrics = MetricsLog(settings.log_every, keeper, gauges)
    progress = StepProgress(metrics, settings.max_steps)
    jobs: list[SideJob] = []
    if module.options.demo is not None:
        jobs.append(create_demos(module, folder, settings.seed))
    scores = getattr(module.options, "song_describer_eval", None)
    if scores is not None and SongDescriberScores.wanted(scores):
        jobs.append(SongDescriberScores(scores, folder, settings.seed))
    catching_up = CatchingUp(folder, jobs, settings.val_every if validates else None)
    callbacks = [gauges, metrics, progress, keeper, BadBatchReport(folder)]
    callbacks += [*jobs, catching_up, StopOnSignal(keeper), gauges.last]
    # rows of metrics.csv beyond the checkpoint belong to steps that are taken again
    kept_rows = resume.step if resume is not None and resume.run_folder else None
    trainer = pl.Trainer(
        **hardware.trainer_options(),
        max_steps=settings.max_steps,
        max_epochs=-1,
        # a trainer of two optimizers accumulates and clips itself
        accumulate_grad_batches=settings.accum_batches if module.automatic_optimization else 1,
        gradient_clip_val=settings.gradient_clip_val or None if module.automatic_optimization else None,
        val_check_interval=settings.val_every * settings.accum_batches if validates else None,
        check_val_every_n_epoch=None if validates else 1,
        num_sanity_val_steps=0,
        logger=create_loggers(settings.logger, folder, settings.name, kept_rows) or False,
        callbacks=callbacks,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    leave_signals_to_us(trainer)
    return trainer


def _announce(module: ModelTrainer, index: TrackIndex, hardware: Hardware, folder: Path) -> None:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.wrapped.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    say(
        f"training {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters on {len(index)} tracks"
        f" ({hardware.describe()}) in {folder}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on hardware, loaders and tips; its errors come through."""
    loggers = [
        logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interrupts(module: ModelTrainer, trainer: pl.Trainer) -> Iterator[None]:
    """The end of a run as everyone else knows it: Lightning's ends with 1 on Ctrl-C.

    Of several ranks the first tells how it ended: one that this process started must not seem to have failed.
    """
    try:
        yield
    except Stopped as stop:
        say(f"{stop} after step {module.steps_done}, which is saved; the same command with --recover goes on")
        if stop.number == signal.SIGINT and trainer.global_rank == 0:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.number if trainer.global_rank == 0 else 0) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except BaseException:
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if kill is not None and trainer.world_size > 1:
            kill(signal.SIGKILL)  # or they would wait for this one
        raise
