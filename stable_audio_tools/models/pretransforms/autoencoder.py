"""What turns audio into the latents that a diffusion model sees."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.bottlenecks.base import DiscreteBottleneck, Generators
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.schema.autoencoder import AutoencoderPretransformConfig


class AutoencoderPretransform(Pretransform):
    """An autoencoder in front of a diffusion model.

    Latents are divided by ``scale`` on the way in and multiplied by it on the way out.

    ``model_half`` computes in float16 on a GPU; the weights stay float32, so that a checkpoint saved from it
    loses nothing, and on a CPU, where half-precision convolutions are slow, it has no effect. Results are
    float32.
    """

    def __init__(self, config: AutoencoderPretransformConfig, sample_rate: int = 44100) -> None:
        model = AudioAutoencoder(config.config, sample_rate)
        quantizer = model.bottleneck if isinstance(model.bottleneck, DiscreteBottleneck) else None
        super().__init__(
            sample_rate=sample_rate,
            io_channels=model.io_channels,
            encoded_channels=model.latent_dim,
            downsampling_ratio=model.downsampling_ratio,
            enable_grad=config.enable_grad,
            num_quantizers=quantizer.num_quantizers if quantizer else 0,
            codebook_size=quantizer.codebook_size if quantizer else 0,
            scale=config.scale,
        )
        self.config = config
        self.model = model
        self.freeze_unless_trained()

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``; ``chunked`` overrides the config.

        Args:
            generator: of the bottleneck's noise: one for the batch, one per item, or None for torch's global
                one.
        """
        latents = self.model.encode(
            self._compute_dtype(audio),
            chunked=self.config.chunked if chunked is None else chunked,
            iterate_batch=self.config.iterate_batch,
            generator=generator,
        )
        return latents.float() / self.scale

    def store(
        self,
        audio: Tensor,
        generator: Generators = None,
        chunked: bool | None = None,
        posterior: bool = False,
    ) -> Tensor:
        """Latents that are not scaled, or ``posterior``: means and raw scales ``(B, 2 D, L)`` of a VAE.

        Raises:
            UsageError: ``posterior`` is asked for, but the bottleneck is no VAE.
        """
        if not posterior:
            return super().store(audio, generator, chunked)
        if not isinstance(self.model.bottleneck, VAEBottleneck):
            bottleneck = self.model.config.bottleneck
            found = "none" if bottleneck is None else repr(bottleneck.type)
            raise UsageError(
                f"a posterior is what a 'vae' bottleneck draws from; this autoencoder has {found}"
            )
        parameters: Tensor = self.model.encode(
            self._compute_dtype(audio),
            chunked=self.config.chunked if chunked is None else chunked,
            iterate_batch=self.config.iterate_batch,
            skip_bottleneck=True,
        )
        return parameters.float()

    def read_stored(self, stored: Tensor, generator: Generators = None) -> Tensor:
        """Latents of stored ones, or drawn from a stored posterior as :meth:`encode` would have."""
        bottleneck = self.model.bottleneck
        if isinstance(bottleneck, VAEBottleneck) and stored.shape[1] == 2 * self.encoded_channels:
            drawn, _ = bottleneck.encode(stored, generator)
            return drawn.float() / self.scale
        return super().read_stored(stored, generator)

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``; ``chunked`` overrides the config."""
        audio = self.model.decode(
            self._compute_dtype(latents * self.scale),
            chunked=self.config.chunked if chunked is None else chunked,
            iterate_batch=self.config.iterate_batch,
        )
        return audio.float()

    def tokenize(self, audio: Tensor) -> Tensor:
        """Codes ``(B, Q, ceil(T / ratio))``, int64, of audio ``(B, C, T)``.

        Raises:
            UsageError: the autoencoder has no codes.
        """
        return self.model.tokenize(
            self._compute_dtype(audio), chunked=self.config.chunked, iterate_batch=self.config.iterate_batch
        )

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Audio ``(B, C, L ratio)`` of codes ``(B, Q, L)``; errors as for :meth:`tokenize`."""
        audio = self.model.decode_tokens(
            codes, chunked=self.config.chunked, iterate_batch=self.config.iterate_batch
        )
        return audio.float()

    def _compute_dtype(self, x: Tensor) -> Tensor:
        half = self.config.model_half and x.device.type != "cpu"
        return x.to(torch.float16 if half else torch.float32)
