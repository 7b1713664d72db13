"""A folder describes itself: by texts, JSON and tags, in a stated order, the same in every process."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.attribution.queries import query_source, train_source
from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.metadata import load_metadata_function
from stable_audio_tools.data.sidecars import sidecar_tag
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.schema.generation import ClipSidecar
from stable_audio_tools.schema.reader import parse_dataset_config


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _song(path: Path, **tags: str) -> Path:
    return save_audio(path, torch.zeros(1, 800), 8000, tags=tags)


def _config(root: Path, **entry: Any) -> dict[str, Any]:
    return {"dataset_type": "audio_dir", "datasets": [{"id": "m", "path": str(root), **entry}]}


def _described(track: Track) -> dict[str, Any]:
    """What is known of a track without a metadata module, with the prompt that stays."""
    known = track.description.known(track.path, track.relpath)
    return {**known, **track.description.prompt(known, track.path, track.relpath)}


def _known(root: Path, **entry: Any) -> dict[str, dict[str, Any]]:
    index = TrackIndex.from_config(parse_dataset_config(_config(root, **entry)))
    return {track.relpath: _described(track) for track in index}


def _infos(config: dict[str, Any], epochs: int = 1, **options: Any) -> list[dict[str, Any]]:
    options = {"num_workers": 0, "shuffle": False, "drop_last": False, **options}
    loader = create_dataloader_from_config(config, 1, 400, 8000, audio_channels=1, **options)
    return [info for _ in range(epochs) for _, infos in loader for info in infos]


def _module(root: Path, body: str) -> str:
    path = root.parent / f"module_{abs(hash(body))}.py"
    path.write_text(f"def get_custom_metadata(info, audio):\n    {body}\n")
    return str(path)


def test_a_plain_folder_needs_nothing_but_its_path(tmp_path: Path) -> None:
    root = tmp_path / "music"
    for name in ("text", "json", "tagged", "bare"):
        _song(root / f"{name}.flac", **({"title": "Go", "genre": "Rock"} if name == "tagged" else {}))
    (root / "text.txt").write_text("\ufeffa slow\n  song \n", encoding="utf-8")
    (root / "json.json").write_text('{"caption": "a loud song", "bpm": 120, "mine": [1]}')
    infos = {info["relpath"]: info for info in _infos(_config(root))}
    assert infos["text.flac"]["prompt"] == "a slow song"
    assert (infos["json.flac"]["prompt"], infos["json.flac"]["bpm"]) == ("a loud song", 120.0)
    assert infos["json.flac"]["mine"] == [1]
    assert infos["tagged.flac"]["prompt"] == "Rock music. Title: Go."
    assert infos["tagged.flac"]["genre"] == ["Rock"]
    assert "prompt" not in infos["bare.flac"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_tags_are_read_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    _song(tmp_path / f"a{suffix}", title="T", artist="A", album="B", genre="Folk", comment="ripped by me")
    known = _known(tmp_path)[f"a{suffix}"]
    assert {name: known[name] for name in ("title", "artist", "album", "genre")} == {
        "title": "T",
        "artist": "A",
        "album": "B",
        "genre": ["Folk"],
    }
    assert known["prompt"] == "Folk music. Title: T."
    assert known["comment"] == "ripped by me"
    assert "encoder" not in known


def test_id3_and_mp4_tags_have_the_same_names(tmp_path: Path) -> None:
    tags = {"title": "T", "album_artist": "A", "genre": "Rock;Pop", "TBPM": "120", "TKEY": "Am"}
    _encode(tmp_path / "a.mp3", "libmp3lame", {**tags, "comment": "http://shop.example"})
    _encode(tmp_path / "b.mp3", "libmp3lame", {**tags, "TBPM": "0"})
    _encode(tmp_path / "c.m4a", "aac", {"title": "T", "artist": "A", "description": "episode 3"})
    known = _known(tmp_path)
    assert known["a.mp3"]["prompt"] == "Rock and Pop music. 120 BPM. Key: Am. Title: T."
    assert (known["a.mp3"]["artist"], known["a.mp3"]["bpm"]) == ("A", 120.0)
    assert known["b.mp3"]["prompt"] == "Rock and Pop music. Key: Am. Title: T."
    assert "bpm" not in known["b.mp3"]
    assert known["c.m4a"] == {
        "title": "T",
        "artist": "A",
        "description": "episode 3",
        "prompt": "Music titled T",
    }


def _encode(path: Path, codec: str, tags: dict[str, str]) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        container.metadata.update(tags)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)


def test_each_field_is_of_the_first_source_that_has_it(tmp_path: Path) -> None:
    root = tmp_path / "music"
    _song(root / "a.wav", title="tag", artist="tag", album="tag")
    (root / "a.txt").write_text("text")
    (root / "a.json").write_text('{"prompt": "json", "title": "json", "artist": "json"}')
    (root / "m.csv").write_text("path,prompt,title\na.wav,,manifest\n")
    expected = {"prompt": "json", "title": "manifest", "artist": "json", "album": "tag"}
    assert _known(root, manifest="m.csv")["a.wav"] == expected
    assert _known(root, manifest="m.csv", metadata_sources=["text", "manifest"])["a.wav"] == {
        "prompt": "text",
        "title": "manifest",
    }
    assert _known(root, metadata_sources=[])["a.wav"] == {}


def test_the_users_function_goes_before_all_else_and_sees_it(tmp_path: Path) -> None:
    root = tmp_path / "music"
    _song(root / "a.wav", artist="tag")
    (root / "a.txt").write_text("text")
    wins = _module(root, "return {'prompt': info.get('prompt', 'none') + '!', 'artist': 'function'}")
    every = {"metadata_sources": ["text", "tags"], "custom_metadata_module": wins}
    (info,) = _infos(_config(root, **every))
    assert (info["prompt"], info["artist"]) == ("text!", "function")
    (info,) = _infos(_config(root, custom_metadata_module=wins))  # alone it is all that is known, as ever
    assert info["prompt"] == "none!"
    adds = _module(root, "return {'energy': 3}")
    prompts = {"templates": ["{prompt} of energy {energy} by {artist}"]}
    config = _config(root, **{**every, "custom_metadata_module": adds, "prompts": prompts})
    (info,) = _infos(config)
    assert info["prompt"] == "text of energy 3 by tag"


def test_keys_beside_datasets_are_for_folders_without_their_own(tmp_path: Path) -> None:
    entries = []
    for name in ("one", "two"):
        _song(tmp_path / name / "a.wav")
        entries.append({"id": name, "path": str(tmp_path / name)})
    entries[1]["prompts"] = {"templates": ["own"]}
    config = {
        "dataset_type": "audio_dir",
        "datasets": entries,
        "prompts": {"templates": ["{folder}, {filename}"]},
        "metadata_sources": [],
    }
    with pytest.raises(DataError, match=r"a\.wav: no prompt template fits it: they need filename, folder"):
        _infos(config)  # the file is in the folder itself, which has no name within it
    config["prompts"] = {"templates": ["{filename}"]}
    assert [info["prompt"] for info in _infos(config)] == ["a", "own"]
    again = parse_dataset_config(config).model_dump(mode="json")
    assert parse_dataset_config(again).model_dump(mode="json") == again
    for key, value, where in (
        ("prompts", {"templates": ["{a}", "{a"]}, r"prompts\.templates\[1\]: template '\{a': '\{' at"),
        ("metadata_sources", ["txt"], r"metadata_sources\[0\]: "),
        ("metadata_source", ["text"], r"unknown key 'metadata_source'; did you mean 'metadata_sources'"),
    ):
        with pytest.raises(ConfigError, match=rf"^dataset config: (top level: )?{where}") as caught:
            parse_dataset_config({**config, key: value})
        assert "more)" not in str(caught.value)


def test_file_and_folder_names_and_years_make_prompts(tmp_path: Path) -> None:
    _song(tmp_path / "Kick_Drums/808-deep_kick.wav", date="1999-05-01")
    prompts = {"templates": ["{folder}: {filename}, {year}"]}
    assert _known(tmp_path, prompts=prompts)["Kick_Drums/808-deep_kick.wav"]["prompt"] == (
        "Kick_Drums: 808 deep kick, 1999"
    )


def test_a_track_that_no_template_fits_is_named_or_skipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _song(tmp_path / "a.wav")
    _song(tmp_path / "b.wav", title="B")
    config = _config(tmp_path, prompts={"templates": ["{title}"]})
    with pytest.raises(
        DataError, match=r"a\.wav: no prompt template fits it: they need title; known of it are"
    ):
        _infos(config)
    assert {info["relpath"] for info in _infos({**config, "on_error": "skip"})} == {"b.wav"}
    assert "no prompt template fits it" in capfd.readouterr().err.replace("\n", " ")


def test_training_draws_prompts_by_track_and_epoch_and_validation_does_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _song(tmp_path / f"{name}.wav")
        write_json(tmp_path / f"{name}.json", {"prompt": ["one", "two", "three"], "tags": list("vwxyz")})
    prompts = {"templates": ["{prompt}: {tags}"], "drop_tags": 0.3}
    config = _config(tmp_path, prompts=prompts)
    fixed = _infos(config, epochs=3)
    assert {info["prompt"] for info in fixed} == {"one: v, w, x, y, z"}

    def drawn(**options: Any) -> dict[tuple[str, int], str]:
        infos = _infos(config, epochs=6, shuffle=True, **options)
        return {(info["relpath"], row // 2): info["prompt"] for row, info in enumerate(infos)}

    first = drawn()
    assert len(set(first.values())) > 9
    assert {prompt.split(":")[0] for prompt in first.values()} == {"one", "two", "three"}
    assert drawn() == first
    assert drawn(num_workers=2) == first
    assert drawn(num_workers=1, multiprocessing_context="spawn") == first
    assert drawn(seed=1) != first
    (tmp_path / "a.wav").unlink()  # what is drawn for a track does not depend on the others
    alone = [info["prompt"] for info in _infos(config, epochs=6, shuffle=True)]
    assert alone == [first["b.wav", epoch] for epoch in range(6)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 text"),
        ("a.json", b"{", r"a\.json:1: not JSON"),
        ("a.json", b"[]", r"a\.json: is a list, expected an object of what is known of a\.wav"),
        ("a.json", b'{"bpm": "fast"}', r"a\.json: bpm: 'fast' is not a tempo"),
        ("a.json", b'{"prompt": {"en": "x"}}', r"a\.json: prompt: .* is not a text"),
    ],
)
def test_a_malformed_description_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    _song(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        _infos(_config(tmp_path))


def test_an_edited_caption_is_read_again(tmp_path: Path) -> None:
    _song(tmp_path / "a.wav")
    caption = tmp_path / "a.txt"
    caption.write_text("before")
    assert _known(tmp_path)["a.wav"]["prompt"] == "before"
    caption.write_text("after")
    os.utime(caption, ns=(1, 1))
    assert _known(tmp_path)["a.wav"]["prompt"] == "after"
    caption.unlink()
    assert "prompt" not in _known(tmp_path)["a.wav"]


def test_what_was_generated_here_is_known_by_its_sidecar_or_its_comment(tmp_path: Path) -> None:
    sidecar = ClipSidecar(
        file="a.wav",
        prompt="from here",
        conditioning={"bpm": 120, "seconds_total": 5},
        seconds_start=0.0,
        seconds_total=5.0,
        duration_seconds=0.1,
        sample_rate=8000,
        seed=1,
        steps=1,
        cfg_scale=1.0,
        sampler="euler",
        objective="v",
        created="now",
        render_seconds=0.1,
    )
    _song(tmp_path / "a.wav", comment=sidecar_tag(sidecar))
    _song(tmp_path / "b.wav")
    write_json(tmp_path / "b.json", sidecar.model_dump())
    for known in _known(tmp_path).values():
        assert known == {"prompt": "from here", "bpm": 120.0, "metadata_seconds_total": 5}


def test_jamendo_tables_feed_templates_without_python(tiny_audio_folder: Path) -> None:
    entry = {
        "metadata_sources": ["jamendo"],
        "prompts": {"templates": ["{genre} with {instrument}[, {mood}]"]},
    }
    known = _known(tiny_audio_folder / "audio", **entry)
    assert known["03/1000203.wav"]["prompt"] == "jazz with piano, relaxing"
    assert known["04/1000204.wav"]["prompt"] == "jazz with bass"
    assert known["04/1000204.wav"]["tags"] == ["jazz", "bass"]
    assert (known["04/1000204.wav"]["artist"], known["04/1000204.wav"]["album_id"]) == ("Artist 2", 800003)
    sentence = _known(tiny_audio_folder / "audio", metadata_sources=["jamendo"])["03/1000203.wav"]["prompt"]
    assert sentence == "Jazz music with piano. Mood: relaxing. Title: Song 2."


def test_real_recordings_are_described_by_their_tables(jamendo_mini: Path) -> None:
    known = _known(jamendo_mini / "audio", metadata_sources=["jamendo"])
    assert known["01/1000101.mp3"]["genre"] == ["jazz", "lounge"]
    assert known["03/1000203.mp3"]["instrument"] == ["acoustic guitar", "voice"]
    assert known["06/1000506.mp3"]["title"] == "sweet waltz 0I_22mi"


def test_a_feature_store_knows_when_captions_change(tmp_path: Path) -> None:
    _song(tmp_path / "music/a.wav")
    caption = tmp_path / "music/a.txt"
    caption.write_text("before")
    config = tmp_path / "data.json"
    write_json(config, _config(tmp_path / "music"))
    stamp = train_source(config).stamp()
    assert train_source(config).stamp() == stamp
    caption.write_text("after, at another time")
    os.utime(caption, ns=(1, 1))
    edited = train_source(config).stamp()
    assert edited != stamp
    write_json(config, _config(tmp_path / "music", prompts={"templates": ["x"]}))
    assert train_source(config).stamp() != edited


def test_clips_that_ask_may_have_captions_instead_of_a_table(tmp_path: Path) -> None:
    _song(tmp_path / "a.wav", title="Not this")
    (tmp_path / "a.txt").write_text("a caption")
    (track,) = query_source(tmp_path).index
    assert track.metadata_module is None
    assert _described(track)["prompt"] == "a caption"
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="its prompt is not known"):  # a title is no prompt
        query_source(tmp_path)
    (tmp_path / "prompts.csv").write_text("file,prompt\na.wav,from table\n")
    (track,) = query_source(tmp_path).index
    assert track.metadata_module is not None
    assert load_metadata_function(track.metadata_module)({"path": track.path}, None)["prompt"] == "from table"
