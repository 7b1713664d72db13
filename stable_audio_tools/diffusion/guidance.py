"""Classifier-free guidance (Ho and Salimans 2022) and the parts around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.runtime.device import send


def combine(conditional: Tensor, unconditional: Tensor, cfg_scale: float, scale_phi: float = 0.0) -> Tensor:
    """``uncond + (cond - uncond) * cfg_scale``, pulled back toward the spread of ``cond`` by ``scale_phi``.

    Args:
        conditional: network output with the conditioning, ``(B, C, L)``.
        unconditional: network output without it, ``(B, C, L)``.
        cfg_scale: 1 is no guidance.
        scale_phi: 0 to 1. The standard deviation over channels of the guided output is moved this far toward
            that of the conditional output (Lin et al. 2024, section 3.4).
    """
    guided = unconditional + (conditional - unconditional) * cfg_scale
    if scale_phi == 0.0:
        return guided
    ratio = conditional.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True)
    return scale_phi * guided * ratio + (1 - scale_phi) * guided


def limit_norm(difference: Tensor, threshold: float, padding_mask: Tensor | None = None) -> Tensor:
    """Shorten each clip's guidance to a norm of ``threshold`` where it is longer (Sadat et al. 2024).

    Args:
        difference: what the conditioning changes in the clean latents, ``(B, C, L)``.
        threshold: the longest norm over channels and time.
        padding_mask: ``(B, L)``; frames where it is False do not count.
    """
    counted = difference if padding_mask is None else difference * padding_mask.unsqueeze(1)
    norm = torch.linalg.vector_norm(counted, dim=(-2, -1), keepdim=True)
    return difference * (threshold / norm).clamp(max=1.0)


def project_out(
    difference: Tensor, clean: Tensor, amount: float = 1.0, padding_mask: Tensor | None = None
) -> Tensor:
    """Take the part that is parallel to ``clean`` out of the guidance: it brightens and overdrives and says
    nothing about the prompt (Sadat et al. 2024, adaptive projected guidance).

    Args:
        difference: what the conditioning changes, ``(B, C, L)``, in clean latents or any multiple of them.
        clean: clean latents that the conditional answer implies, ``(B, C, L)``.
        amount: 0 leaves the difference as it is, 1 keeps only the orthogonal part.
        padding_mask: ``(B, L)``; frames where it is False do not count, and get no guidance where 1.
    """
    direction = clean.double()
    if padding_mask is not None:
        direction = direction * padding_mask.unsqueeze(1)
    norm = torch.linalg.vector_norm(direction, dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    direction = direction / norm
    along = (difference * direction).sum(dim=(-2, -1), keepdim=True) * direction
    orthogonal = difference - along
    if padding_mask is not None:
        orthogonal = orthogonal * padding_mask.unsqueeze(1)
    return (amount * orthogonal + (1 - amount) * difference).to(difference.dtype)


def negative_or_null(
    cond: Tensor, negative: Tensor | None = None, negative_mask: Tensor | None = None
) -> Tensor:
    """What stands for "no prompt": zeros, or the negative prompt with its masked tokens set to zero.

    Args:
        cond: the conditioning tokens, ``(B, M, D)``; only their shape is used.
        negative: the tokens of the negative prompt, ``(B, M, D)``.
        negative_mask: ``(B, M)``, true where a token of the negative prompt counts.
    """
    if negative is None:
        return torch.zeros_like(cond)
    if negative_mask is None:
        return negative
    return torch.where(negative_mask.bool().unsqueeze(-1), negative, torch.zeros_like(negative))


def drop_conditioning(
    cond: Tensor, probability: float, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Set the whole conditioning of a clip to zero with this probability, so that guidance has an
    unconditional side.

    The draw is made on the generator's own device (the CPU where there is none), one number per clip, so that
    a seed means the same on every machine. With one generator per clip it does not depend on its neighbours.
    """
    if isinstance(generator, Sequence):
        rows = [torch.rand((), generator=own, device=own.device) for own in generator]
        dropped = torch.stack(rows) < probability
    else:
        device = "cpu" if generator is None else generator.device
        dropped = torch.rand(len(cond), generator=generator, device=device) < probability
    return torch.where(
        send(dropped, cond.device).view(-1, *[1] * (cond.ndim - 1)), torch.zeros_like(cond), cond
    )
