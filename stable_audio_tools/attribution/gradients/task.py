"""What is differentiated: one measured forward pass of a conditioned diffusion model at one noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.gradients.measurements import measure, stretches
from stable_audio_tools.attribution.gradients.schedule import timesteps
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.data.latent_files import latent_mask
from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.diffusion.objectives import get_objective
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.device import send
from stable_audio_tools.runtime.seeds import generator

Conditioning = Mapping[str, tuple[Tensor, Tensor]]
"""Embeddings (B, S, D) and mask (B, S) by conditioning id."""


@dataclass(frozen=True)
class LatentBatch:
    """Samples ready for the diffusion network.

    Attributes:
        sample_ids: one per sample; keys whatever is drawn per sample.
        latents: (B, C, L).
        mask: (B, 1, L), 1 where there is audio.
        conditioning: the conditioners' output.
    """

    sample_ids: tuple[str, ...]
    latents: Tensor
    mask: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: slice) -> LatentBatch:
        return LatentBatch(
            self.sample_ids[index],
            self.latents[index],
            self.mask[index],
            {key: (value[index], mask[index]) for key, (value, mask) in self.conditioning.items()},
        )


class DiffusionTask:
    """K measured passes of a conditioned diffusion model; pass k of a sample is the same in any batch.

    Args:
        model: a ``ConditionedDiffusionModelWrapper``.
        settings: measurement, timesteps, noise.
        stored: what comes in is stored latents.
    """

    def __init__(self, model: Any, settings: FeatureSettings, stored: bool = False) -> None:
        self.model = model
        self.stored = stored
        self.device: torch.device = next(model.model.parameters()).device
        self.settings = settings = settings.on(self.device)
        self.objective = get_objective(model.diffusion_objective)
        self.times = timesteps(settings.t_strategy, settings.K, settings.num_train_steps)
        self.passes = [partial(self.measure, k=k) for k in range(settings.K)]

    def prepare(self, audio: Tensor, infos: Sequence[Mapping[str, Any]]) -> LatentBatch:
        """Encode audio (B, C, T), or take stored latents, and condition on the metadata.

        One sample at a time: a text encoder in half precision rounds differently beside longer prompts. The
        bottleneck's draw is shared or per track like the noise, so a copy has the latents of its original.
        """
        sample_ids = tuple(str(info["sample_id"]) for info in infos)
        with torch.no_grad():
            latents = torch.cat(
                [
                    self._encode(send(audio[i : i + 1], self.device), sample_id)
                    for i, sample_id in enumerate(sample_ids)
                ]
            )
            singles = [self._condition(info) for info in infos]
        conditioning = {
            key: (torch.cat([c[key][0] for c in singles]), torch.cat([c[key][1] for c in singles]))
            for key in singles[0]
        }
        padding = send(torch.stack([torch.as_tensor(info["padding_mask"]) for info in infos]), self.device)
        return LatentBatch(
            sample_ids, latents, latent_mask(padding, latents.shape[-1])[:, None], conditioning
        )

    def _encode(self, audio: Tensor, sample_id: str) -> Tensor:
        if self.model.pretransform is None:
            return audio
        draw = generator("attribution-encode", self.settings.e_seed, *self._own(sample_id))
        if self.stored:
            return self.model.pretransform.read_stored(audio, [draw])
        return self.model.pretransform.encode(audio, generator=[draw])

    def _own(self, sample_id: str) -> tuple[str, ...]:
        """What a draw is keyed by besides its purpose: nothing where it is shared by all samples."""
        return () if self.settings.noise == "shared" else (sample_id,)

    def _condition(self, info: Mapping[str, Any]) -> Any:
        try:
            return self.model.conditioner([dict(info)], self.device)
        except DataError as error:
            raise DataError(f"{info.get('path', info['sample_id'])}: {error}") from error

    def measure(self, batch: LatentBatch, k: int) -> Tensor:
        """The measurements of each sample at timestep k, (B, M) float32."""
        output, target = self._predict(batch, k)
        return measure(self.settings.f, output, target, batch.mask)

    def measure_stretches(self, batch: LatentBatch, k: int, count: int) -> Tensor:
        """The same over each of ``count`` stretches of a sample, one after the other: (B, count M)."""
        output, target = self._predict(batch, k)
        masks = stretches(batch.mask, count).unbind(1)
        return torch.cat([measure(self.settings.f, output, target, mask[:, None]) for mask in masks], dim=1)

    def _predict(self, batch: LatentBatch, k: int) -> tuple[Tensor, Tensor]:
        """What the network says at timestep k, in float32, and what it should say."""
        latents = batch.latents
        t = torch.full((len(batch),), self.times[k], device=latents.device)
        noise = self._noise(batch, k)
        inputs = self.model.get_conditioning_inputs(
            {key: list(pair) for key, pair in batch.conditioning.items()}
        )
        self._drop_guidance(inputs, batch, k)
        with self._autocast(latents.device):
            output = self.model.model(self.objective.add_noise(latents, noise, t), t, **inputs)
        return output.float(), self.objective.target(latents, noise, t)

    def _noise(self, batch: LatentBatch, k: int) -> Tensor:
        """Noise of pass k: one draw for everyone, or one per sample; never one per place in the batch."""
        shape, device = batch.latents.shape[1:], batch.latents.device
        key = ("attribution-noise", self.settings.e_seed, k)
        if self.settings.noise == "shared":
            return keyed_noise(shape, *key, device=device).expand_as(batch.latents)
        return torch.stack(
            [keyed_noise(shape, *key, *self._own(name), device=device) for name in batch.sample_ids]
        )

    def _drop_guidance(self, inputs: dict[str, Any], batch: LatentBatch, k: int) -> None:
        """Leave out the conditioning of some samples as training does, by a draw of the sample's own."""
        probability = self.settings.cfg_dropout_prob
        if probability == 0:
            return
        for name in ("cross_attn_cond", "prepend_cond"):
            if inputs.get(name) is None:
                continue
            key = ("attribution-cfg-dropout", self.settings.e_seed, k, name)
            draws = [torch.rand((), generator=generator(*key, sample_id)) for sample_id in batch.sample_ids]
            keep = (torch.stack(draws) >= probability).to(inputs[name].device)
            inputs[name] = inputs[name] * keep[:, None, None]

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)
