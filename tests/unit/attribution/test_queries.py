"""What may ask: folders, files, tables and dataset configs, each clip with its prompt."""

from __future__ import annotations

import json
import shutil

import pytest
from made_datasets import write_dataset

from stable_audio_tools.attribution.queries import query_source
from stable_audio_tools.attribution.run import extract
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.errors import DataError, UsageError

SMALL = FeatureSettings(K=1, proj_rank=2)


@pytest.fixture
def records_of(tiny_files, tmp_path):
    def records(source, prompt=None):
        out = tmp_path / "store"
        shutil.rmtree(out, ignore_errors=True)
        options = {"num_workers": 0, "device": "cpu", "prompt": prompt}
        return extract(tiny_files, out, SMALL, queries=source, **options).records()

    return records


def test_a_table_says_what_its_clips_were_made_from(records_of, clips, tmp_path):
    table = tmp_path / "asked.csv"
    table.write_text(
        "path,prompt,seconds_total\n"
        f'{clips / "clip_7.wav"},"sad piano, slow",9.5\n'
        "clips/clip_2.wav,loud drums,\n"
    )
    one, other = records_of(table)
    assert (one["prompt"], one["seconds_total"]) == ("sad piano, slow", 9.5)
    assert (other["prompt"], other["sample_id"]) == ("loud drums", "asked/clips/clip_2.wav")
    assert other["seconds_total"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,text\na.wav,x\n", "expected path and prompt"),
        ("path,prompt\nnone.wav,x\n", r"asked\.csv:2: path 'none\.wav' is no file"),
        ("path,prompt\nclips/clip_2.wav,\n", "the prompt is empty"),
        ("path,prompt,seconds_total\nclips/clip_2.wav,x,long\n", "seconds_total is 'long', expected seconds"),
        ("path,prompt\nclips/clip_2.wav,x\nclips/clip_2.wav,y\n", "listed a second time"),
        ("path,prompt\n", "lists no clips"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_line(clips, tmp_path, text, message):
    table = tmp_path / "asked.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        query_source(table)


def test_one_file_with_a_prompt_of_the_command_line(records_of, clips):
    (clips / "prompts.csv").unlink()
    with pytest.raises(DataError, match=r"clip_2\.wav: its prompt is not known"):
        query_source(clips / "clip_2.wav")
    [record] = records_of(clips / "clip_2.wav", "slow jazz")
    assert (record["prompt"], record["sample_id"]) == ("slow jazz", "clips/clip_2.wav")


def test_the_prompt_of_the_command_line_goes_before_all_others(records_of, clips, tmp_path):
    assert {record["prompt"] for record in records_of(clips)} == {"rock 3 guitar"}
    assert {record["prompt"] for record in records_of(clips, "slow jazz")} == {"slow jazz"}
    dataset = write_dataset(tmp_path / "queries", clips, "queries")
    assert {record["prompt"] for record in records_of(dataset, "slow jazz")} == {"slow jazz"}


@pytest.mark.parametrize(("suffix", "text"), [(".txt", "slow jazz"), (".json", '{"prompt": "slow jazz"}')])
def test_a_caption_beside_the_file(records_of, clips, suffix, text):
    (clips / "prompts.csv").unlink()
    (clips / f"clip_2{suffix}").write_text(text)
    [record] = records_of(clips / "clip_2.wav")
    assert record["prompt"] == "slow jazz"


def test_what_is_no_source_is_refused(tmp_path, clips, tiny_files, train_config):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="is a file; expected a folder of clips, an audio file, a table"):
        query_source(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="does not exist"):
        query_source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a prompt is for clips"):
        extract(tiny_files, tmp_path / "s", SMALL, dataset_config=train_config, prompt="x", device="cpu")


def test_another_prompt_is_another_store(clips):
    stamps = {query_source(clips, prompt).stamp() for prompt in (None, "slow jazz", "loud drums")}
    assert len(stamps) == 3
    assert json.dumps(sorted(stamps))
