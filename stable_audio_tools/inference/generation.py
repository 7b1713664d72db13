"""From conditioning to audio. The signatures are the documented ones.

Shapes: B clips, C audio channels, T samples, D latent channels, L latent frames. For a model without a
pretransform the "latents" are the audio itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.audio.transforms import pad_or_trim, resample, set_channels
from stable_audio_tools.diffusion.inpainting import latent_mask, region_mask
from stable_audio_tools.diffusion.noise import NoiseSource
from stable_audio_tools.diffusion.samplers import DEFAULT_SIGMA_MIN, get_sampler, sample
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.base import nearest
from stable_audio_tools.schema.conditioned import MASK_ID, MASKED_ID

InputAudio = tuple[int, Tensor]
"""Sample rate in Hz and audio ``(T,)``, ``(C, T)`` or ``(B, C, T)``."""
Metadata = Sequence[Mapping[str, Any]]
RANDOM_SEED = -1
_WITHOUT_EFFECT = frozenset({"batch_cfg", "rescale_cfg", "disable_tqdm"})


@dataclass(frozen=True)
class SamplerOptions:
    """The ``sampler_kwargs`` of the public functions.

    Attributes:
        sampler_type: a name of ``diffusion.samplers.SAMPLERS``, or None for the objective's default.
        sigma_min: last noise level before 0, of samplers that walk in sigma.
        sigma_max: first noise level, or None for the sampler's default.
        rho: curvature of the sigma schedule.
        scale_phi: how far guided outputs are pulled back to the conditional spread, 0 to 1.
        cfg_interval: sigmas between which guidance acts.
        cfg_norm_threshold: longest guidance, as a norm over a clip's clean latents; 0 is no limit.
        apg_scale: how much of the guidance's part along the clean latents is taken out, 0 to 1. Stable Audio
            3 samples with 1.
        dist_shift: whether to sample on the schedule that the model was trained with. False is the public
            behaviour of euler, dpmpp and pingpong, which ignore ``distribution_shift_options``.
        callback: called at every step with ``x``, ``i``, ``sigma`` and ``denoised``.
    """

    sampler_type: str | None = None
    sigma_min: float = DEFAULT_SIGMA_MIN
    sigma_max: float | None = None
    rho: float = 1.0
    scale_phi: float = 0.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_norm_threshold: float = 0.0
    apg_scale: float = 0.0
    dist_shift: bool = True
    callback: Callable[[dict[str, Any]], None] | None = None

    @property
    def projection(self) -> dict[str, float]:
        """The options of projected guidance that are on; a network need not know them otherwise."""
        options = {"cfg_norm_threshold": self.cfg_norm_threshold, "apg_scale": self.apg_scale}
        return {name: value for name, value in options.items() if value}

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> SamplerOptions:
        """The options in a keyword dict.

        Raises:
            UsageError: one is unknown; the message names the nearest.
        """
        known = list(cls.__dataclass_fields__)
        for name in options:
            if name not in known and name not in _WITHOUT_EFFECT:
                guess = nearest(name, known)
                hint = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}"
                raise UsageError(f"unknown sampler option {name!r}; {hint}")
        return cls(**{name: value for name, value in options.items() if name in known})


@torch.no_grad()
def generate_diffusion_cond(
    model: Any,
    steps: int = 250,
    cfg_scale: float = 6,
    conditioning: Metadata | Mapping[str, Any] | None = None,
    conditioning_tensors: Mapping[str, Any] | None = None,
    negative_conditioning: Metadata | Mapping[str, Any] | None = None,
    negative_conditioning_tensors: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    sample_size: int = 2097152,
    sample_rate: int = 48000,
    seed: int = RANDOM_SEED,
    device: str | torch.device = "cuda",
    init_audio: InputAudio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    **sampler_kwargs: Any,
) -> Tensor:
    """Generate audio from conditioning, from scratch or as a variation of ``init_audio``.

    The starting noise is ``torch.randn`` right after ``torch.manual_seed(seed)``, so on a CPU a seed gives
    the clip that it gives in the public package.

    Args:
        model: a ``ConditionedDiffusionModelWrapper`` on ``device``.
        steps: sampler steps.
        cfg_scale: strength of guidance; 1 is none.
        conditioning: one metadata dict per clip, or one for all.
        conditioning_tensors: conditioning by id, already embedded; takes the place of ``conditioning``.
        negative_conditioning: what to steer away from, in the same forms.
        negative_conditioning_tensors: the same, already embedded.
        batch_size: clips to make, B.
        sample_size: length of each clip in samples. It is rendered whole: rounded up to what the model can
            make, and cut.
        sample_rate: not used; it is the model's.
        seed: 0 to 2^63 - 1, or -1 for a random one, which is said.
        device: where the model is.
        init_audio: sample rate and audio to vary, mono or stereo, one for all clips or one each.
        init_noise_level: noise put on ``init_audio``: a sigma for samplers that walk in sigma, else a time
            in (0, 1].
        return_latents: return latents ``(B, D, L)`` and no audio.
        **sampler_kwargs: see :class:`SamplerOptions`.

    Returns:
        Audio ``(B, C, sample_size)`` in float32, about [-1, 1], not clipped.

    Raises:
        UsageError: an argument does not fit; the message says which.
    """
    run = GenerationRun(model, batch_size, sample_size, device, SamplerOptions.parse(sampler_kwargs))
    noise = run.seeded_noise(seed)
    tensors = run.embed(conditioning, conditioning_tensors)
    negative = run.embed_negative(negative_conditioning, negative_conditioning_tensors)
    init = None if init_audio is None else run.encode(init_audio, "init_audio")
    latents = run.sample(noise, tensors, negative, steps, cfg_scale, init, init_noise_level)
    return latents if return_latents else run.decode(latents)


@torch.no_grad()
def generate_diffusion_cond_inpaint(
    model: Any,
    steps: int = 250,
    cfg_scale: float = 6,
    conditioning: Metadata | Mapping[str, Any] | None = None,
    conditioning_tensors: Mapping[str, Any] | None = None,
    negative_conditioning: Metadata | Mapping[str, Any] | None = None,
    negative_conditioning_tensors: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    sample_size: int = 2097152,
    seed: int = RANDOM_SEED,
    device: str | torch.device = "cuda",
    init_audio: InputAudio | None = None,
    init_noise_level: float = 1.0,
    inpaint_audio: InputAudio | None = None,
    inpaint_mask: Tensor | None = None,
    inpaint_regions: Sequence[tuple[float, float]] | None = None,
    return_latents: bool = False,
    **sampler_kwargs: Any,
) -> Tensor:
    """:func:`generate_diffusion_cond`, but keep parts of ``inpaint_audio`` and make the rest.

    A model that is trained to inpaint is shown what is kept, as its config says. Any other model is led
    around it while sampling, and gives the latents of what is kept back as they are.

    Args:
        inpaint_audio: sample rate and audio, in the forms of ``init_audio``. None is silence, for a model
            that is trained to inpaint.
        inpaint_mask: ``(T,)``, ``(1, T)`` or ``(B, T)`` over the samples of the clip: 1 keeps, 0 regenerates,
            values in between are soft (see :mod:`~stable_audio_tools.diffusion.inpainting`). None
            regenerates everything.
        inpaint_regions: (start, end) in seconds of each part to regenerate, in place of ``inpaint_mask``.

    Raises:
        UsageError: an argument does not fit; the message says which.
    """
    run = GenerationRun(model, batch_size, sample_size, device, SamplerOptions.parse(sampler_kwargs))
    noise = run.seeded_noise(seed)
    tensors = run.embed(conditioning, conditioning_tensors)
    negative = run.embed_negative(negative_conditioning, negative_conditioning_tensors)
    init = None if init_audio is None else run.encode(init_audio, "init_audio")
    known = None if inpaint_audio is None else run.encode(inpaint_audio, "inpaint_audio")
    mask = run.inpaint_mask(inpaint_mask, inpaint_regions)
    if run.is_shown_the_mask:
        beside = run.inpaint_conditioning(known, mask)
        tensors = {**tensors, **beside}
        negative = {**negative, **beside} if negative else negative
    else:
        run.keep(known, mask)
    latents = run.sample(noise, tensors, negative, steps, cfg_scale, init, init_noise_level)
    return latents if return_latents else run.decode(latents)


def prepare_audio(
    audio: Tensor, from_rate: int, *, sample_rate: int, length: int, channels: int, batch_size: int, name: str
) -> Tensor:
    """Audio ``(T,)``, ``(C, T)`` or ``(B, C, T)`` as the model takes it: ``(1 or batch_size, channels,
    length)``.

    It is resampled, cut or padded with silence at its end, and mixed to ``channels``.

    Raises:
        UsageError: another shape, or neither one clip nor ``batch_size`` of them.
    """
    if not 1 <= audio.ndim <= 3 or audio.numel() == 0:
        raise UsageError(f"{name}: found shape {tuple(audio.shape)}, expected (T,), (C, T) or (B, C, T)")
    while audio.ndim < 3:
        audio = audio.unsqueeze(0)
    if len(audio) not in (1, batch_size):
        raise UsageError(f"{name}: found {len(audio)} clips, expected 1 or batch_size, which is {batch_size}")
    audio = resample(audio.float(), from_rate, sample_rate)
    return set_channels(pad_or_trim(audio, length)[0], channels)


class GenerationRun:
    """One batch: how long it is, where it runs and how it is sampled."""

    def __init__(
        self,
        model: Any,
        batch_size: int,
        sample_size: int,
        device: str | torch.device,
        options: SamplerOptions,
    ) -> None:
        if batch_size < 1 or sample_size < 1:
            raise UsageError(f"batch_size {batch_size} and sample_size {sample_size}: expected at least 1")
        get_sampler(options.sampler_type, model.diffusion_objective)  # before any work
        self.model = model
        self.options = options
        self.device = resolve_device(device)
        self.batch_size = batch_size
        self.sample_size = sample_size
        self.ratio = 1 if model.pretransform is None else model.pretransform.downsampling_ratio
        self.channels = model.io_channels if model.pretransform is None else model.pretransform.io_channels
        unit = max(model.min_input_length, self.ratio)
        self.padded_size = -(-sample_size // unit) * unit
        self.latent_shape = (model.io_channels, self.padded_size // self.ratio)
        self.kept: tuple[Tensor, Tensor] | None = None

    def seeded_noise(self, seed: int) -> Tensor:
        """Seed torch's global generator and draw the starting noise, ``(B, D, L)``."""
        seed = int(seed)
        if seed == RANDOM_SEED:
            seed = secrets.randbelow(2**32 - 1)
            say(f"seed: {seed}")
        if not 0 <= seed < 2**63:
            raise UsageError(f"seed {seed}: expected 0 to 2^63 - 1, or -1 for a random one")
        torch.manual_seed(seed)
        return torch.randn((self.batch_size, *self.latent_shape), device=self.device)

    def embed(
        self, metadata: Metadata | Mapping[str, Any] | None, tensors: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Conditioning by id, from metadata unless it is embedded already.

        An inpainting model that is told of no mask regenerates everything.
        """
        beside = self.inpaint_conditioning(None, None) if self.is_shown_the_mask else {}
        if tensors is not None:
            return {**beside, **tensors}
        if metadata is None:
            raise UsageError("give conditioning (one dict per clip) or conditioning_tensors; found neither")
        items = [metadata] if isinstance(metadata, Mapping) else list(metadata)
        if len(items) == 1:
            items *= self.batch_size
        if len(items) != self.batch_size:
            raise UsageError(
                f"conditioning: found {len(items)} items, expected 1 or batch_size, {self.batch_size}"
            )
        return {**beside, **self.model.conditioner(items, self.device)}

    def embed_negative(
        self, metadata: Metadata | Mapping[str, Any] | None, tensors: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """The same for the negative prompt; empty where there is none."""
        return {} if metadata is None and tensors is None else self.embed(metadata, tensors)

    def encode(self, source: InputAudio, name: str) -> Tensor:
        """Audio as latents ``(B, D, L)``."""
        rate, audio = source
        prepared = prepare_audio(
            torch.as_tensor(audio),
            rate,
            sample_rate=self.model.sample_rate,
            length=self.padded_size,
            channels=self.channels,
            batch_size=self.batch_size,
            name=name,
        ).to(self.device)
        # One clip for all is encoded once, then repeated: every clip starts from the same sample of the VAE.
        latents = prepared if self.model.pretransform is None else self.model.pretransform.encode(prepared)
        return latents.expand(self.batch_size, -1, -1)

    @property
    def is_shown_the_mask(self) -> bool:
        """Whether the model is trained to inpaint."""
        return MASK_ID in [*self.model.input_concat_ids, *self.model.local_add_cond_ids]

    def inpaint_mask(
        self, mask: Tensor | None, regions: Sequence[tuple[float, float]] | None
    ) -> Tensor | None:
        """The mask ``(B, 1, L)`` over latent frames, from one over samples or from regions in seconds."""
        if mask is not None and regions is not None:
            raise UsageError("give inpaint_mask or inpaint_regions; found both")
        if regions is not None:
            mask = region_mask(regions, self.padded_size, self.model.sample_rate)
        if mask is None:
            return None
        mask = torch.as_tensor(mask)
        if mask.shape[-1:] == (self.sample_size,):
            mask = F.pad(mask.float(), (0, self.padded_size - self.sample_size))
        return latent_mask(mask, self.batch_size, self.latent_shape[1]).to(self.device)

    def inpaint_conditioning(self, known: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        """The conditioning ``inpaint_mask`` ``(B, 1, L)`` and ``inpaint_masked_input`` ``(B, D, L)``."""
        channels, length = self.latent_shape
        if mask is None:
            mask = torch.zeros(self.batch_size, 1, length, device=self.device)
        if known is None:
            known = torch.zeros(self.batch_size, channels, length, device=self.device)
        return {MASK_ID: (mask, None), MASKED_ID: (known * mask, None)}

    def keep(self, known: Tensor | None, mask: Tensor | None) -> None:
        """Lead the model around the latents ``known (B, D, L)`` where ``mask (B, 1, L)`` keeps them."""
        if mask is not None and known is None:
            raise UsageError(
                "inpaint_mask: there is no inpaint_audio to keep parts of; give both, or neither"
            )
        self.kept = None if known is None or mask is None else (known, mask)

    def sample(
        self,
        noise: Tensor,
        tensors: Mapping[str, Any],
        negative: Mapping[str, Any],
        steps: int,
        cfg_scale: float,
        init: Tensor | None = None,
        init_noise_level: float = 1.0,
        noise_source: NoiseSource | None = None,
    ) -> Tensor:
        """Latents ``(B, D, L)`` from noise."""
        model, options = self.model, self.options
        known, mask = self.kept or (None, None)
        inputs = model.get_conditioning_inputs(tensors)
        if negative:
            inputs |= model.get_conditioning_inputs(negative, negative=True)
        return sample(
            model.model,
            noise,
            objective=model.diffusion_objective,
            sampler=options.sampler_type,
            steps=steps,
            sigma_min=options.sigma_min,
            sigma_max=options.sigma_max if init is None else init_noise_level,
            rho=options.rho,
            init_data=init,
            known=known,
            known_mask=mask,
            dist_shift=(model.sampling_dist_shift or model.dist_shift) if options.dist_shift else None,
            noise_source=noise_source,
            callback=options.callback,
            cfg_scale=cfg_scale,
            scale_phi=options.scale_phi,
            cfg_interval=options.cfg_interval,
            **options.projection,
            **inputs,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Audio ``(B, C, sample_size)``."""
        audio = latents if self.model.pretransform is None else self.model.pretransform.decode(latents)
        return audio[..., : self.sample_size].float()


def __getattr__(name: str) -> Any:
    """``generate_diffusion_uncond`` under its public path; its module stands on this one."""
    if name == "generate_diffusion_uncond":
        from stable_audio_tools.inference.unconditional import generate_diffusion_uncond

        return generate_diffusion_uncond
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
