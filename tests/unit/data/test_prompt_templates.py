"""Prompts by template: what is unknown is left out cleanly, what is drawn is drawn from the key alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from stable_audio_tools.data.prompt_templates import DEFAULT_PROMPTS, make_prompt, needed_fields
from stable_audio_tools.errors import ConfigError
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.prompts import PromptConfig
from stable_audio_tools.schema.reader import parse_dataset_config

TAGS = ["jazz", "piano", "calm", "night", "vinyl"]


def _config(*templates: Any, **options: Any) -> PromptConfig:
    return PromptConfig.model_validate({"templates": list(templates), **options})


def _prompts(config: PromptConfig, fields: dict[str, Any], count: int = 200) -> list[str]:
    drawn = [make_prompt(config, fields, generator("prompt", 1, epoch, "m/a.mp3")) for epoch in range(count)]
    assert None not in drawn
    return [str(prompt) for prompt in drawn]


@pytest.mark.parametrize(
    ("template", "fields", "prompt"),
    [
        ("{tags}", {"tags": TAGS}, "jazz, piano, calm, night, vinyl"),
        ("{tags:and} music", {"tags": TAGS[:3]}, "jazz, piano and calm music"),
        ("{genre:and} music", {"genre": ["jazz"]}, "jazz music"),
        ("{Genre} at { bpm } BPM", {"genre": ["jazz"], "bpm": 119.6}, "jazz at 120 BPM"),
        ("energy {energy}", {"energy": 0.25}, "energy 0.25"),
        ("fixed words", {}, "fixed words"),
        ("a[, {bpm} BPM][, in {key}]", {"key": "C minor"}, "a, in C minor"),
        ("[{genre}, ][{bpm} BPM, ]live", {"bpm": 90}, "90 BPM, live"),
        ("[{genre}][, {bpm} BPM]", {"bpm": 90}, "90 BPM"),
        ("[{genre}. ][{bpm} BPM; ][{key}]", {"genre": ["jazz"], "bpm": 90}, "jazz. 90 BPM"),
        ("[by {artist} and {band}]solo", {"artist": "A"}, "solo"),
        ("{{{key}}} [[{key}]]", {"key": "F"}, "{F} [F]"),
        ("Title: {title}. End", {"title": "Mr."}, "Title: Mr. End"),
        ("Title: {title}...", {"title": "Mr."}, "Title: Mr..."),
        ("{prompt}", {"prompt": "..., and then"}, "..., and then"),
        ("{tags}", {"tags": []}, None),
        ("{tags}", {"tags": ["", " "]}, None),
        ("{title}", {"title": "  "}, None),
        ("[{title}]", {}, None),
    ],
)
def test_a_template_is_filled_in(template: str, fields: dict[str, Any], prompt: str | None) -> None:
    assert make_prompt(_config(template), fields, None) == prompt


def test_without_draws_it_is_the_first_template_that_fits_whole_and_in_order() -> None:
    config = _config(
        "{prompt}", {"text": "{tags}[, {key}]", "weight": 0.01}, "x", drop_tags=0.9, drop_parts=0.9
    )
    assert make_prompt(config, {"tags": TAGS, "key": "F"}, None) == "jazz, piano, calm, night, vinyl, F"
    assert make_prompt(config, {"prompt": "a song", "tags": TAGS}, None) == "a song"
    assert make_prompt(_config("{tags}", max_tags=2), {"tags": TAGS}, None) == "jazz, piano"


def test_the_same_key_makes_the_same_prompt_and_another_epoch_another() -> None:
    config = _config("{tags}", "with {tags:and}", drop_tags=0.3)
    first = _prompts(config, {"tags": TAGS})
    assert first == _prompts(config, {"tags": TAGS})
    assert len(set(first)) > 100
    assert make_prompt(config, {"tags": TAGS}, generator("prompt", 1, 0, "m/b.mp3")) != first[0]


def test_templates_are_drawn_by_weight_among_those_that_fit() -> None:
    config = _config({"text": "a", "weight": 3}, "b", {"text": "{key}", "weight": 100})
    shares = Counter(_prompts(config, {}, 2000))
    assert set(shares) == {"a", "b"}
    assert 1400 < shares["a"] < 1600


def test_tags_are_shuffled_and_dropped_each_by_its_chance() -> None:
    drawn = [
        prompt.split(", ") for prompt in _prompts(_config("{tags}", drop_tags=0.4), {"tags": TAGS}, 2000)
    ]
    assert all(set(tags) <= set(TAGS) and len(set(tags)) == len(tags) >= 1 for tags in drawn)
    counts = Counter(tag for tags in drawn for tag in tags)
    assert all(1140 < counts[tag] < 1300 for tag in TAGS)  # 0.6, and a little for the one that must stay
    first = Counter(tags[0] for tags in drawn)
    assert all(330 < first[tag] < 470 for tag in TAGS)
    ordered = _prompts(_config("{tags}", drop_tags=0.4, shuffle_tags=False), {"tags": TAGS})
    assert all(tags == sorted(tags, key=TAGS.index) for tags in (prompt.split(", ") for prompt in ordered))
    assert {len(p.split(", ")) for p in _prompts(_config("{tags}", max_tags=2), {"tags": TAGS})} == {2}


def test_one_tag_stays_where_all_would_go() -> None:
    kept = Counter(_prompts(_config("{tags}", drop_tags=0.99), {"tags": TAGS[:2]}, 1000))
    assert 400 < kept["jazz"] < 600
    assert set(kept) <= {"jazz", "piano", "jazz, piano", "piano, jazz"}


def test_optional_parts_are_dropped_by_their_chance_and_never_all_that_there_is() -> None:
    prompts = Counter(_prompts(_config("a[, {key}]", drop_parts=0.25), {"key": "F"}, 2000))
    assert set(prompts) == {"a", "a, F"}
    assert 420 < prompts["a"] < 580
    assert set(_prompts(_config("[{key}]", drop_parts=0.9), {"key": "F"})) == {"F"}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "a caption", "tags": TAGS}, "a caption"),
        (
            {"genre": ["Rock", "Pop"], "instrument": ["drums"], "bpm": 120.0, "title": "Go", "artist": "X"},
            "Rock and Pop music with drums. 120 BPM. Title: Go.",
        ),
        ({"tags": ["a", "b"], "key": "F"}, "a, b, key of F"),
        ({"mood": ["sad"]}, "Music. Mood: sad."),
        ({"instrument": ["drums"], "bpm": 98}, "Music with drums. 98 BPM."),
        ({"title": "Go", "artist": "X"}, "Music titled Go"),
        ({"artist": "X", "album": "Y"}, None),
    ],
)
def test_without_templates_a_prompt_is_made_of_what_there_is_but_never_of_the_artist(
    fields: dict[str, Any], prompt: str | None
) -> None:
    assert make_prompt(DEFAULT_PROMPTS, fields, None) == prompt


def test_needed_fields_are_those_outside_brackets() -> None:
    assert needed_fields(_config("{tags}[, {bpm}]", "{prompt}")) == ["prompt", "tags"]


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ({"templates": ["{tags"]}, r"templates\[0\]: template '\{tags': '\{' at character 1"),
        ({"templates": ["a]"]}, r"'\]' at character 2 has no partner"),
        ({"templates": ["[a[b]]"]}, r"'\[' at character 3"),
        ({"templates": ["[a"]}, r"a '\[' is not closed"),
        ({"templates": ["{}"]}, r"\{\} names no field"),
        ({"templates": ["{tags:or}"]}, r"expected \{tags\} or \{tags:and\}"),
        ({"templates": []}, "templates"),
        ({"templates": [{"text": "a", "weight": 0}]}, "weight"),
        ({"templates": ["a"], "drop_tags": 1.0}, "drop_tags"),
        ({"templates": ["a"], "drop_tag": 0.1}, "did you mean 'drop_tags'"),
        ({"templates": [""]}, r"templates\[0\]"),
    ],
)
def test_a_mistake_in_a_template_is_found_when_the_config_is_read(prompts: Any, reason: str) -> None:
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "m", "path": "p", "prompts": prompts}]}
    with pytest.raises(ConfigError, match=rf"datasets\[0\]\.prompts.*{reason}"):
        parse_dataset_config(config)
