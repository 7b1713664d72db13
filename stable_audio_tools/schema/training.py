"""The ``training`` and ``lora`` blocks of a model config."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.losses import AutoencoderLosses


class OptimizerConfig(Config):
    """An optimizer of ``torch.optim``, or ``FusedAdam`` or ``AdamW8bit``; ``config`` are its arguments."""

    type: str
    config: dict[str, Any] = {}


class SchedulerConfig(Config):
    """A schedule of ``torch.optim.lr_scheduler`` by name, or ``InverseLR``; ``config`` are its arguments."""

    type: str
    config: dict[str, Any] = {}


class OptimizerPair(Config):
    """An optimizer with its learning-rate schedule."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = None


class DemoConfig(Config):
    """Clips generated from the EMA weights while training."""

    demo_every: int = Field(2000, ge=1)
    demo_steps: int = Field(250, ge=1)
    num_demos: int = Field(4, ge=0)
    demo_cond: list[dict[str, Any]] = []
    demo_cond_from_batch: bool = False
    demo_cfg_scales: list[float] = [3.0, 6.0, 9.0]
    display_audio_cond: bool = False


class SongDescriberEvalConfig(Config):
    """CLAP-FAD and alignment of EMA generations against stored Song Describer embeddings while training."""

    enabled: bool = True
    eval_every: int = Field(2000, ge=1)
    num_prompts: int = Field(100, ge=1)
    eval_steps: int = Field(100, ge=1)
    eval_cfg_scale: float = 7.0
    gen_batch_size: int = Field(4, ge=1)
    clap_batch_size: int = Field(8, ge=1)
    clap_model_name: str = "laion/clap-htsat-fused"
    precomputed_embeddings_path: str | None = None


TimestepSampler = Literal["uniform", "logit_normal", "trunc_logit_normal", "log_snr"]


class DiffusionTrainingConfig(Config):
    """How a diffusion model is trained."""

    retired: ClassVar[dict[str, str]] = {"log_loss_info": "loss by timestep band is always logged"}

    use_ema: bool = True
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1)
    pre_encoded: bool = False
    timestep_sampler: TimestepSampler = "uniform"
    timestep_sampler_options: dict[str, float] = {}
    mask_padding: bool = False
    mask_padding_dropout: float = Field(0.0, ge=0, le=1)
    learning_rate: float | None = Field(None, gt=0)
    """A short form: AdamW at this rate without a schedule, where ``optimizer_configs`` is absent."""
    optimizer_configs: dict[str, OptimizerPair] = {}
    demo: DemoConfig | None = None
    validation_timesteps: list[float] = [0.1, 0.3, 0.5, 0.7, 0.9]
    song_describer_eval: SongDescriberEvalConfig | None = None


_DEMO_KEYS = dict.fromkeys(
    ("demo_every", "demo_steps", "num_demos"), "it belongs in the 'demo' block beside it"
)


class _TrainingConfig(Config):
    """What the training of every other kind of model is told."""

    retired: ClassVar[dict[str, str]] = {
        "log_loss_info": "loss by timestep band is always logged",
        "batch_size": "the batch size is an option of the command",
        **_DEMO_KEYS,
    }

    learning_rate: float | None = Field(None, gt=0)
    use_ema: bool = False
    optimizer_configs: dict[str, OptimizerPair] = {}
    demo: DemoConfig | None = None


class AutoencoderTrainingConfig(_TrainingConfig):
    """How an autoencoder is trained, at first without and then with its adversary."""

    warmup_steps: int = Field(0, ge=0)
    warmup_mode: Literal["adv", "full"] = "adv"
    encoder_freeze_on_warmup: bool = False
    force_input_mono: bool = False
    latent_mask_ratio: float = Field(0.0, ge=0, le=1)
    clip_grad_norm: float = Field(0.0, ge=0)
    teacher_model: dict[str, Any] | None = None
    """The whole config of an autoencoder whose latents are to be met."""
    teacher_model_ckpt: str | None = None
    loss_configs: AutoencoderLosses | None = None
    eval_loss_configs: dict[str, Any] | None = None


class UncondTrainingConfig(_TrainingConfig):
    """How an unconditional diffusion model is trained."""

    use_ema: bool = True
    pre_encoded: bool = False


class DiffusionAutoencoderTrainingConfig(_TrainingConfig):
    """How an autoencoder that decodes by diffusion is trained."""

    use_ema: bool = True
    use_reconstruction_loss: bool = False


class LanguageModelTrainingConfig(_TrainingConfig):
    """How a language model over tokens is trained."""

    pre_encoded: bool = False


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021) on modules whose dotted path has one of ``component_whitelist``."""

    component_whitelist: list[str] = ["transformer"]
    type: Literal["lora", "dora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, ge=0)
    """Update scale is ``alpha / rank * multiplier``; 0 means ``alpha = rank``."""
    multiplier: float = 1.0
    dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a whole adapter is left out of one training step."""
    lr: float | None = Field(None, gt=0)
    weight_decompose: bool = False
    """The public spelling of ``"type": "dora"``."""
