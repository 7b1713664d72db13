"""An adapter as every reader gives it: low-rank factors by layer, whatever the file it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stable_audio_tools.errors import CheckpointError

PARTS = ("down", "up", "magnitude")


@dataclass(frozen=True)
class LowRank:
    """The change of one layer: ``scale * up @ down`` on a weight ``(out, in)`` or ``(out, in, k)``.

    Attributes:
        down: ``(r, in)`` of a linear layer, ``(r, in, k)`` of a convolution, float32.
        up: ``(out, r)``, float32.
        scale: usually ``alpha / r``.
        magnitude: ``(out,)``, the learned norms of the weight's rows (DoRA), or None.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The inner size."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Adapter:
    """What a file or a folder holds.

    Attributes:
        source: where it was read from, as messages call it.
        kind: which tool's format it was, in words.
        layers: by module path, as the file spells it; see :func:`~.attach.resolve_layers`.
        base_sha256: hash of the checkpoint it was trained on, where the file says so.
    """

    source: str
    kind: str
    layers: Mapping[str, LowRank]
    base_sha256: str | None = None

    @property
    def is_dora(self) -> bool:
        """Whether any layer has a magnitude."""
        return any(layer.magnitude is not None for layer in self.layers.values())


def collect(
    tensors: Mapping[str, Tensor], split: Callable[[str], tuple[str, str] | None], source: str | Path
) -> dict[str, dict[str, Tensor]]:
    """Tensors by layer and part, as float32.

    Args:
        split: the module path and the part (one of ``PARTS``, or ``""`` for what is of no use) of a key; None
            for a key of no known meaning.

    Raises:
        CheckpointError: a key is unknown, or a layer has half of a pair; it is named.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        found = split(key)
        if found is None:
            unknown.append(key)
        elif found[1]:
            layers.setdefault(found[0], {})[found[1]] = value.detach().float()
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(f"{source}: {unknown[0]!r}{more}: not weights of an adapter that is known here")
    for path, parts in layers.items():
        if absent := [part for part in ("down", "up") if part not in parts]:
            raise CheckpointError(
                f"{source}: layer {path!r} has no {absent[0]!r} factor; the file is incomplete"
            )
        if parts["down"].shape[0] != parts["up"].shape[1]:
            found_ranks = f"{parts['down'].shape[0]} and {parts['up'].shape[1]}"
            raise CheckpointError(f"{source}: layer {path!r} has factors of different ranks, {found_ranks}")
    if not layers:
        raise CheckpointError(f"{source}: holds no adapted layer")
    return layers


def low_rank(parts: Mapping[str, Tensor], scale: float) -> LowRank:
    """One layer out of :func:`collect`; an ``up`` of a convolution loses its kernel axis of 1."""
    magnitude = parts.get("magnitude")
    return LowRank(
        parts["down"], parts["up"].flatten(1), scale, None if magnitude is None else magnitude.flatten()
    )
