"""A long signal through a network in overlapping chunks, so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stable_audio_tools.errors import UsageError


def apply_in_chunks(
    apply: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    chunk_size: int,
    overlap: int,
    in_step: int,
    out_step: int,
) -> Tensor:
    """``apply(x)``, computed on windows of the last axis.

    One frame is ``in_step`` values of ``x`` and ``out_step`` values of the result. Windows are ``chunk_size``
    frames long and start ``chunk_size - overlap`` apart; the last one is moved back to end with the signal.
    At inner edges half of the overlap is thrown away, where a window lacks context. Up to ``chunk_size``
    frames there is one window.

    Raises:
        UsageError: the overlap is negative or not shorter than the chunk.
    """
    if not 0 <= overlap < chunk_size:
        raise UsageError(
            f"chunk overlap must be at least 0 and below the chunk size, found {overlap} and {chunk_size}"
        )
    frames = x.shape[-1] // in_step
    if frames <= chunk_size:
        return apply(x)
    last = frames - chunk_size
    margin = overlap // 2
    result: Tensor | None = None
    for start in (*range(0, last, chunk_size - overlap), last):
        piece = apply(x[..., start * in_step : (start + chunk_size) * in_step])
        if result is None:
            # A network with odd strides returns less than out_step per frame; what lacks is the same for any
            # length.
            result = piece.new_zeros(*piece.shape[:-1], piece.shape[-1] + last * out_step)
        first = margin * out_step if start > 0 else 0
        end = (chunk_size - margin) * out_step if start < last else chunk_size * out_step
        kept = piece[..., first:end]
        offset = start * out_step + first
        result[..., offset : offset + kept.shape[-1]] = kept
    assert result is not None
    return result
