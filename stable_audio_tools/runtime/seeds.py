"""Seeds made from names, so that every draw can be repeated on its own.

A draw that is keyed by what it is for, say ``("crop", seed, epoch, track)``, is the same in any process,
with any number of workers, and after any restart. Nothing here touches the global generators.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | float | str) -> int:
    """A seed in [0, 2^63) from an ordered list of names and numbers, the same on every platform."""
    text = "\x1f".join(f"{type(part).__name__}:{part!r}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | float | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator on ``device``, seeded with :func:`derive_seed` of ``parts``."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
