"""The diffusion transformer over latents (Peebles and Xie 2023; Evans et al. 2024, Stable Audio Open).

Shapes: B batch, C latent channels, L latent frames, M conditioning tokens, P prepended tokens, D width.
Attribute names are those of the public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.diffusion.guidance import (
    combine,
    drop_conditioning,
    limit_norm,
    negative_or_null,
    project_out,
)
from stable_audio_tools.diffusion.objectives import get_objective
from stable_audio_tools.diffusion.timesteps import normalized_log_snr
from stable_audio_tools.nn.embeddings import ExpoFourierFeatures, FourierFeatures
from stable_audio_tools.nn.transformer import BlockOptions, ContinuousTransformer, TransformerOptions
from stable_audio_tools.schema.networks import DiTConfig


class DiffusionTransformer(nn.Module):
    """Predicts the objective's target from noisy latents, a time and conditioning.

    Conditioning comes in by five ways: tokens to attend to (``cross_attn_cond``), a vector per clip
    (``global_embed``, with the time), tokens in front of the latents (``prepend_cond``), channels beside them
    (``input_concat_cond``) and channels that every block adds to them (``local_add_cond``).

    Args:
        config: the ``config`` of a ``dit`` block.
        objective: name of the training objective; it tells which sigma ``cfg_interval`` speaks of.
    """

    def __init__(self, config: DiTConfig, objective: str = "v") -> None:
        super().__init__()
        self.config = config
        self.objective = get_objective(objective)
        dim = config.embed_dim
        time_dim, concat_dim = dim, config.input_concat_dim
        if config.timestep_cond_type == "input_concat" and config.timestep_embed_dim is not None:
            time_dim = config.timestep_embed_dim
            concat_dim += time_dim

        features = config.timestep_features_dim
        self.timestep_features: nn.Module
        if config.timestep_features_type == "expo":
            self.timestep_features = ExpoFourierFeatures(features)
        else:
            self.timestep_features = FourierFeatures(1, features)
        self.to_timestep_embed = _two_layers(features, time_dim, bias=True)
        if config.context_dim is not None:
            self.to_cond_embed = _two_layers(config.cond_token_dim, config.context_dim)
        if config.global_cond_dim:
            self.to_global_embed = _two_layers(config.global_cond_dim, dim)
        if config.prepend_cond_dim:
            self.to_prepend_embed = _two_layers(config.prepend_cond_dim, dim)

        channels_in, channels_out = config.io_channels + concat_dim, config.io_channels
        self.transformer = ContinuousTransformer(
            transformer_options(config), channels_in * config.patch_size, channels_out * config.patch_size
        )
        self.preprocess_conv = nn.Conv1d(channels_in, channels_in, 1, bias=False)
        self.postprocess_conv = nn.Conv1d(channels_out, channels_out, 1, bias=False)
        nn.init.zeros_(self.preprocess_conv.weight)
        nn.init.zeros_(self.postprocess_conv.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_cond_mask: Tensor | None = None,
        negative_cross_attn_cond: Tensor | None = None,
        negative_cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        local_add_cond: Tensor | None = None,
        global_embed: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
        cfg_scale: float = 1.0,
        cfg_dropout_prob: float = 0.0,
        scale_phi: float = 0.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        cfg_norm_threshold: float = 0.0,
        apg_scale: float = 0.0,
        mask: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_info: bool = False,
    ) -> Any:
        """The network's answer for noisy latents, with guidance where ``cfg_scale`` is not 1.

        Args:
            x: noisy latents, ``(B, C, L)``.
            t: times in [0, 1], ``(B,)``.
            cross_attn_cond: tokens ``(B, M, cond_token_dim)``.
            cross_attn_cond_mask: ``(B, M)``. Not used, as in the public code: the text conditioner sets
                padding tokens to zero instead, and the published weights were trained so.
            negative_cross_attn_cond: tokens to steer away from, ``(B, M, cond_token_dim)``.
            negative_cross_attn_mask: ``(B, M)``; tokens where it is false count as absent.
            input_concat_cond: ``(B, input_concat_dim, L')``, stretched to L by nearest neighbour.
            local_add_cond: ``(B, local_add_cond_dim, L')``, stretched in the same way.
            global_embed: ``(B, global_cond_dim)``.
            prepend_cond: ``(B, P, prepend_cond_dim)``.
            prepend_cond_mask: ``(B, P)``. Not used, for the same reason.
            padding_mask: ``(B, L)``, False where a frame is padding: no other frame is changed by it.
            cfg_scale: strength of guidance. It applies to tokens and prepended tokens; the conditioning that
                is global, concatenated or added is the same on both sides.
            cfg_dropout_prob: chance that a clip's tokens are left out, for training. Prepended tokens are
                drawn for on their own.
            scale_phi: see :func:`~stable_audio_tools.diffusion.guidance.combine`.
            cfg_interval: sigmas between which guidance acts (Kynkäänniemi et al. 2024).
            cfg_norm_threshold: see :func:`~stable_audio_tools.diffusion.guidance.limit_norm`; 0 is no limit.
            apg_scale: see ``amount`` of :func:`~stable_audio_tools.diffusion.guidance.project_out`.
            mask: ``(B, L)``, true where there is audio. Not used here; the training loss uses it.
            generator: for ``cfg_dropout_prob``: one for the batch, one per clip, or None for torch's global
                one.
            return_info: return ``(output, info)`` too, where ``info["uncond_output"]`` is the answer
                without the conditioning if guidance acted.

        Returns:
            ``(B, C, L)`` in the dtype of the weights.
        """
        dtype = self.preprocess_conv.weight.dtype
        x = x.to(dtype)
        tokens, negative, beside, added, global_embed, prepend_cond = (
            None if cond is None else cond.to(dtype)
            for cond in (
                cross_attn_cond,
                negative_cross_attn_cond,
                input_concat_cond,
                local_add_cond,
                global_embed,
                prepend_cond,
            )
        )
        if cfg_dropout_prob > 0:
            if tokens is not None:
                tokens = drop_conditioning(tokens, cfg_dropout_prob, generator)
            if prepend_cond is not None:
                prepend_cond = drop_conditioning(prepend_cond, cfg_dropout_prob, generator)

        guided = self._guided_clips(t, cfg_interval)
        has_prompt = tokens is not None or prepend_cond is not None
        if cfg_scale == 1.0 or not has_prompt or guided is False:
            output = self._predict(x, t, tokens, beside, added, global_embed, prepend_cond, padding_mask)
            return (output, {}) if return_info else output

        if tokens is not None:
            tokens = torch.cat([tokens, negative_or_null(tokens, negative, negative_cross_attn_mask)])
        if prepend_cond is not None:
            prepend_cond = torch.cat([prepend_cond, torch.zeros_like(prepend_cond)])
        both = self._predict(
            torch.cat([x, x]),
            torch.cat([t, t]),
            tokens,
            _twice(beside),
            _twice(added),
            _twice(global_embed),
            prepend_cond,
            _twice(padding_mask),
        )
        conditional, unconditional = both.chunk(2)
        against = self._limited(x, t, conditional, unconditional, cfg_norm_threshold, apg_scale, padding_mask)
        output = combine(conditional, against, cfg_scale, scale_phi)
        if isinstance(guided, Tensor):
            output = torch.where(guided.view(-1, 1, 1), output, conditional)
        return (output, {"uncond_output": unconditional}) if return_info else output

    def _limited(
        self,
        x: Tensor,
        t: Tensor,
        conditional: Tensor,
        unconditional: Tensor,
        cfg_norm_threshold: float,
        apg_scale: float,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """The unconditional answer, moved so that guidance away from it stays within its limits.

        Both answers differ from the clean latents that they imply by the same factor, so a projection
        of one is a projection of the other, and nothing is divided by a sigma that may be 0.
        """
        if cfg_norm_threshold <= 0 and apg_scale <= 0:
            return unconditional
        difference = conditional - unconditional
        if cfg_norm_threshold > 0:
            sigma = self.objective.alpha_sigma(t)[1].view(-1, 1, 1).clamp_min(1e-8)
            difference = limit_norm(difference * sigma, cfg_norm_threshold, padding_mask) / sigma
        if apg_scale > 0:
            clean = self.objective.predicted_clean(x, conditional, t)
            difference = project_out(difference, clean, apg_scale, padding_mask)
        return conditional - difference.to(conditional.dtype)

    def _guided_clips(self, t: Tensor, interval: tuple[float, float]) -> bool | Tensor:
        """Which clips guidance acts on: all, none, or ``(B,)`` booleans where the clips' times differ."""
        low, high = interval
        if low <= 0 and high >= 1:
            return True  # without waiting for the device
        _, sigma = self.objective.alpha_sigma(t)
        inside = (low <= sigma) & (sigma <= high)
        if inside.all():
            return True
        return inside if inside.any() else False

    def _predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None,
        beside: Tensor | None,
        added: Tensor | None,
        global_embed: Tensor | None,
        prepend_cond: Tensor | None,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """One pass through the network, without guidance."""
        length = x.shape[-1]
        context = None if tokens is None else self.to_cond_embed(tokens)
        prepended = [] if prepend_cond is None else [self.to_prepend_embed(prepend_cond)]
        if global_embed is not None:
            global_embed = self.to_global_embed(global_embed)
        if beside is not None:
            x = torch.cat([x, _stretch(beside, length)], dim=1)

        time = self._embed_time(t).to(x.dtype)
        if self.config.timestep_cond_type == "global":
            global_embed = time if global_embed is None else global_embed + time
        else:
            x = torch.cat([x, time.unsqueeze(-1).expand(-1, -1, length)], dim=1)
        if self.config.global_cond_type == "prepend" and global_embed is not None:
            prepended.append(global_embed.unsqueeze(1))

        x = self.preprocess_conv(x) + x
        out = self.transformer(
            self._patch(x),
            context=context,
            prepend_embeds=torch.cat(prepended, dim=1) if prepended else None,
            global_cond=global_embed,
            local_cond=None if added is None else _stretch(added, length).transpose(1, 2),
            padding_mask=None if padding_mask is None else self._patch_mask(padding_mask),
        )
        output = self._unpatch(out)[..., :length]
        return self.postprocess_conv(output) + output

    def _embed_time(self, t: Tensor) -> Tensor:
        """Times ``(B,)`` as ``(B, D)``."""
        if self.config.timestep_features_logsnr:
            t = normalized_log_snr(t)
        return self.to_timestep_embed(
            self.timestep_features(t.to(self.preprocess_conv.weight.dtype)[:, None])
        )

    def _patch(self, x: Tensor) -> Tensor:
        """``(B, C, L)`` to tokens ``(B, L / p, C p)``, zeros added where p does not divide L."""
        size = self.config.patch_size
        x = F.pad(x, (0, -x.shape[-1] % size))
        return x.unflatten(-1, (-1, size)).transpose(1, 2).flatten(2)

    def _patch_mask(self, mask: Tensor) -> Tensor:
        """``(B, L)`` to tokens ``(B, L / p)``: a token is real where any of its frames is."""
        size = self.config.patch_size
        return F.pad(mask.bool(), (0, -mask.shape[-1] % size)).unflatten(-1, (-1, size)).any(dim=-1)

    def _unpatch(self, tokens: Tensor) -> Tensor:
        """The way back: ``(B, N, C p)`` to ``(B, C, N p)``."""
        return tokens.unflatten(-1, (-1, self.config.patch_size)).transpose(1, 2).flatten(2)


def transformer_options(config: DiTConfig) -> TransformerOptions:
    """The transformer that ``config`` describes."""
    block = BlockOptions(
        dim=config.embed_dim,
        head_dim=config.head_dim,
        context_dim=config.context_dim,
        causal=config.causal,
        modulated=config.global_cond_type == "adaLN",
        local_dim=config.local_add_cond_dim,
        zero_init=config.zero_init_branch_outputs,
        conformer=config.conformer,
        layer_scale=config.layer_scale,
        norm_type=config.branch_norm,
        attention=config.attn_kwargs,
        feed_forward=config.ff_kwargs,
        norm=config.norm_kwargs,
    )
    return TransformerOptions(
        block,
        depth=config.depth,
        global_dim=config.embed_dim,
        last_cross_attention=config.final_cross_attn_ix,
        rotary=config.rotary_pos_emb,
        sinusoidal=config.use_sinusoidal_emb,
        abs_positions=config.abs_pos_emb_max_length if config.use_abs_pos_emb else 0,
        num_memory_tokens=config.num_memory_tokens,
        sliding_window=config.sliding_window,
    )


def _two_layers(width_in: int, width_out: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, width_out, bias=bias), nn.SiLU(), nn.Linear(width_out, width_out, bias=bias)
    )


def _stretch(x: Tensor, length: int) -> Tensor:
    return x if x.shape[-1] == length else F.interpolate(x, length, mode="nearest")


def _twice(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.cat([x, x])
