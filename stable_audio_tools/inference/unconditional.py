"""From noise to audio, with nothing to say what it should be. The signature is the documented one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.noise import NoiseSource
from stable_audio_tools.diffusion.samplers import sample
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.generation import (
    RANDOM_SEED,
    GenerationRun,
    InputAudio,
    Metadata,
    SamplerOptions,
)

_OF_GUIDANCE = ("scale_phi", "cfg_interval", "cfg_norm_threshold", "apg_scale")


@torch.no_grad()
def generate_diffusion_uncond(
    model: Any,
    steps: int = 250,
    batch_size: int = 1,
    sample_size: int = 2097152,
    seed: int = RANDOM_SEED,
    device: str | torch.device = "cuda",
    init_audio: InputAudio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    **sampler_kwargs: Any,
) -> Tensor:
    """Generate audio without conditioning, from scratch or as a variation of ``init_audio``.

    The starting noise is ``torch.randn`` right after ``torch.manual_seed(seed)``, so on a CPU a seed gives
    the clip that it gives in the public package, at the lengths that the model can make.

    Args:
        model: a ``DiffusionModelWrapper`` on ``device``.
        steps: sampler steps.
        batch_size: clips to make, B.
        sample_size: length of each clip in samples. It is rendered whole: rounded up to what the model can
            make, and cut.
        seed: 0 to 2^63 - 1, or -1 for a random one, which is said.
        device: where the model is.
        init_audio: sample rate and audio to vary, mono or stereo, one for all clips or one each.
        init_noise_level: noise put on ``init_audio``: a sigma for samplers that walk in sigma, else a time
            in (0, 1].
        return_latents: return latents ``(B, D, L)`` and no audio.
        **sampler_kwargs: see :class:`~stable_audio_tools.inference.generation.SamplerOptions`, without those
            of guidance.

    Returns:
        Audio ``(B, C, sample_size)`` in float32, about [-1, 1], not clipped.

    Raises:
        UsageError: an argument does not fit; the message says which.
    """
    for name in _OF_GUIDANCE:
        if name in sampler_kwargs:
            raise UsageError(f"{name}: an unconditional model has no guidance; leave it out")
    run = UnconditionalRun(model, batch_size, sample_size, device, SamplerOptions.parse(sampler_kwargs))
    noise = run.seeded_noise(seed)
    init = None if init_audio is None else run.encode(init_audio, "init_audio")
    latents = run.sample(noise, {}, {}, steps, init=init, init_noise_level=init_noise_level)
    return latents if return_latents else run.decode(latents)


class UnconditionalRun(GenerationRun):
    """A batch of a model that takes no conditioning: there is none to embed, and none is used."""

    def __init__(
        self,
        model: Any,
        batch_size: int,
        sample_size: int,
        device: str | torch.device,
        options: SamplerOptions,
    ) -> None:
        network = model.config.model.config
        beside = getattr(network, "cond_dim", 0) or getattr(network, "input_concat_dim", 0)
        if beside:
            raise UsageError(
                f"this model takes {beside} channels beside its input, and nothing here makes them;"
                " call it by hand, as model(x, t, ...)"
            )
        super().__init__(model, batch_size, sample_size, device, options)
        self.padded_size = max(self.padded_size, model.min_length)
        self.latent_shape = (model.io_channels, self.padded_size // self.ratio)

    def embed(
        self, metadata: Metadata | Mapping[str, Any] | None, tensors: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Nothing, whatever is said."""
        return {}

    def sample(
        self,
        noise: Tensor,
        tensors: Mapping[str, Any],
        negative: Mapping[str, Any],
        steps: int,
        cfg_scale: float = 1.0,
        init: Tensor | None = None,
        init_noise_level: float = 1.0,
        noise_source: NoiseSource | None = None,
    ) -> Tensor:
        """Latents ``(B, D, L)`` from noise."""
        options = self.options
        return sample(
            self._network,
            noise,
            objective=self.model.diffusion_objective,
            sampler=options.sampler_type,
            steps=steps,
            sigma_min=options.sigma_min,
            sigma_max=options.sigma_max if init is None else init_noise_level,
            rho=options.rho,
            init_data=init,
            noise_source=noise_source,
            callback=options.callback,
        )

    def _network(self, x: Tensor, t: Tensor, return_info: bool = False) -> Any:
        """The network as samplers of guided models call it."""
        output = self.model.model(x, t)
        return (output, {}) if return_info else output
