"""A latent diffusion model with everything it needs: network, conditioners and pretransform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.timesteps import DistributionShift
from stable_audio_tools.errors import DataError
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.models.unet1d import DAU1dWrapper
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.model import ConditionedDAU1d, ConditionedDiT, DiffusionCondModelConfig
from stable_audio_tools.schema.networks import DiTConfig
from stable_audio_tools.schema.unets import DAU1dConfig

Conditions: TypeAlias = "Mapping[str, Condition | Sequence[Tensor | None]]"
"""By id: embeddings ``(B, S, D)`` (or ``(B, D)`` for one token) and their mask ``(B, S)`` or None."""


class DiTWrapper(nn.Module):
    """The transformer under the public key ``model``, with conditioning by the public argument names."""

    def __init__(self, config: DiTConfig, objective: str = "v") -> None:
        super().__init__()
        self.model = DiffusionTransformer(config, objective)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        negative_cross_attn_cond: Tensor | None = None,
        negative_cross_attn_mask: Tensor | None = None,
        negative_global_cond: Tensor | None = None,
        negative_input_concat_cond: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        local_add_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        **guidance: Any,
    ) -> Any:
        """The transformer's output ``(B, C, L)`` for ``x`` ``(B, C, L)`` at times ``t`` ``(B,)``.

        The network steers away from tokens only, so the negative global and input conditioning go unused, as
        in the public code. ``guidance`` are the remaining arguments of :class:`DiffusionTransformer`.
        """
        return self.model(
            x,
            t,
            cross_attn_cond=cross_attn_cond,
            cross_attn_cond_mask=cross_attn_mask,
            negative_cross_attn_cond=negative_cross_attn_cond,
            negative_cross_attn_mask=negative_cross_attn_mask,
            input_concat_cond=input_concat_cond,
            local_add_cond=local_add_cond,
            global_embed=global_cond,
            prepend_cond=prepend_cond,
            prepend_cond_mask=prepend_cond_mask,
            **guidance,
        )


NETWORKS: dict[type[Config], Callable[[Any, str], nn.Module]] = {
    ConditionedDiT: DiTWrapper,
    ConditionedDAU1d: DAU1dWrapper,
}
"""By the class of the ``diffusion`` block: what makes a network of its ``config`` and its objective."""


class ConditionedDiffusionModelWrapper(nn.Module):
    """A conditional diffusion model over latents, or over audio where there is no pretransform.

    Attributes:
        config: the whole config it was built from.
        model: the diffusion network, called as ``model(x, t, **get_conditioning_inputs(tensors))``.
        conditioner: metadata to conditioning tensors.
        pretransform: audio to latents and back, or None.
        dist_shift: how timesteps shift with length in training, or None.
        sampling_dist_shift: how levels shift in sampling, or None where that follows ``dist_shift``.
        io_channels: channels of ``x``.
        min_input_length: audio samples that the length of ``x`` must be a multiple of.
    """

    def __init__(self, config: DiffusionCondModelConfig) -> None:
        super().__init__()
        diffusion, pretransform = config.model.diffusion, config.model.pretransform
        self.config = config
        self.model = NETWORKS[type(diffusion)](diffusion.config, diffusion.diffusion_objective)
        codec = None if pretransform is None else create_pretransform(pretransform, config.sample_rate)
        self.conditioner = MultiConditioner(config.model.conditioning, config.sample_rate, codec)
        self.pretransform = codec
        self.io_channels = config.model.io_channels
        self.sample_rate = config.sample_rate
        self.diffusion_objective = diffusion.diffusion_objective
        shift = diffusion.distribution_shift_options
        self.dist_shift = None if shift is None else DistributionShift(shift)
        levels = diffusion.sampling_distribution_shift_options
        self.sampling_dist_shift = None if levels is None else DistributionShift(levels, of_levels=True)
        self.cross_attn_cond_ids = diffusion.cross_attention_cond_ids
        self.global_cond_ids = diffusion.global_cond_ids
        self.input_concat_ids = diffusion.input_concat_ids
        self.local_add_cond_ids = diffusion.local_add_cond_ids
        self.prepend_cond_ids = diffusion.prepend_cond_ids
        ratio = self.pretransform.downsampling_ratio if self.pretransform is not None else 1
        self.min_input_length = config.model.min_input_length or ratio * _frames_per_token(diffusion.config)

    def get_conditioning_inputs(
        self, conditioning_tensors: Conditions, negative: bool = False
    ) -> dict[str, Any]:
        """What the network takes, put together from conditioning by id.

        Cross-attention and prepended ids are joined along the sequence, global, input and added ids along the
        channels. With ``negative`` the keys are those of the negative prompt.

        Raises:
            DataError: an id that the config asks for is missing.
        """
        cross, cross_mask = join_tokens(conditioning_tensors, self.cross_attn_cond_ids)
        joined_global = join_vectors(conditioning_tensors, self.global_cond_ids)
        concat = self._channels(conditioning_tensors, self.input_concat_ids, dim=1)
        if negative:
            return {
                "negative_cross_attn_cond": cross,
                "negative_cross_attn_mask": cross_mask,
                "negative_global_cond": joined_global,
                "negative_input_concat_cond": concat,
            }
        prepend, prepend_mask = join_tokens(conditioning_tensors, self.prepend_cond_ids)
        return {
            "cross_attn_cond": cross,
            "cross_attn_mask": cross_mask,
            "global_cond": joined_global,
            "input_concat_cond": concat,
            "local_add_cond": self._channels(conditioning_tensors, self.local_add_cond_ids, dim=1),
            "prepend_cond": prepend,
            "prepend_cond_mask": prepend_mask,
        }

    def forward(self, x: Tensor, t: Tensor, cond: Conditions, **guidance: Any) -> Any:
        """:meth:`DiTWrapper.forward` with conditioning by id."""
        return self.model(x, t, **self.get_conditioning_inputs(cond), **guidance)

    def _channels(self, tensors: Conditions, ids: Sequence[str], dim: int) -> Tensor | None:
        """The tensors of all ``ids`` joined along ``dim``; None without ids."""
        return torch.cat([_get(tensors, key)[0] for key in ids], dim=dim) if ids else None


def join_tokens(tensors: Conditions, ids: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """Tokens ``(B, S, D)`` of all ``ids`` one after the other, and their mask; None without ids."""
    if not ids:
        return None, None
    tokens, masks = [], []
    for key in ids:
        embeddings, mask = _get(tensors, key)
        embeddings = embeddings.unsqueeze(1) if embeddings.ndim == 2 else embeddings
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        tokens.append(embeddings)
        masks.append(mask.to(device=embeddings.device, dtype=torch.bool))
    return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)


def join_vectors(tensors: Conditions, ids: Sequence[str]) -> Tensor | None:
    """The tensors of all ``ids``, ``(B, D)`` or ``(B, 1, D)`` each, joined to ``(B, sum of D)``."""
    vectors = []
    for key in ids:
        embeddings = _get(tensors, key)[0]
        if embeddings.ndim == 3 and embeddings.shape[1] != 1:
            raise DataError(
                f"conditioning {key!r} is global: expected one vector for each clip, found"
                f" {embeddings.shape[1]}; list it under cross_attention_cond_ids or prepend_cond_ids"
            )
        vectors.append(embeddings.flatten(1))
    return torch.cat(vectors, dim=1) if vectors else None


def _frames_per_token(config: DiTConfig | DAU1dConfig) -> int:
    """What the length of ``x`` must be a multiple of."""
    return config.patch_size if isinstance(config, DiTConfig) else config.factor


def _get(tensors: Conditions, key: str) -> tuple[Tensor, Tensor | None]:
    if key not in tensors:
        raise DataError(
            f"conditioning {key!r} is missing: this model needs it, and was given"
            f" {', '.join(sorted(tensors)) or 'nothing'}; pass it in the metadata where it has a conditioner,"
            " else as a tensor"
        )
    entry = tensors[key]
    embeddings, mask = (*entry, None)[:2]
    if embeddings is None:
        raise DataError(f"conditioning {key!r} holds no tensor")
    return embeddings, mask
