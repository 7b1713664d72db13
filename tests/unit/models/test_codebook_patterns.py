"""Codebook patterns: the figures of the paper, a slow layout by definition, and what holds for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.language_model.patterns import PATTERNS, Pattern, PatternProvider
from stable_audio_tools.schema.language_model import CodebookPatternConfig

SPECIAL = 99

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("delay", {}, 1),
    ("delay", {}, 4),
    ("delay", {"delays": [0, 0, 2]}, 3),
    ("delay", {"delays": [1, 3]}, 2),
    ("parallel", {}, 3),
    ("unroll", {}, 3),
    ("unroll", {"flattening": [0, 1, 1]}, 3),
    ("unroll", {"flattening": [0, 1, 1], "delays": [0, 3, 3]}, 3),
    ("unroll", {"flattening": [0, 2], "delays": [0, 2]}, 2),
    ("unroll", {"flattening": [0, 0], "delays": [1, 1]}, 2),
    ("valle", {}, 1),
    ("valle", {}, 4),
    ("valle", {"delays": [0, 1]}, 3),
    ("musiclm", {}, 4),
    ("musiclm", {}, 3),
    ("musiclm", {"group_by": 3}, 7),
]
IDS = [f"{name}-{books}-{'-'.join(options)}" for name, options, books in CASES]


def pattern_of(name: Any, options: dict[str, Any], books: int, frames: int) -> Pattern:
    return PatternProvider(name, CodebookPatternConfig(**options), books).get_pattern(frames)


def figure(name: str, books: int, frames: int, **options: Any) -> list[str]:
    """A pattern as the paper draws it: a row per codebook, the frame's number from 1 or a dot."""
    codes = torch.arange(1, frames + 1).expand(1, books, -1)
    sequence = pattern_of(name, options, books, frames).build_sequence(codes, 0)[0]
    return ["".join(str(value) if value else "." for value in row) for row in sequence.tolist()]


def slow_layout(name: str, options: dict[str, Any], books: int, frames: int) -> list[list[tuple[int, int]]]:
    """Which (frame, codebook) pairs stand in each step, by definition; frames beyond the clip are kept."""
    if name in ("delay", "parallel"):
        delays = options.get("delays", list(range(books)) if name == "delay" else [0] * books)
        return [[]] + [
            [(at - delay, book) for book, delay in enumerate(delays) if at >= delay]
            for at in range(frames + max(delays))
        ]
    if name == "valle":
        delays = options.get("delays", [0] * (books - 1))
        tail = frames + max(delays) if delays else 0
        fine = [
            [(at - delay, book + 1) for book, delay in enumerate(delays) if at >= delay] for at in range(tail)
        ]
        return [[], *([(frame, 0)] for frame in range(frames)), *fine]
    if name == "musiclm":
        size = options.get("group_by", 2)
        groups = [range(start, min(start + size, books)) for start in range(0, books, size)]
        return [
            [],
            *([(frame, book)] for group in groups for frame in range(frames) for book in group),
        ]
    flattening = options.get("flattening", list(range(books)))
    delays = options.get("delays", [0] * books)
    reach = frames + max(delays)
    rows: list[tuple[int, list[tuple[int, int]]]] = []
    for frame in range(reach):
        for inner in range(max(flattening) + 1):
            members = [book for book in range(books) if flattening[book] == inner]
            delay = delays[members[0]] if members else 0
            if frame + delay < reach:
                rows.append((frame + delay, [(frame, book) for book in members]))
    return [[], *(coordinates for _, coordinates in sorted(rows))]


def slow_valid_length(layout: list[list[tuple[int, int]]], frames: int) -> int:
    last = max(frame + 1 for step in layout for frame, _ in step)
    return len(layout) - (last - frames)


def test_the_figures_of_the_paper() -> None:
    """Copet et al. 2023, figure 1 (parallel, flattening, coarse first, delay), codebook 1 on top."""
    assert figure("parallel", 3, 4) == [".1234", ".1234", ".1234"]
    assert figure("unroll", 3, 3) == [".1..2..3..", "..1..2..3.", "...1..2..3"]
    assert figure("valle", 3, 4) == [".1234....", ".....1234", ".....1234"]
    assert figure("delay", 4, 4) == [".1234...", "..1234..", "...1234.", "....1234"]


def test_partial_flattening_and_partial_delay() -> None:
    """The variants of the paper's table: a codebook apart from two that share their steps."""
    assert figure("unroll", 3, 3, flattening=[0, 1, 1]) == [".1.2.3.", "..1.2.3", "..1.2.3"]
    assert figure("delay", 3, 4, delays=[0, 1, 1]) == [".1234.", "..1234", "..1234"]
    # With a delay, a group stands beside a later frame, and older codes go first.
    delayed = figure("unroll", 3, 4, flattening=[0, 1, 1], delays=[0, 3, 3])
    assert delayed == [".123.4......", "....1.2.3.4.", "....1.2.3.4."]


def test_musiclm_writes_out_groups_of_codebooks() -> None:
    assert figure("musiclm", 4, 2) == [".1.2.....", "..1.2....", ".....1.2.", "......1.2"]
    assert figure("musiclm", 3, 2) == [".1.2...", "..1.2..", ".....12"]


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize(("name", "options", "books"), CASES, ids=IDS)
def test_steps_follow_the_definition(name: str, options: dict[str, Any], books: int, frames: int) -> None:
    pattern = pattern_of(name, options, books, frames)
    layout = slow_layout(name, options, books, frames)
    assert pattern.length == len(layout)
    assert pattern.valid_length == slow_valid_length(layout, frames)
    found = {(book, frame): step for step, pairs in enumerate(layout) for frame, book in pairs}
    expected = torch.tensor([[found[book, frame] for frame in range(frames)] for book in range(books)])
    torch.testing.assert_close(pattern.steps, expected)
    assert [pattern.first_step(frame) for frame in range(frames)] == expected.min(dim=0).values.tolist()


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(("name", "options", "books"), CASES, ids=IDS)
def test_every_pattern_is_a_bijection(name: str, options: dict[str, Any], books: int, frames: int) -> None:
    pattern = pattern_of(name, options, books, frames)
    assert (pattern.steps.diff(dim=1) > 0).all()
    codes = torch.randint(0, 50, (2, books, frames), generator=torch.Generator().manual_seed(0))
    sequence = pattern.build_sequence(codes, SPECIAL)
    assert (sequence[:, :, 0] == SPECIAL).all()
    torch.testing.assert_close((sequence != SPECIAL), pattern.filled().expand_as(sequence))
    back, mask = pattern.revert_sequence(sequence, -1)
    assert mask.all()
    torch.testing.assert_close(back, codes)


@pytest.mark.parametrize(("name", "options", "books"), CASES, ids=IDS)
def test_a_sequence_cut_short_gives_what_it_has(name: str, options: dict[str, Any], books: int) -> None:
    pattern = pattern_of(name, options, books, 6)
    codes = torch.arange(6 * books).view(1, books, 6)
    cut = pattern.build_sequence(codes, SPECIAL)[:, :, : pattern.length // 2]
    back, mask = pattern.revert_sequence(cut, -1)
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(back[0][mask], codes[0][mask])
    assert (back[0][~mask] == -1).all()


@pytest.mark.parametrize(("name", "options", "books"), CASES, ids=IDS)
def test_logits_are_those_of_the_step_before(name: str, options: dict[str, Any], books: int) -> None:
    """A model that answers with what stands in the next step predicts every code right."""
    pattern = pattern_of(name, options, books, 5)
    codes = torch.randint(0, 9, (2, books, 5), generator=torch.Generator().manual_seed(1))
    sequence = pattern.build_sequence(codes, SPECIAL)
    next_one = torch.cat([sequence[:, :, 1:], torch.full_like(sequence[:, :, :1], SPECIAL)], dim=2)
    fed = pattern.build_sequence(codes, SPECIAL, valid_only=True).shape[2]
    assert fed == pattern.valid_length
    logits, mask = pattern.revert_logits(next_one[:, :, :fed, None].double())
    torch.testing.assert_close(logits[..., 0][:, mask], codes[:, mask].double())
    assert logits[:, ~mask].isnan().all()
    torch.testing.assert_close(mask, pattern.steps < pattern.valid_length)


def test_logits_pass_gradients_where_they_count() -> None:
    pattern = pattern_of("delay", {}, 3, 4)
    answers = torch.randn(1, 3, pattern.valid_length, 2, dtype=torch.float64, requires_grad=True)
    logits, mask = pattern.revert_logits(answers)

    def of_mask(values: Tensor) -> Tensor:
        return pattern.revert_logits(values)[0][:, mask]

    assert torch.autograd.gradcheck(of_mask, (answers,))
    logits[:, mask].sum().backward()
    assert answers.grad is not None
    assert answers.grad.isfinite().all()
    assert answers.grad[0, 0].sum() == 4 * 2
    assert answers.grad[0, 2].sum() == 2 * 2


def test_the_delay_pattern_trains_on_all_but_the_codes_that_run_on() -> None:
    """As in the public code: codebook q of the last q frames is left out."""
    pattern = pattern_of("delay", {}, 3, 5)
    _, mask = pattern.revert_logits(torch.zeros(1, 3, pattern.valid_length, 2))
    assert mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]


def test_patterns_are_made_once() -> None:
    provider = PatternProvider("delay", CodebookPatternConfig(), 4)
    assert provider.get_pattern(11) is provider.get_pattern(11)
    assert provider.get_pattern(11) is not provider.get_pattern(12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("parallel", {"delays": [0, 1, 2]}, "delays is of delay and unroll and valle"),
        ("delay", {"flattening": [0, 1, 2]}, "flattening is of unroll"),
        ("delay", {"group_by": 3}, "group_by is of musiclm"),
        ("delay", {"delays": [0, 1]}, "found 2, expected 3"),
        ("valle", {"delays": [0, 1, 1]}, "found 3, expected 2"),
        ("delay", {"delays": [0, 2, 1]}, "do not fall"),
        ("unroll", {"flattening": [-1, 0, 1]}, "do not fall"),
        ("unroll", {"flattening": [0, 1, 1], "delays": [0, 1, 2]}, "must share their delay"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatternProvider(name, CodebookPatternConfig(**options), 3)


def test_every_pattern_is_tested() -> None:
    assert {name for name, _, _ in CASES} == set(PATTERNS)
