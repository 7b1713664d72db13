"""A language model with everything it needs: codec, conditioners and the network between them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.guidance import drop_conditioning
from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.conditioned import Conditions, join_tokens, join_vectors
from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.models.language_model.generation import Inputs, check_prompt, generate_codes
from stable_audio_tools.models.language_model.network import AudioLanguageModel, LMOutput
from stable_audio_tools.models.language_model.sampling import TokenSampling
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.model import LanguageModelModelConfig

Metadata = Sequence[Mapping[str, Any]]
RANDOM_SEED = -1


class AudioLanguageModelWrapper(nn.Module):
    """A model that continues the codes of a codec (Borsos et al. 2022; Copet et al. 2023).

    Attributes:
        config: the whole config it was built from.
        pretransform: audio to codes and back; it is never trained, since codes pass no gradient.
        lm: the network over codes.
        conditioner: metadata to conditioning tensors, or None.
        num_quantizers: codes per frame, Q.
        codebook_size: how many values a code has.
        min_input_length: audio samples per frame.

    Raises:
        ConfigError: the pretransform turns out to have no codes, or the pattern does not fit their number.
    """

    def __init__(self, config: LanguageModelModelConfig) -> None:
        super().__init__()
        lm = config.model.lm
        self.config = config
        self.pretransform = create_pretransform(config.model.pretransform, config.sample_rate)
        if not self.pretransform.is_discrete:
            raise ConfigError("model.pretransform: a language model continues codes, but this one has none")
        self.pretransform.enable_grad = False
        self.pretransform.freeze_unless_trained()
        self.num_quantizers = self.pretransform.num_quantizers
        self.codebook_size = self.pretransform.codebook_size
        conditioning = config.model.conditioning
        self.conditioner = (
            None
            if conditioning is None
            else MultiConditioner(conditioning, config.sample_rate, self.pretransform)
        )
        self.lm = AudioLanguageModel(lm, self.num_quantizers, self.codebook_size)
        self.sample_rate = config.sample_rate
        self.min_input_length = self.pretransform.downsampling_ratio
        self.cross_attn_cond_ids = lm.cross_attention_cond_ids
        self.prepend_cond_ids = lm.prepend_cond_ids
        self.global_cond_ids = lm.global_cond_ids

    def get_conditioning_inputs(self, cond: Conditions) -> dict[str, Tensor | None]:
        """What the network takes, put together from conditioning by id.

        Cross-attention and prepended ids are joined along the sequence, global ids along the channels.

        Raises:
            DataError: an id that the config asks for is missing.
        """
        return {
            "cross_attn_cond": join_tokens(cond, self.cross_attn_cond_ids)[0],
            "prepend_cond": join_tokens(cond, self.prepend_cond_ids)[0],
            "global_cond": join_vectors(cond, self.global_cond_ids),
        }

    def compute_logits(
        self,
        codes: Tensor,
        condition_tensors: Conditions | None = None,
        cfg_dropout_prob: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> LMOutput:
        """Logits of all ``codes (B, Q, T)`` given those before them, for training.

        Args:
            condition_tensors: conditioning by id.
            cfg_dropout_prob: chance that a clip loses its conditioning, so that guidance has an unconditional
                side; drawn apart for the tokens attended to, the prepended ones and the global vector.
            generator: of these draws: one for the batch, one per clip, or None for torch's global one.
        """
        inputs = self.get_conditioning_inputs(condition_tensors or {})
        if cfg_dropout_prob > 0:
            inputs = {
                key: None if value is None else drop_conditioning(value, cfg_dropout_prob, generator)
                for key, value in inputs.items()
            }
        return self.lm.compute_logits(codes, **inputs)

    @torch.no_grad()
    def generate(
        self,
        max_gen_len: int = 256,
        batch_size: int | None = None,
        init_data: Tensor | None = None,
        conditioning: Metadata | Mapping[str, Any] | None = None,
        conditioning_tensors: Conditions | None = None,
        callback: Callable[[int, int], None] | None = None,
        use_cache: bool = True,
        cfg_scale: float = 1.0,
        temp: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        cross_attn_use_cfg: bool = True,
        prepend_use_cfg: bool = True,
        global_use_cfg: bool = True,
        seed: int | Sequence[int] = RANDOM_SEED,
    ) -> Tensor:
        """Generate codes ``(B, Q, max_gen_len)``, from nothing or from a beginning.

        Args:
            max_gen_len: frames, those of ``init_data`` included.
            batch_size: clips to make, B; by default as many as there are conditions or beginnings.
            init_data: codes ``(1 or B, Q, P)`` to go on from.
            conditioning: one metadata dict per clip, or one for all.
            conditioning_tensors: conditioning by id, already embedded; takes the place of ``conditioning``.
            callback: called with steps done and steps in all.
            use_cache: compute each step once.
            cfg_scale: strength of guidance away from no conditioning, which is zeros; 1 is none.
            temp: temperature; 0 takes the likeliest code.
            top_k: draw from the k likeliest codes; 0 from all.
            top_p: draw from the fewest codes with this probability, in place of ``top_k``; 0 is off.
            cross_attn_use_cfg: whether guidance leads away from no tokens to attend to.
            prepend_use_cfg: the same for prepended tokens.
            global_use_cfg: the same for the global vector.
            seed: one for each clip, or the first clip's: the others follow by ones. A clip depends on its own
                seed, not on its batch. -1 is a random one, which is said.

        Raises:
            UsageError: an argument does not fit; the message says which.
            DataError: a conditioning id is missing.
        """
        sampling = TokenSampling(temp, top_k, top_p)
        if max_gen_len < 1:
            raise UsageError(f"max_gen_len: found {max_gen_len}, expected at least 1")
        device = next(self.lm.parameters()).device
        batch_size = _batch_size(batch_size, init_data, conditioning, conditioning_tensors)
        if init_data is None:
            init_data = torch.zeros(batch_size, self.num_quantizers, 0, dtype=torch.long)
        check_prompt(init_data, self.num_quantizers, self.codebook_size, max_gen_len)
        prompt = _spread(init_data.to(device, torch.long), batch_size, "init_data")
        inputs = self._inputs(conditioning, conditioning_tensors, batch_size, device)
        follows = {
            "cross_attn_cond": cross_attn_use_cfg,
            "prepend_cond": prepend_use_cfg,
            "global_cond": global_use_cfg,
        }
        null_inputs = {
            key: torch.zeros_like(value) if value is not None and follows[key] else value
            for key, value in inputs.items()
        }
        conditioned = any(value is not None and follows[key] for key, value in inputs.items())
        return generate_codes(
            self.lm,
            prompt,
            max_gen_len,
            inputs,
            sampling=sampling,
            generators=_generators(seed, batch_size),
            cfg_scale=cfg_scale,
            null_inputs=null_inputs if conditioned else None,
            use_cache=use_cache,
            callback=callback,
        )

    def generate_audio(self, **options: Any) -> Tensor:
        """Audio ``(B, C, max_gen_len * ratio)`` of what :meth:`generate` answers to ``options``."""
        return self.pretransform.decode_tokens(self.generate(**options))

    def _inputs(
        self,
        metadata: Metadata | Mapping[str, Any] | None,
        tensors: Conditions | None,
        batch_size: int,
        device: torch.device,
    ) -> Inputs:
        """Conditioning of ``batch_size`` clips by argument name, from metadata unless embedded already."""
        if tensors is None and metadata is not None and self.conditioner is not None:
            items = [metadata] if isinstance(metadata, Mapping) else list(metadata)
            items = items * batch_size if len(items) == 1 else items
            if len(items) != batch_size:
                raise UsageError(
                    f"conditioning: found {len(items)} items, expected 1 or batch_size, {batch_size}"
                )
            tensors = self.conditioner(items, device)
        inputs = self.get_conditioning_inputs(tensors or {})
        return {
            key: None if value is None else _spread(value.to(device), batch_size, key)
            for key, value in inputs.items()
        }


def _batch_size(
    asked: int | None,
    init_data: Tensor | None,
    metadata: Metadata | Mapping[str, Any] | None,
    tensors: Conditions | None,
) -> int:
    """How many clips to make: what was asked for, else as many as there are of anything."""
    if asked is not None:
        if asked < 1:
            raise UsageError(f"batch_size: found {asked}, expected at least 1")
        return asked
    sizes = [1 if init_data is None else len(init_data)]
    if tensors:
        sizes += [len(entry[0]) for entry in tensors.values() if entry[0] is not None]
    elif metadata is not None and not isinstance(metadata, Mapping):
        sizes.append(len(metadata))
    return max(sizes)


def _spread(values: Tensor, batch_size: int, name: str) -> Tensor:
    if len(values) not in (1, batch_size):
        raise UsageError(f"{name}: found {len(values)} clips, expected 1 or batch_size, {batch_size}")
    return values.expand(batch_size, *values.shape[1:])


def _generators(seed: int | Sequence[int], batch_size: int) -> list[torch.Generator]:
    """One generator per clip, each of its own seed alone."""
    if isinstance(seed, Sequence):
        seeds = [int(each) for each in seed]
    else:
        first = int(seed)
        if first == RANDOM_SEED:
            first = secrets.randbelow(2**32 - 1)
            say(f"seed: {first}")
        seeds = [first + clip for clip in range(batch_size)]
    if len(seeds) != batch_size or min(seeds) < 0:
        raise UsageError(f"seed: found {seeds}, expected {batch_size} numbers from 0, or -1 for random ones")
    return [generator("tokens", each) for each in seeds]
