"""Residual vector quantisation with codebooks that follow the latents."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import DiscreteBottleneck, Generators, Info, full_precision
from stable_audio_tools.schema.bottlenecks import ResidualVQConfig


class RVQBottleneck(DiscreteBottleneck):
    """Residual vector quantisation (Zeghidour et al. 2021, section III-C) of ``vector-quantize-pytorch``.

    In training, codebooks follow the latents by moving averages, and ``quantize_dropout`` reports -1 for the
    codes that it left out.
    """

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__(config.num_quantizers, config.codebook_size)
        from vector_quantize_pytorch import ResidualVQ

        self.follows_all = config.sync_codebook is not False
        self.quantizer = ResidualVQ(**config.model_dump() | {"sync_codebook": False})

    def follow_all_ranks(self) -> None:
        """Let the codebooks follow the latents of all ranks, whose process group must be there.

        The library sees to it where the group is there when it is made: models are made before.
        """
        from vector_quantize_pytorch.vector_quantize_pytorch import sample_vectors_distributed

        for module in self.quantizer.modules():
            if self.follows_all and hasattr(module, "kmeans_all_reduce_fn"):  # a codebook
                module.use_ddp = True
                module.all_reduce_fn = module.kmeans_all_reduce_fn = torch.distributed.all_reduce
                module.sample_fn = module.replace_sample_fn = sample_vectors_distributed

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to quantised latents of the same shape, their ``codes`` and ``quantizer_loss``.

        ``quantizer_indices`` are the codes in the public layout ``(B, L, Q)``. The library draws from torch's
        global generator, in training only.
        """
        frames = full_precision(x).transpose(1, 2)
        quantised, indices, losses = self.quantizer(frames, freeze_codebook=self.frozen)
        return quantised.transpose(1, 2), {
            "codes": indices.transpose(1, 2),
            "quantizer_indices": indices,
            "quantizer_loss": losses.mean(),
        }

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Latents ``(B, D, L)`` of codes ``(B, Q, L)``; a code of -1 adds nothing."""
        self.check_codes(codes)
        return self.quantizer.get_output_from_indices(codes.transpose(1, 2)).transpose(1, 2)
