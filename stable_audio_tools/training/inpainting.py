"""Training of models that fill in what is missing from a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.runtime.device import send
from stable_audio_tools.schema.conditioned import MASK_ID, MASKED_ID
from stable_audio_tools.schema.model import DiffusionCondModelConfig
from stable_audio_tools.schema.training import InpaintingConfig, InpaintMaskConfig
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.draws import Key


class DiffusionCondInpaintTrainer(DiffusionCondTrainer):
    """Trains a conditional model that also sees a masked clip and its mask, and regenerates the rest of it.

    The masks are drawn by key, within what is not padding; see :func:`random_masks`.
    """

    def __init__(
        self, model: ConditionedDiffusionModelWrapper, config: DiffusionCondModelConfig, **options: Any
    ) -> None:
        super().__init__(model, config, **options)
        given = [*model.input_concat_ids, *model.local_add_cond_ids]
        missing = [name for name in (MASK_ID, MASKED_ID) if name not in given]
        if missing:
            raise ConfigError(
                f"model.diffusion.input_concat_ids: {' and '.join(missing)} not found among {given};"
                f" an inpainting model needs {MASK_ID!r} and {MASKED_ID!r} there, or in local_add_cond_ids"
            )
        self.masks = (self.options.inpainting or InpaintingConfig()).mask_kwargs

    def conditioning(self, infos: Sequence[dict[str, Any]], latents: Tensor, key: Key) -> dict[str, Any]:
        """The network's conditioning inputs, the mask and what it leaves of the latents among them."""
        lengths = self.padding(infos, latents).sum(dim=1).long().tolist()
        draws = key.each("inpaint mask", len(lengths))
        mask = send(random_masks(lengths, latents.shape[-1], self.masks, draws), latents.device).to(latents)
        tensors = self.diffusion.conditioner(infos, self.device)
        return self.diffusion.get_conditioning_inputs(
            {**tensors, MASK_ID: [mask, None], MASKED_ID: [latents * mask, None]}
        )


def random_masks(
    lengths: Sequence[int], length: int, config: InpaintMaskConfig, draws: Sequence[torch.Generator]
) -> Tensor:
    """Masks ``(B, 1, length)`` to train on: 0 is to be regenerated, 1 is given.

    Of the three kinds, random segments cut out 1 to ``max_mask_segments`` pieces, each of at most the real
    length over their number, which may overlap; the full mask leaves nothing; the causal one keeps the
    beginning, of any length. Segments and causal masks stay within the real part of the clip.

    Args:
        lengths: of the real part of each item, in frames; the padding is behind it.
        length: of the items, in frames.
        config: the odds of the kinds.
        draws: a generator for each item.
    """
    return torch.stack(
        [_random_mask(real, length, config, own) for real, own in zip(lengths, draws, strict=True)]
    )


def _random_mask(real: int, length: int, config: InpaintMaskConfig, draws: torch.Generator) -> Tensor:
    mask = torch.ones(1, length)
    odds = torch.tensor(config.mask_type_probabilities)
    kind = int(torch.multinomial(odds, 1, generator=draws))
    if kind == 1:
        return torch.zeros(1, length)
    if real == 0:
        return mask
    if kind == 2:
        mask[:, _up_to(real, draws) : real] = 0
        return mask
    count = 1 + _up_to(config.max_mask_segments - 1, draws)
    longest = max(1, real // count)
    for _ in range(count):
        size = 1 + _up_to(longest - 1, draws)
        start = _up_to(real - size, draws)
        mask[:, start : start + size] = 0
    return mask


def _up_to(top: int, draws: torch.Generator) -> int:
    """A whole number from 0 to ``top``, both included."""
    return int(torch.randint(0, top + 1, (), generator=draws))
