"""What every pretransform has in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.models.bottlenecks.base import Generators


class Pretransform(nn.Module):
    """Audio ``(B, C, T)`` to what a model sees, ``(B, D, L)``, and back.

    Unless ``enable_grad`` is set it is frozen and stays in evaluation mode whatever its parent does.

    Attributes:
        sample_rate: of the audio, in Hz.
        io_channels: audio channels, C.
        encoded_channels: channels of what it makes, D.
        downsampling_ratio: audio samples per frame of what it makes.
        enable_grad: whether it is trained with the model behind it.
        num_quantizers: codes per frame, Q, or 0 where it has none.
        codebook_size: how many values a code has, or 0.
        scale: what its own answers were divided by; stored latents are, when they are read.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        io_channels: int,
        encoded_channels: int,
        downsampling_ratio: int,
        enable_grad: bool = False,
        num_quantizers: int = 0,
        codebook_size: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.io_channels = io_channels
        self.encoded_channels = encoded_channels
        self.downsampling_ratio = downsampling_ratio
        self.enable_grad = enable_grad
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.scale = scale

    @property
    def is_discrete(self) -> bool:
        """Whether audio can be told in codes."""
        return self.num_quantizers > 0

    def freeze_unless_trained(self) -> None:
        """To be called at the end of ``__init__``: no gradients, evaluation mode, unless ``enable_grad``."""
        if not self.enable_grad:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Pretransform:
        """Follow the parent only where this is trained with it."""
        super().train(mode and self.enable_grad)
        return self

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``.

        Args:
            generator: of the noise, where there is any.
            chunked: overrides the config, where the config has it.
        """
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L ratio)`` of ``(B, D, L)``."""
        raise TypeError(f"{type(self).__name__} must define decode")

    def tokenize(self, audio: Tensor) -> Tensor:
        """Codes ``(B, Q, ceil(T / ratio))``, int64, of audio ``(B, C, T)``."""
        raise UsageError(f"{type(self).__name__} has no codes; a language model takes one that quantises")

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Audio ``(B, C, L ratio)`` of codes ``(B, Q, L)``."""
        raise UsageError(f"{type(self).__name__} has no codes; a language model takes one that quantises")

    def store(
        self,
        audio: Tensor,
        generator: Generators = None,
        chunked: bool | None = None,
        posterior: bool = False,
    ) -> Tensor:
        """What is stored of audio ``(B, C, T)``, for :meth:`read_stored`: latents that are not scaled.

        Args:
            generator, chunked: as for :meth:`encode`.
            posterior: what latents are drawn from, instead of one draw.

        Raises:
            UsageError: ``posterior`` is asked for, but nothing is drawn.
        """
        if posterior:
            raise UsageError(f"{type(self).__name__} draws no latents, so there is no posterior to store")
        return self.encode(audio, generator, chunked) * self.scale

    def read_stored(self, stored: Tensor, generator: Generators = None) -> Tensor:
        """What :meth:`encode` makes, from what :meth:`store` made, ``(B, D, L)``.

        Args:
            generator: of the draw, where a posterior was stored.

        Raises:
            DataError: the latents have another number of channels.
        """
        if stored.ndim != 3 or stored.shape[1] != self.encoded_channels:
            raise DataError(
                f"stored latents have the shape {tuple(stored.shape)}, expected"
                f" (batch, {self.encoded_channels}, length); encode them with this model's autoencoder"
            )
        return stored / self.scale

    def check_audio(self, audio: Tensor) -> None:
        """Refuse what is not audio ``(B, C, T)`` of ``io_channels``.

        Raises:
            UsageError: the shape does not fit.
        """
        _check(audio, self.io_channels, "audio")

    def check_latents(self, latents: Tensor) -> None:
        """Refuse what is not ``(B, D, L)`` of ``encoded_channels``.

        Raises:
            UsageError: the shape does not fit.
        """
        _check(latents, self.encoded_channels, "latents")

    def check_codes(self, codes: Tensor) -> None:
        """Refuse what is not codes ``(B, Q, L)``.

        Raises:
            UsageError: the shape does not fit.
        """
        _check(codes, self.num_quantizers, "codes")

    def forward(self, audio: Tensor, **options: Any) -> Tensor:
        """:meth:`encode`."""
        return self.encode(audio, **options)


def _check(x: Tensor, channels: int, what: str) -> None:
    if x.ndim != 3 or x.shape[1] != channels or x.shape[2] == 0:
        raise UsageError(f"{what} must have the shape (batch, {channels}, length), found {tuple(x.shape)}")
