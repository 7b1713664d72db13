"""Codecs that others have trained and published, in the Hugging Face format.

Such a codec is frozen, is read on first use and stays out of the state dict, like a text encoder: a
checkpoint would only repeat what everybody can fetch. For the public names the widths are known
(``schema.codecs``), so that a model can be built, and its keys known, without fetching anything.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, ConfigError
from stable_audio_tools.models.autoencoders.chunking import apply_in_chunks
from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.runtime.libraries import load_pretrained, quiet_transformers
from stable_audio_tools.schema.autoencoder import (
    AudiocraftPretransformConfig,
    PretrainedDACPretransformConfig,
)
from stable_audio_tools.schema.codecs import CodecFacts

CHUNK_SIZE = 128
"""Latents per chunk."""
OVERLAP = 32
"""Latents that neighbouring chunks share; half of it is more than DAC hears on either side of a frame."""


class PublishedCodec(Pretransform):
    """A published codec: audio to continuous latents or to codes, in float32, and back.

    With ``quantize_on_decode`` the latents are those before quantisation, for a diffusion model to learn, and
    are quantised when they are decoded; without it they are quantised when they are encoded. They are divided
    by ``scale``.

    Args:
        name: a Hugging Face name, or a folder.
        facts: what is known of the codec; None to read it from its own config.
        sample_rate: of the model that it serves, in Hz.

    Raises:
        ConfigError: the codec is made for another sample rate, or cannot be told in one row of codes.
        CheckpointError: ``facts`` is None and there is no codec of that name.
    """

    kind = "codec"
    key = ""
    """The key of its config that names it."""

    def __init__(
        self, name: str, facts: CodecFacts | None, sample_rate: int, scale: float, quantize_on_decode: bool
    ) -> None:
        facts = facts or self.facts_of(self._read_config(name), name)
        if facts.sample_rate != sample_rate:
            raise ConfigError(
                f"pretransform.config: {name} is made for {facts.sample_rate} Hz, but sample_rate is"
                f" {sample_rate}; set sample_rate to {facts.sample_rate}, or choose another codec"
            )
        super().__init__(
            sample_rate=facts.sample_rate,
            io_channels=facts.io_channels,
            encoded_channels=facts.encoded_channels,
            downsampling_ratio=facts.downsampling_ratio,
            num_quantizers=facts.num_quantizers,
            codebook_size=facts.codebook_size,
            scale=scale,
        )
        self.name = name
        self.facts = facts
        self.quantize_on_decode = quantize_on_decode
        # A module in a tuple is not registered, so the codec stays out of the state dict.
        self._codec: tuple[nn.Module] | None = None
        self.freeze_unless_trained()

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``; there is no noise in it.

        Raises:
            UsageError: the audio has another channel count.
            CheckpointError: the codec cannot be found or read.
        """
        latents = self._latents(audio, chunked)
        if not self.quantize_on_decode:
            latents = self._looked_up(self._codes(latents))
        return latents / self.scale

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``; errors as for :meth:`encode`.

        A DAC with an odd stride gives a few samples less, as in the public code.
        """
        self.check_latents(latents)
        latents = latents.float() * self.scale
        if self.quantize_on_decode:
            latents = self._looked_up(self._codes(latents))
        return self._audio(latents, chunked)

    def tokenize(self, audio: Tensor) -> Tensor:
        """Codes ``(B, Q, ceil(T / ratio))``, int64, of audio ``(B, C, T)``; errors as for :meth:`encode`."""
        return self._codes(self._latents(audio, None))

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Audio ``(B, C, L ratio)`` of codes ``(B, Q, L)``; errors as for :meth:`encode`."""
        self.check_codes(codes)
        return self._audio(self._looked_up(codes), None)

    def codec(self, device: torch.device) -> Any:
        """The codec in float32 on ``device``, read on first use.

        Raises:
            CheckpointError: it cannot be found, is not whole, or is not what its name promises.
        """
        if self._codec is None:
            with torch.inference_mode(False):  # the first use may be a validation step
                loaded = self._load()
            found = self.facts_of(loaded.config, self.name)
            if found != self.facts:
                raise CheckpointError(f"{self.name}: expected a codec with {self.facts}, found {found}")
            self._codec = (loaded.float().requires_grad_(False).eval(),)
        codec = self._codec[0]
        if next(codec.parameters()).device != device:
            codec.to(device)
        return codec

    def __getstate__(self) -> dict[str, Any]:
        """Without the codec: a copy reads it again, and torch's parametrised layers cannot be pickled."""
        return {**self.__dict__, "_codec": None}

    @classmethod
    def facts_of(cls, config: Any, name: str) -> CodecFacts:
        """What a Hugging Face config tells; ``name`` is for the message.

        Raises:
            ConfigError: codes alone cannot be decoded.
        """
        raise TypeError(f"{cls.__name__} must define facts_of")

    def _read_config(self, name: str) -> Any:
        """The config alone.

        Raises:
            CheckpointError: there is none.
        """
        from transformers import AutoConfig

        try:
            with quiet_transformers():
                return AutoConfig.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{name}: no {self.kind} model could be found ({reason}); give {self._advice}"
            ) from error

    @property
    def _advice(self) -> str:
        return f"{self.key} a folder with config.json and model.safetensors, or a name on the hub"

    def _load(self) -> Any:
        raise TypeError(f"{type(self).__name__} must define _load")

    def _latents(self, audio: Tensor, chunked: bool | None) -> Tensor:
        """Before quantisation, ``(B, D, L)``."""
        raise TypeError(f"{type(self).__name__} must define _latents")

    def _audio(self, latents: Tensor, chunked: bool | None) -> Tensor:
        """Of quantised latents."""
        raise TypeError(f"{type(self).__name__} must define _audio")

    def _codes(self, latents: Tensor) -> Tensor:
        """``(B, Q, L)`` of latents before quantisation."""
        raise TypeError(f"{type(self).__name__} must define _codes")

    def _looked_up(self, codes: Tensor) -> Tensor:
        """Quantised latents."""
        raise TypeError(f"{type(self).__name__} must define _looked_up")


class PretrainedDACPretransform(PublishedCodec):
    """A Descript Audio Codec (Kumar et al. 2023) through ``transformers``. It is mono.

    Raises:
        ConfigError, CheckpointError: as for :class:`PublishedCodec`.
    """

    kind = "DAC"
    key = "model_name"

    def __init__(self, config: PretrainedDACPretransformConfig, sample_rate: int = 44100) -> None:
        options = config.config
        super().__init__(options.name, config.facts, sample_rate, options.scale, options.quantize_on_decode)
        self.chunked = options.chunked

    @classmethod
    def facts_of(cls, config: Any, name: str) -> CodecFacts:
        if getattr(config, "model_type", None) != "dac":
            raise ConfigError(f"pretransform.config.model_name: {name} is no DAC, but {config.model_type!r}")
        return CodecFacts(
            sample_rate=int(config.sampling_rate),
            io_channels=1,
            encoded_channels=int(config.hidden_size),
            downsampling_ratio=int(config.hop_length),
            num_quantizers=int(config.n_codebooks),
            codebook_size=int(config.codebook_size),
        )

    def _load(self) -> Any:
        from transformers import DacModel

        return load_pretrained(self.name, self.kind, DacModel, advice=self._advice)[0]

    def _latents(self, audio: Tensor, chunked: bool | None) -> Tensor:
        self.check_audio(audio)
        ratio = self.downsampling_ratio
        audio = F.pad(audio.float(), (0, -audio.shape[-1] % ratio))
        return self._in_chunks(self.codec(audio.device).encoder, audio, chunked, ratio, 1)

    def _audio(self, latents: Tensor, chunked: bool | None) -> Tensor:
        decoder = self.codec(latents.device).decoder
        return self._in_chunks(decoder, latents, chunked, 1, self.downsampling_ratio)

    def _codes(self, latents: Tensor) -> Tensor:
        with _no_autocast(latents):
            return self.codec(latents.device).quantizer(latents)[1]

    def _looked_up(self, codes: Tensor) -> Tensor:
        with _no_autocast(codes):
            return self.codec(codes.device).quantizer.from_codes(codes)[0]

    def _in_chunks(
        self, network: Any, x: Tensor, chunked: bool | None, in_step: int, out_step: int
    ) -> Tensor:
        with _no_autocast(x):
            if not (self.chunked if chunked is None else chunked):
                return network(x)
            return apply_in_chunks(
                network, x, chunk_size=CHUNK_SIZE, overlap=OVERLAP, in_step=in_step, out_step=out_step
            )


class EncodecPretransform(PublishedCodec):
    """An EnCodec (Defossez et al. 2022) through ``transformers``, with all of its codebooks.

    Raises:
        ConfigError, CheckpointError: as for :class:`PublishedCodec`.
    """

    kind = "EnCodec"
    key = "model_type"

    def __init__(self, config: AudiocraftPretransformConfig, sample_rate: int = 32000) -> None:
        options = config.config
        super().__init__(
            options.model_type, config.facts, sample_rate, options.scale, options.quantize_on_decode
        )

    @classmethod
    def facts_of(cls, config: Any, name: str) -> CodecFacts:
        if getattr(config, "model_type", None) != "encodec":
            raise ConfigError(
                f"pretransform.config.model_type: {name} is no EnCodec, but {config.model_type!r}"
            )
        if config.normalize or config.chunk_length_s is not None:
            raise ConfigError(
                f"pretransform.config.model_type: {name} keeps the loudness of each chunk beside its codes,"
                " so codes alone cannot be decoded; choose a codec without, such as facebook/encodec_32khz"
            )
        return CodecFacts(
            sample_rate=int(config.sampling_rate),
            io_channels=int(config.audio_channels),
            encoded_channels=int(config.hidden_size),
            downsampling_ratio=int(config.hop_length),
            num_quantizers=int(config.num_quantizers),
            codebook_size=int(config.codebook_size),
        )

    def _load(self) -> Any:
        from transformers import EncodecModel

        return load_pretrained(self.name, self.kind, EncodecModel, advice=self._advice)[0]

    def _latents(self, audio: Tensor, chunked: bool | None) -> Tensor:
        self.check_audio(audio)
        with _no_autocast(audio):  # it pads to a whole frame itself, by reflection
            return self.codec(audio.device).encoder(audio.float())

    def _audio(self, latents: Tensor, chunked: bool | None) -> Tensor:
        with _no_autocast(latents):
            return self.codec(latents.device).decoder(latents)

    def _codes(self, latents: Tensor) -> Tensor:
        with _no_autocast(latents):
            return self.codec(latents.device).quantizer.encode(latents).transpose(0, 1)

    def _looked_up(self, codes: Tensor) -> Tensor:
        return self.codec(codes.device).quantizer.decode(codes.transpose(0, 1))


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
