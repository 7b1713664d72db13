"""The ``training`` and ``lora`` blocks of a model config."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.losses import (
    AutoencoderLosses,
    BottleneckWeights,
    EvaluationMetrics,
    default_losses,
)


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

    retired: ClassVar[dict[str, str]] = {
        "display_audio_cond": "recordings that a demo begins with are always shown beside it",
    }

    demo_every: int = Field(2000, ge=1)
    demo_steps: int = Field(250, ge=1)
    num_demos: int = Field(4, ge=0)
    demo_cond: list[dict[str, Any]] = []
    demo_cond_from_batch: bool = False
    demo_cfg_scales: list[float] = [3.0, 6.0, 9.0]


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


class InpaintMaskConfig(Config):
    """Which parts of a clip an inpainting model is trained to regenerate."""

    max_mask_segments: int = Field(10, ge=1)
    """At most this many segments are cut out at once."""
    mask_type_probabilities: tuple[float, float, float] = (0.1, 0.8, 0.1)
    """Of random segments, of the whole clip, and of the end of the clip."""

    @model_validator(mode="after")
    def _odds_add_up(self) -> InpaintMaskConfig:
        odds = self.mask_type_probabilities
        if min(odds) < 0 or abs(sum(odds) - 1.0) > 1e-6:
            raise ValueError(f"mask_type_probabilities must be 0 or more and add up to 1, found {list(odds)}")
        return self


class InpaintingConfig(Config):
    """The masks of an inpainting model."""

    mask_kwargs: InpaintMaskConfig = InpaintMaskConfig()


class _TrainingConfig(Config):
    """What the training of every kind of model is told."""

    retired: ClassVar[dict[str, str]] = {"log_loss_info": "loss by timestep band is always logged"}

    default_arguments: ClassVar[dict[str, Any]] = {}
    """Of the AdamW that ``learning_rate`` stands for, besides the rate."""

    use_ema: bool = False
    learning_rate: float | None = Field(None, gt=0)
    """A short form: AdamW at this rate without a schedule, where ``optimizer_configs`` is absent."""
    optimizer_configs: dict[str, OptimizerPair] = {}
    demo: DemoConfig | None = None


_OLD_KEYS = {
    "log_loss_info": "loss by timestep band is always logged",
    "batch_size": "the batch size is an option of the command",
    **dict.fromkeys(("demo_every", "demo_steps", "num_demos"), "it belongs in the 'demo' block beside it"),
}


class _NoiseTrainingConfig(_TrainingConfig):
    """What the training of every network that takes noise away is told."""

    use_ema: bool = True
    pre_encoded: bool = False
    timestep_sampler: TimestepSampler = "uniform"
    timestep_sampler_options: dict[str, float] = {}
    mask_padding: bool = False
    mask_padding_dropout: float = Field(0.0, ge=0, le=1)
    validation_timesteps: list[float] = Field([0.1, 0.3, 0.5, 0.7, 0.9], min_length=1)


class DiffusionTrainingConfig(_NoiseTrainingConfig):
    """How a conditional diffusion model is trained."""

    retired: ClassVar[dict[str, str]] = {
        "log_loss_info": "loss by timestep band is always logged",
        "max_mask_segments": "it belongs in inpainting.mask_kwargs",
    }

    cfg_dropout_prob: float = Field(0.1, ge=0, le=1)
    inpainting: InpaintingConfig | None = None
    """Of a model that gets ``inpaint_mask`` and ``inpaint_masked_input``."""
    song_describer_eval: SongDescriberEvalConfig | None = None


class UncondTrainingConfig(_NoiseTrainingConfig):
    """How an unconditional diffusion model is trained."""

    retired: ClassVar[dict[str, str]] = _OLD_KEYS


class DiffusionAutoencoderTrainingConfig(_NoiseTrainingConfig):
    """How an autoencoder that decodes by diffusion is trained."""

    retired: ClassVar[dict[str, str]] = _OLD_KEYS

    pre_encoded: Literal[False] = False
    """It trains its own encoder, so it takes audio."""
    use_reconstruction_loss: bool = False
    """Add 0.1 x the spectral distance of what the answer of the network would sound like."""
    bottleneck: BottleneckWeights = BottleneckWeights()
    """How much what the bottleneck reports counts."""


class AutoencoderTrainingConfig(_TrainingConfig):
    """How an autoencoder is trained, at first without and then with its adversary."""

    retired: ClassVar[dict[str, str]] = _OLD_KEYS
    default_arguments: ClassVar[dict[str, Any]] = {"betas": (0.8, 0.99)}

    warmup_steps: int = Field(0, ge=0)
    """Steps before the autoencoder meets its adversary."""
    warmup_mode: Literal["adv", "full"] = "adv"
    """Whether the adversary learns meanwhile (``adv``) or waits too (``full``)."""
    encoder_freeze_on_warmup: bool = False
    """Train the decoder alone afterwards."""
    force_input_mono: bool = False
    latent_mask_ratio: float = Field(0.0, ge=0, le=1)
    """Share of latent values set to zero in each step."""
    clip_grad_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    loss_configs: AutoencoderLosses = default_losses()
    eval_loss_configs: EvaluationMetrics | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_teacher(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("teacher_model") or data.get("teacher_model_ckpt"):
            raise ValueError(
                "teacher_model is left out on purpose: no public checkpoint was distilled with it;"
                " remove teacher_model and teacher_model_ckpt"
            )
        return {
            key: value for key, value in data.items() if key not in ("teacher_model", "teacher_model_ckpt")
        }


class LanguageModelTrainingConfig(_TrainingConfig):
    """How a language model over tokens is trained."""

    retired: ClassVar[dict[str, str]] = _OLD_KEYS
    default_arguments: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.95), "weight_decay": 0.1}

    pre_encoded: bool = False
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1)


AnyTrainingConfig = (
    DiffusionTrainingConfig
    | UncondTrainingConfig
    | DiffusionAutoencoderTrainingConfig
    | AutoencoderTrainingConfig
    | LanguageModelTrainingConfig
)


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021) on modules whose dotted path has one of ``component_whitelist``."""

    component_whitelist: list[str] = ["transformer"]
    type: Literal["lora", "dora"] = "lora"
    """In any case: ``LoRA`` and ``DoRA`` are read too."""
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
    base_precision: Literal["fp32", "bf16", "fp16"] | None = None
    """How training holds the frozen network; None is the run's own half precision on a GPU."""

    @field_validator("type", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value
