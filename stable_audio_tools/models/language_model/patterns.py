"""Codebook patterns: in which step of a sequence a language model meets each code of a clip.

A codec answers Q codes per frame. A transformer that predicts all of them at once takes them for independent
given the past, which they are not; a pattern spreads them over steps (Copet et al. 2023, section 2.2). A
pattern sends every code ``(q, t)`` to one step of its own codebook, so it can be undone.

Shapes: B batch, Q codebooks, T frames, S steps. Step 0 is empty in every pattern: there the model sees only
the special token, and predicts what stands in step 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.language_model import CodebookPatternConfig, PatternName


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where the codes of a clip of T frames stand in the sequence.

    Attributes:
        steps: ``(Q, T)``, the step of code ``(q, t)``; along T it only rises.
        length: how many steps there are, S, the empty first one included.
        valid_length: how many of them a model is trained on: the last steps, where the delayed codebooks run
            on alone, are left out, as in the public code.
    """

    steps: Tensor
    length: int
    valid_length: int

    @property
    def num_codebooks(self) -> int:
        """Q."""
        return self.steps.shape[0]

    @property
    def frames(self) -> int:
        """T."""
        return self.steps.shape[1]

    def first_step(self, frame: int) -> int:
        """The first step that holds a code of ``frame``."""
        return int(self.steps[:, frame].min())

    def filled(self) -> Tensor:
        """``(Q, S)``, True where a step holds a code of the codebook."""
        mask = torch.zeros(self.num_codebooks, self.length, dtype=torch.bool, device=self.steps.device)
        return mask.scatter_(1, self.steps, True)

    def build_sequence(self, codes: Tensor, special_token: int, valid_only: bool = False) -> Tensor:
        """Codes ``(B, Q, T)`` in their steps, ``(B, Q, S)``, and ``special_token`` everywhere else.

        Args:
            valid_only: cut the sequence at ``valid_length``.
        """
        sequence = codes.new_full((*codes.shape[:2], self.length), special_token)
        sequence.scatter_(2, self.steps.expand(len(codes), -1, -1), codes)
        return sequence[:, :, : self.valid_length] if valid_only else sequence

    def revert_sequence(self, sequence: Tensor, special_token: int) -> tuple[Tensor, Tensor]:
        """Codes ``(B, Q, T)`` of a sequence ``(B, Q, S')``, which may be cut short, and a mask ``(Q, T)``.

        Where the mask is False the sequence ended too early, and ``special_token`` stands.
        """
        return self._gather(sequence, self.steps, special_token)

    def revert_logits(self, logits: Tensor, fill: float = float("nan")) -> tuple[Tensor, Tensor]:
        """Logits ``(B, Q, T, card)`` of the codes, of a model's answers ``(B, Q, S', card)`` in its steps.

        The answer in step s is the prediction of step s + 1. Codes beyond ``valid_length``, or beyond S', get
        ``fill`` and False in the mask ``(Q, T)``.
        """
        available = min(logits.shape[2], self.valid_length - 1)
        return self._gather(logits[:, :, :available], self.steps - 1, fill)

    @staticmethod
    def _gather(values: Tensor, index: Tensor, fill: float) -> tuple[Tensor, Tensor]:
        mask = index < values.shape[2]
        books = torch.arange(len(index), device=index.device)[:, None]
        picked = values[:, books, index.clamp(max=max(values.shape[2] - 1, 0))]
        missing = ~mask.reshape(mask.shape + (1,) * (picked.ndim - 3))
        return picked.masked_fill(missing, fill), mask


Layout = tuple[np.ndarray, int, int]
"""``steps``, ``length`` and ``valid_length`` of a :class:`Pattern`."""


def _shifted(frames: int, delays: np.ndarray, start: int = 1) -> Layout:
    """Codebook q runs ``delays[q]`` steps behind, from the step ``start`` on."""
    steps = start + np.arange(frames)[None] + delays[:, None]
    length = start + frames + int(delays.max())
    return steps, length, length - int(delays.max() - delays.min())


def _delay(options: CodebookPatternConfig, num_codebooks: int, frames: int) -> Layout:
    """Each codebook one step behind the one before it, or as told."""
    return _shifted(frames, _given(options.delays, range(num_codebooks)))


def _parallel(options: CodebookPatternConfig, num_codebooks: int, frames: int) -> Layout:
    """All codes of a frame in one step."""
    return _shifted(frames, np.zeros(num_codebooks, dtype=np.int64))


def _unroll(options: CodebookPatternConfig, num_codebooks: int, frames: int) -> Layout:
    """Codebooks of one number in ``flattening`` share a step; the numbers follow each other within a frame.

    By default every codebook has a number of its own. A group with a delay stands where frame ``t + delay``
    does: steps are ordered by that frame, then by the frame of their codes. A number that no codebook has
    makes an empty step.
    """
    groups = _given(options.flattening, range(num_codebooks))
    delays = _given(options.delays, [0] * num_codebooks)
    reach = int(delays.max())
    firsts = {int(group): int(np.argmax(groups == group)) for group in groups}
    rows = []  # of each step: the frame it stands at, whether it has codes, their frame, their first book
    for group in range(int(groups.max()) + 1):
        first = firsts.get(group)
        delay = 0 if first is None else int(delays[first])
        own = np.arange(frames + reach - delay)
        filled = np.full_like(own, first is not None)
        rows.append(np.stack([own + delay, filled, own * filled, np.full_like(own, first or 0)]))
    table = np.concatenate(rows, axis=1)
    table = table[:, np.lexsort(table[::-1])]
    steps = np.empty((num_codebooks, frames), dtype=np.int64)
    for book, group in enumerate(groups):
        mine = (table[1] == 1) & (table[3] == firsts[int(group)]) & (table[2] < frames)
        steps[book] = 1 + np.flatnonzero(mine)
    length = 1 + table.shape[1]
    return steps, length, length - int(delays.max() - delays.min())


def _coarse_first(options: CodebookPatternConfig, num_codebooks: int, frames: int) -> Layout:
    """The whole first codebook, then the others side by side, each by its delay."""
    coarse = 1 + np.arange(frames)[None]
    if num_codebooks == 1:
        return coarse, 1 + frames, 1 + frames
    delays = _given(options.delays, [0] * (num_codebooks - 1))
    fine, length, valid_length = _shifted(frames, delays, start=1 + frames)
    return np.concatenate([coarse, fine]), length, valid_length


def _grouped(options: CodebookPatternConfig, num_codebooks: int, frames: int) -> Layout:
    """All frames of the first ``group_by`` codebooks, code by code, then those of the next ones."""
    book = np.arange(num_codebooks)[:, None]
    start = book // options.group_by * options.group_by
    size = np.minimum(options.group_by, num_codebooks - start)  # the last group may be smaller
    steps = 1 + start * frames + np.arange(frames)[None] * size + book - start
    length = 1 + num_codebooks * frames
    return steps, length, length


def _given(values: Sequence[int] | None, default: Sequence[int]) -> np.ndarray:
    return np.array(list(default) if values is None else list(values), dtype=np.int64)


PATTERNS: dict[PatternName, Callable[[CodebookPatternConfig, int, int], Layout]] = {
    "delay": _delay,
    "parallel": _parallel,
    "unroll": _unroll,
    "valle": _coarse_first,
    "musiclm": _grouped,
}
"""By name: ``delay``, ``parallel`` and ``unroll``, which is flattening (Copet et al. 2023), ``valle`` (Wang
et al. 2023) and ``musiclm`` (after Agostinelli et al. 2023)."""


class PatternProvider:
    """The patterns of one codec, by the length of the clip.

    Args:
        name: one of :data:`PATTERNS`.
        options: what may be set of it.
        num_codebooks: Q.

    Raises:
        ConfigError: ``options`` are of another pattern or number of codebooks.
    """

    def __init__(self, name: PatternName, options: CodebookPatternConfig, num_codebooks: int) -> None:
        problem = options.misfit(name, num_codebooks)
        if problem is not None:
            raise ConfigError(f"model.lm.codebook_pattern_config: {problem}")
        self.name: PatternName = name
        self.options = options
        self.num_codebooks = num_codebooks

    def get_pattern(self, frames: int, device: torch.device | str = "cpu") -> Pattern:
        """The pattern of a clip of ``frames`` frames, at least 1, with its indices on ``device``."""
        return _pattern(self.name, self.options, self.num_codebooks, frames, str(device))


@lru_cache(maxsize=64)
def _pattern(
    name: PatternName, options: CodebookPatternConfig, num_codebooks: int, frames: int, device: str
) -> Pattern:
    steps, length, valid_length = PATTERNS[name](options, num_codebooks, frames)
    return Pattern(torch.from_numpy(np.ascontiguousarray(steps)).to(device), length, valid_length)
