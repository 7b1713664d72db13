"""Codes step by step: the loop that continues a prompt, with a cache and with guidance.

Shapes: B batch, Q codebooks, T frames, P frames of the prompt, S steps of the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.language_model.network import AudioLanguageModel
from stable_audio_tools.models.language_model.sampling import TokenSampling, sample_tokens
from stable_audio_tools.runtime.progress import track

UNKNOWN = -1
"""Stands where a code is to be generated."""

Inputs = Mapping[str, Tensor | None]
"""Conditioning by the argument names of :meth:`AudioLanguageModel.forward`."""


@torch.no_grad()
def generate_codes(
    model: AudioLanguageModel,
    prompt: Tensor,
    frames: int,
    inputs: Inputs,
    *,
    sampling: TokenSampling,
    generators: Sequence[torch.Generator],
    cfg_scale: float = 1.0,
    null_inputs: Inputs | None = None,
    use_cache: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Continue ``prompt (B, Q, P)`` to codes ``(B, Q, T)``, which begin with it.

    Args:
        frames: T.
        inputs: conditioning.
        generators: one per clip.
        cfg_scale: how far to go from the prediction under ``null_inputs`` towards the one under ``inputs``
            (Ho and Salimans 2022; Copet et al. 2023 for tokens). 1 is no guidance.
        null_inputs: what guidance leads away from; None is no guidance.
        use_cache: compute each step once. Without it every step is computed again for every token: slower,
            and the same up to rounding.
        callback: called with steps done and steps in all.
    """
    codes = prompt.new_full((*prompt.shape[:2], frames), UNKNOWN)
    codes[:, :, : prompt.shape[2]] = prompt
    pattern = model.patterns.get_pattern(frames, codes.device)
    sequence = pattern.build_sequence(codes, model.masked_token_id)
    wanted = pattern.build_sequence(codes[:1], 0)[0] == UNKNOWN  # the same for every clip
    steps = wanted.any(dim=0).nonzero()[:, 0].tolist()
    guided = null_inputs is not None and cfg_scale != 1
    if null_inputs is not None and guided:
        inputs = {key: _both(value, null_inputs[key]) for key, value in inputs.items()}
    cache = model.backbone.new_cache() if use_cache else None
    seen = 0
    for done, step in enumerate(track(steps, "generating tokens"), start=1):
        given = sequence[:, :, seen:step]
        logits = model(torch.cat([given, given]) if guided else given, cache=cache, **inputs)[:, :, -1]
        if guided:
            conditional, null = logits.chunk(2)
            logits = null + (conditional - null) * cfg_scale
        tokens = sample_tokens(logits, sampling, generators)
        sequence[:, :, step] = torch.where(wanted[:, step], tokens, sequence[:, :, step])
        seen = step if cache is not None else 0
        if callback is not None:
            callback(done, len(steps))
    return pattern.revert_sequence(sequence, UNKNOWN)[0]


def check_prompt(prompt: Tensor, num_quantizers: int, codebook_size: int, frames: int) -> None:
    """Refuse codes that do not fit the model or leave nothing to generate.

    Raises:
        UsageError: the shape, the length or a value is wrong.
    """
    if prompt.ndim != 3 or prompt.shape[1] != num_quantizers or prompt.is_floating_point():
        raise UsageError(
            f"init_data: found shape {tuple(prompt.shape)} of {prompt.dtype}, expected whole numbers"
            f" (batch, {num_quantizers}, length)"
        )
    if prompt.shape[2] >= frames:
        raise UsageError(
            f"init_data has {prompt.shape[2]} frames, but max_gen_len is {frames}: nothing is left to"
            " generate; raise max_gen_len"
        )
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < codebook_size:
        raise UsageError(
            f"init_data: found codes {int(prompt.min())} to {int(prompt.max())}, expected 0 to"
            f" {codebook_size - 1}"
        )


def _both(value: Tensor | None, null: Tensor | None) -> Tensor | None:
    return None if value is None or null is None else torch.cat([value, null])
