"""Song Describer: the choice of prompts, the precomputed file, and a checkpoint scored against it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.data.song_describer import read_song_describer
from stable_audio_tools.errors import CheckpointError, DataError, UsageError
from stable_audio_tools.evaluation.reference import ReferenceSet
from stable_audio_tools.evaluation.song_describer import choose_prompts, evaluate_checkpoint, precompute
from stable_audio_tools.models.adapters.lora import adapted_layers, apply_lora
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.schema.training import LoraConfig

SHARED = Path(__file__).parents[3] / "../shared"

HEADER = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration"
ROWS = [  # tracks of the tiny catalogue; 1000203 has no recording in the fixture's folder
    '1,1000101,"a calm, quiet song",True,0,1,1,01/1000101.mp3,1.0',
    "2,1000102,fast rock,True,0,1,1,02/1000102.mp3,1.1",
    "3,1000101,guitar,False,0,1,1,01/1000101.mp3,1.0",
    "4,1000305,a song with piano and drums,,,1,1,05/1000305.mp3,1.4",
    "5,1000203,jazz,True,1,2,2,03/1000203.mp3,1.2",
]


@pytest.fixture
def song_describer(tiny_audio_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The table, and a folder with recordings of all its tracks but one, in both ways of naming them."""
    import soundfile

    table = tmp_path / "song_describer.csv"
    table.write_text("\n".join([HEADER, *ROWS]) + "\n")
    for track, name in ((1000101, "{}.2min.mp3"), (1000102, "{}.mp3"), (1000305, "{}.2min.mp3")):
        folder = tmp_path / "audio" / f"{track % 100:02d}"
        folder.mkdir(parents=True)
        audio, rate = soundfile.read(tiny_audio_folder / "audio" / f"{track % 100:02d}" / f"{track}.wav")
        soundfile.write(folder / name.format(track), audio, rate, format="MP3", subtype="MPEG_LAYER_III")
    return table, tmp_path / "audio"


@pytest.fixture
def precomputed(song_describer: tuple[Path, Path], tiny_clap_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "embeddings.npz"
    precompute(*song_describer, path, prompt_source="longest", clap=tiny_clap_folder, device="cpu")
    return path


def test_first_and_longest(song_describer: tuple[Path, Path]) -> None:
    captions = read_song_describer(song_describer[0])
    for source in ("first", "longest"):
        chosen = choose_prompts(captions, source)
        assert [caption.track_id for caption, _ in chosen] == [1000101, 1000102, 1000305, 1000203]
        assert chosen[0][1] == "a calm, quiet song"


def test_random_is_keyed_by_seed_and_track(song_describer: tuple[Path, Path]) -> None:
    captions = read_song_describer(song_describer[0])
    drawn = Counter(choose_prompts(captions, "random", seed)[0][1] for seed in range(40))
    assert set(drawn) == {"a calm, quiet song", "guitar"}
    assert min(drawn.values()) > 5
    of_all = dict((c.track_id, p) for c, p in choose_prompts(captions, "random", 3))
    of_one = choose_prompts([c for c in captions if c.track_id == 1000101], "random", 3)
    assert of_one[0][1] == of_all[1000101]


def test_the_real_table_gives_one_prompt_a_track() -> None:
    table = SHARED / "data/song-describer/song_describer.csv"
    if not table.is_file():
        pytest.skip("shared/data/song-describer is not on this machine")
    captions = read_song_describer(table)
    by_track: dict[int, set[str]] = {}
    for caption in captions:
        by_track.setdefault(caption.track_id, set()).add(caption.caption)
    for source in ("random", "first", "longest"):
        chosen = choose_prompts(captions, source)
        assert len(chosen) == 706
        assert all(prompt in by_track[caption.track_id] for caption, prompt in chosen)


def test_an_unknown_prompt_source_lists_the_known_ones(song_describer: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="random, first, longest"):
        choose_prompts(read_song_describer(song_describer[0]), "shortest")


def test_precompute_embeds_what_is_there_and_lists_the_rest(precomputed: Path) -> None:
    found = ReferenceSet.load(precomputed)
    assert found.track_ids == ("1000101", "1000102", "1000305")
    assert found.prompts == ("a calm, quiet song", "fast rock", "a song with piano and drums")
    assert found.audio_embeddings.shape == found.text_embeddings.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(found.audio_embeddings, axis=1), 1.0, atol=1e-5)
    assert list(found.settings["left_out"]) == ["1000203"]
    assert found.settings["prompt_source"] == "longest"


def test_only_valid_captions(
    song_describer: tuple[Path, Path], tiny_clap_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "valid.npz"
    found = precompute(*song_describer, output, valid_only=True, clap=tiny_clap_folder, device="cpu")
    assert found.prompts == ("a calm, quiet song", "fast rock")


def test_a_stub_instead_of_a_recording_is_left_out(
    song_describer: tuple[Path, Path], tiny_clap_folder: Path, tmp_path: Path
) -> None:
    (song_describer[1] / "02/1000102.mp3").write_text("../../elsewhere/02/1000102.mp3")
    found = precompute(*song_describer, tmp_path / "e.npz", clap=tiny_clap_folder, device="cpu")
    assert set(found.settings["left_out"]) == {"1000102", "1000203"}
    assert "1000102" not in found.track_ids


def test_no_recordings_at_all_is_an_error(
    song_describer: tuple[Path, Path], tiny_clap_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "none.npz"
    with pytest.raises(DataError, match="has none of the 4 tracks"):
        precompute(song_describer[0], tmp_path / "nowhere", output, clap=tiny_clap_folder, device="cpu")
    assert not output.exists()
    with pytest.raises(UsageError, match=r"\.npz"):
        precompute(*song_describer, tmp_path / "out.pt", clap=tiny_clap_folder, device="cpu")


@pytest.fixture
def checkpoint(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """A random tiny model: its config and its checkpoint."""
    from stable_audio_tools.models.checkpoints import save_checkpoint
    from stable_audio_tools.models.factory import create_model_from_config

    config = tmp_path / "model.json"
    config.write_text(json.dumps(tiny_diffusion_config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(tiny_diffusion_config)
    return config, save_checkpoint(tmp_path / "model.ckpt", model.state_dict())


def test_a_checkpoint_is_rendered_and_scored(
    checkpoint: tuple[Path, Path], precomputed: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "cfg_scale": 2.0, "gen_batch_size": 2, "device": "cpu"}
    output = tmp_path / "out"
    scores = evaluate_checkpoint(*checkpoint, precomputed, output_dir=output, **settings)
    assert scores["clips"] == scores["clips_with_prompt"] == 3
    assert scores["fad"] > 0
    assert -1 <= scores["alignment"] <= 1
    assert scores["reference_alignment"] is not None
    assert [clip["prompt"] for clip in scores["per_clip"]] == list(ReferenceSet.load(precomputed).prompts)
    assert json.loads((output / "results.json").read_text()) == scores
    clip = json.loads((output / "clips/1000101.json").read_text())
    assert clip["steps"] == 2
    assert clip["model_sha256"] == scores["settings"]["model_sha256"]
    stamps = {path: path.stat().st_mtime_ns for path in (output / "clips").iterdir()}
    assert evaluate_checkpoint(*checkpoint, precomputed, output_dir=output, **settings) == scores
    assert {path: path.stat().st_mtime_ns for path in (output / "clips").iterdir()} == stamps


def test_several_adapters_go_on_top(checkpoint: tuple[Path, Path], precomputed: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 1, "limit": 1, "seconds": 0.25, "device": "cpu"}
    adapters = []
    for name in ("one", "other"):
        model = ModelFiles(*checkpoint).load("cpu")
        apply_lora(model, LoraConfig(component_whitelist=["self_attn"], rank=2, alpha=2), seed=len(name))
        for layer in adapted_layers(model).values():
            torch.nn.init.ones_(layer.lora_B["default"].weight)
        adapters.append(str(save_adapter(model, tmp_path / name)))
    adapters[1] += ":0.5"
    plain, tuned = (
        evaluate_checkpoint(
            *checkpoint, precomputed, output_dir=tmp_path / str(i), lora_ckpt_path=on, **settings
        )
        for i, on in enumerate((None, adapters))
    )
    assert plain["settings"]["lora_ckpt_path"] is None
    assert tuned["settings"]["lora_ckpt_path"] == adapters
    assert tuned["alignment"] != plain["alignment"]


def test_the_first_prompts_only(checkpoint: tuple[Path, Path], precomputed: Path, tmp_path: Path) -> None:
    scores = evaluate_checkpoint(
        *checkpoint, precomputed, output_dir=tmp_path / "o", steps=1, limit=2, seconds=0.25, device="cpu"
    )
    assert scores["clips"] == 2
    assert scores["reference_recordings"] == 3
    assert json.loads((tmp_path / "o/clips/1000102.json").read_text())["duration_seconds"] == 0.25
    with pytest.raises(UsageError, match="limit"):
        evaluate_checkpoint(*checkpoint, precomputed, output_dir=tmp_path / "o", limit=0, device="cpu")


def test_nothing_is_rendered_when_something_is_missing(
    checkpoint: tuple[Path, Path], precomputed: Path, tiny_clap_without_fusion: Path, tmp_path: Path
) -> None:
    config, weights = checkpoint
    output = tmp_path / "out"
    with pytest.raises(DataError, match="use one model"):
        evaluate_checkpoint(
            config, weights, precomputed, output_dir=output, clap=tiny_clap_without_fusion, device="cpu"
        )
    with pytest.raises(CheckpointError, match=r"absent\.ckpt"):
        evaluate_checkpoint(config, tmp_path / "absent.ckpt", precomputed, output_dir=output, device="cpu")
    shutil.copy(precomputed, tmp_path / "copy.npz")
    found = ReferenceSet.load(tmp_path / "copy.npz")
    ReferenceSet(
        found.audio_embeddings,
        np.zeros((0, 16), np.float32),
        (),
        found.track_ids,
        found.clap,
        found.clap_sha256,
    ).save(tmp_path / "copy.npz")
    with pytest.raises(DataError, match="no prompts"):
        evaluate_checkpoint(config, weights, tmp_path / "copy.npz", output_dir=output, device="cpu")
    assert not output.exists()
