"""Audio from a language model: from nothing, from conditioning, or as a continuation of a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.transforms import resampled_length
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.generation import InputAudio, Metadata, prepare_audio
from stable_audio_tools.models.language_model.wrapper import RANDOM_SEED, AudioLanguageModelWrapper
from stable_audio_tools.runtime.device import resolve_device


@torch.no_grad()
def generate_lm(
    model: AudioLanguageModelWrapper,
    sample_size: int,
    conditioning: Metadata | Mapping[str, Any] | None = None,
    conditioning_tensors: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    cfg_scale: float = 1.0,
    temp: float = 1.0,
    top_k: int = 250,
    top_p: float = 0.0,
    seed: int | Sequence[int] = RANDOM_SEED,
    device: str | torch.device = "cuda",
    init_audio: InputAudio | None = None,
    use_cache: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Generate audio ``(B, C, sample_size)`` in float32, about [-1, 1], not clipped.

    Args:
        model: a language model on ``device``.
        sample_size: length of each clip in samples, the beginning included.
        batch_size: clips to make, B; by default as many as there are conditions or beginnings.
        init_audio: sample rate and audio to go on from, ``(T,)``, ``(C, T)`` or ``(B, C, T)``; its last
            samples that do not fill a frame of the codec are left out.

    The other arguments are those of :meth:`AudioLanguageModelWrapper.generate`.

    Raises:
        UsageError: an argument does not fit; the message says which.
        DataError: a conditioning id is missing.
    """
    if sample_size < 1:
        raise UsageError(f"sample_size: found {sample_size}, expected at least 1")
    target = resolve_device(device)
    frames = -(-sample_size // model.min_input_length)
    beginning = None if init_audio is None else _tokenize(model, init_audio, frames, target)
    codes = model.generate(
        max_gen_len=frames,
        batch_size=batch_size,
        init_data=beginning,
        conditioning=conditioning,
        conditioning_tensors=conditioning_tensors,
        callback=callback,
        use_cache=use_cache,
        cfg_scale=cfg_scale,
        temp=temp,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return model.pretransform.decode_tokens(codes)[..., :sample_size].float()


def _tokenize(
    model: AudioLanguageModelWrapper, source: InputAudio, frames: int, device: torch.device
) -> Tensor:
    """Codes ``(B, Q, P)`` of the whole frames in a recording."""
    rate, audio = source[0], torch.as_tensor(source[1])
    ratio = model.min_input_length
    whole = resampled_length(audio.shape[-1], rate, model.sample_rate) // ratio
    if not 1 <= whole < frames:
        raise UsageError(
            f"init_audio fills {whole} frames of {ratio} samples, expected 1 to {frames - 1} for this"
            " sample_size: make one of them longer or shorter"
        )
    prepared = prepare_audio(
        audio,
        rate,
        sample_rate=model.sample_rate,
        length=whole * ratio,
        channels=model.pretransform.io_channels,
        batch_size=audio.shape[0] if audio.ndim == 3 else 1,
        name="init_audio",
    )
    return model.pretransform.tokenize(prepared.to(device))
