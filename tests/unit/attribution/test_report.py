"""The report of a whole run on a tiny model: parts, pages, export, and what it makes of bad input."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from made_datasets import write_dataset

from stable_audio_tools.attribution.evidence.gather import ReportSettings
from stable_audio_tools.attribution.features.parts import Measured, segment_rows, spread, timestep_rows
from stable_audio_tools.attribution.queries import query_source, train_source
from stable_audio_tools.attribution.reports.export import isrc
from stable_audio_tools.attribution.run import extract, run_attribution
from stable_audio_tools.attribution.scoring.scores import ScoreSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.cli.main import main
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.schema.attribution import STATEMENT, AttributionRecord

SMALL = FeatureSettings(K=2, proj_rank=4)
QUICK = ReportSettings(report_top=2, segments=2, resamples=40)
NASTY = "<script>alert('x')</script> \"quoted\" & 🎷"


def run_of(files, train, clips, folder, report=QUICK, settings=SMALL, **options):
    options = {"batch_size": 4, "num_workers": 0, "device": "cpu", **options}
    return run_attribution(files, train, clips, folder, settings, report=report, **options)


def exit_code(*words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--device", "cpu", "--num-workers", "0"])
    return ended.value.code


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def nasty_config(tmp_path, tiny_audio_folder):
    """The training set, its titles and artists as strangers write them, one track without an artist."""
    path = write_dataset(tmp_path / "nasty", tiny_audio_folder / "audio", name="train")
    module = f"""
def get_custom_metadata(info, audio):
    number = int(info["relpath"].split("/")[-1].split(".")[0])
    known = {{"prompt": "rock", "title": {NASTY!r} + str(number), "isrc": "de-a12-34-56789",
              "license": "CC BY 4.0", "label": "=cmd|' /C calc'!A0", "url": "javascript:alert(1)"}}
    if number % 2:
        known["artist"] = {NASTY!r}
    return known
"""
    (tmp_path / "nasty" / "train_md.py").write_text(module, encoding="utf-8")
    return path


@pytest.mark.parametrize("f", ["mean-squared-l2-norm", "mean-squared-l2-norm+loss"])
def test_timesteps_and_stretches_add_up_to_the_whole(tiny_files, clips, tmp_path, f):
    settings = FeatureSettings(K=3, proj_rank=4, f=f)
    whole = extract(
        tiny_files, tmp_path / "whole", settings, queries=clips, num_workers=0, device="cpu"
    ).features()
    measured = Measured(tiny_files.load_conditional("cpu"), settings, tiny_files.stamp(), 4)
    source = query_source(clips)
    times = timestep_rows(measured, source, tmp_path / "times").features().unflatten(0, (2, 3))
    stretches = segment_rows(measured, source, [0, 1], 5, 3, tmp_path / "stretches").features()
    scale = whole.abs().max()
    assert torch.allclose(times.sum(1) / scale, whole / scale, atol=1e-5)
    assert torch.allclose(stretches.unflatten(0, (2, 5)).sum(1) / scale, whole / scale, atol=1e-5)
    assert (times[:, 0] - times[:, 1]).abs().max() / scale > 1e-3


def test_timesteps_are_spread():
    assert spread(10, 3) == [1, 5, 8]
    assert spread(2, 3) == [0, 1]


def test_a_run_writes_pages_tables_and_an_export(tiny_files, train_config, clips, tmp_path):
    files = run_of(tiny_files, train_config, clips, tmp_path / "out")
    assert files.report == tmp_path / "out" / "report" / "index.html"
    index = files.report.read_text()
    assert re.findall(r'href="(clip[^"]*)"', index) == ["clip-0001.html", "clip-0002.html"]
    assert "https://" not in index
    for number in (1, 2):
        page = (files.report.parent / f"clip-000{number}.html").read_text()
        beside = re.findall(r'src="([^"]*)"', page)
        assert len(beside) == 2 * (1 + 2 + 1)  # the clip, its first two tracks, one to compare with
        assert all((files.report.parent / name).stat().st_size > 0 for name in beside)
        assert STATEMENT[1:] in page
        assert "membership gap" in page
    artists = rows_of(tmp_path / "out" / "artists.csv")
    assert all(
        float(r["times_average_low"]) <= float(r["times_average"]) <= float(r["times_average_high"])
        for r in artists
    )
    again = run_of(tiny_files, train_config, clips, tmp_path / "out")
    assert rows_of(tmp_path / "out" / "artists.csv") == artists
    assert again.report == files.report


def test_the_export_says_the_same_in_both_formats_and_fits_its_schema(
    tiny_files, nasty_config, clips, tmp_path
):
    run_of(
        tiny_files,
        nasty_config,
        clips,
        tmp_path / "out",
        ReportSettings(export_top=3, segments=0, resamples=0),
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "attribution.jsonl").read_text().splitlines()]
    table = rows_of(tmp_path / "out" / "attribution.csv")
    schema = json.loads((tmp_path / "out" / "attribution.schema.json").read_text())
    assert len(lines) == len(table) == 2 * 3
    assert [line["rank"] for line in lines] == [1, 2, 3] * 2
    for line, row in zip(lines, table, strict=True):
        AttributionRecord.model_validate(line)
        assert set(line) == set(row) == set(schema["properties"])
        assert row["track_id"] == line["track_id"]
        assert line["isrc"] == "DEA123456789"
        assert line["label"] == "=cmd|' /C calc'!A0"
        assert row["label"] == "'" + line["label"]  # or a spreadsheet would run it
        assert line["rank_low"] is None
        assert line["statement"] == STATEMENT
    assert len({line["run_id"] for line in lines}) == 1


def test_strange_names_and_missing_files_do_not_break_a_page(
    tiny_files, nasty_config, clips, tmp_path, monkeypatch
):
    from stable_audio_tools.attribution.reports import media
    from stable_audio_tools.errors import AudioError

    real = media.probe
    gone = []

    def probe(path):
        if "clips" not in str(path) and len(gone) < 2:
            gone.append(path)
            raise AudioError(f"{path}: No such file or directory")
        return real(path)

    monkeypatch.setattr(media, "probe", probe)
    report = run_of(tiny_files, nasty_config, clips, tmp_path / "out").report
    pages = "".join(path.read_text() for path in report.parent.glob("*.html"))
    assert "<script>" not in pages
    assert 'href="javascript' not in pages
    assert "&lt;script&gt;" in pages
    assert "🎷" in pages
    assert pages.count("Not shown:") == 2
    assert "no artist known" not in pages or "(no artist)" in pages


def test_one_track_has_a_report_that_says_so(tiny_files, train_config, clips, tmp_path):
    settings = FeatureSettings(K=2, proj_rank=4, max_examples=1)
    report = run_of(tiny_files, train_config, clips, tmp_path / "out", settings=settings).report
    assert "One track cannot be ranked" in report.read_text()


def test_a_baseline_has_a_report_without_intervals(tiny_files, train_config, clips, tmp_path):
    files = run_of(
        tiny_files, train_config, clips, tmp_path / "out", score_settings=ScoreSettings(method="random")
    )
    assert "gives no intervals" in files.report.read_text()
    assert rows_of(files.artists)[0]["times_average_low"] == ""


def test_membership_is_validated_with_tracks_from_outside(tiny_files, train_config, clips, tmp_path):
    report = ReportSettings(report_top=1, segments=0, resamples=0, membership_reference=str(train_config))
    page = run_of(tiny_files, train_config, clips, tmp_path / "out", report).report.read_text()
    assert "Against 8 tracks from outside" in page
    assert "AUC 0.50" in page  # the same tracks on both sides
    assert "cannot tell them apart" in page
    lost = ReportSettings(membership_reference=str(tmp_path / "missing.json"))
    with pytest.raises(Exception, match=r"missing\.json"):
        run_of(tiny_files, train_config, clips, tmp_path / "out", lost)


def test_the_command_on_the_page_makes_the_same_run(tiny_files, train_config, clips, tmp_path, monkeypatch):
    out = tmp_path / "it's out"
    report = run_of(tiny_files, train_config, clips, out).report
    shown = re.search(r"<pre><code>(.*?)</code></pre>", report.read_text(), re.S)
    assert shown is not None
    words = shlex.split(html.unescape(shown[1]))
    assert words[:3] == ["sat", "attribute", "run"]
    before = (out / "ranking.csv").read_bytes()
    assert exit_code(*words[1:]) == 0
    assert (out / "ranking.csv").read_bytes() == before
    written = report.stat().st_mtime_ns
    assert exit_code(*words[1:], "--no-report") == 0
    assert report.stat().st_mtime_ns == written


def test_settings_out_of_range_are_refused():
    for wrong in ({"report_top": 0}, {"resamples": 3}, {"segments": 1}, {"export_top": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ReportSettings(**wrong)


def test_every_field_of_the_export_is_documented():
    page = Path(__file__).parents[3].joinpath("docs", "attribution.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.M)
    fields = AttributionRecord.model_fields
    assert [name for name, _ in documented] == list(fields)
    for name, text in documented:
        assert text == (fields[name].description or "Version of this list of fields.")


def test_isrc_is_twelve_characters_or_nothing():
    assert isrc("de-a12-34-56789") == isrc("ISRC DEA123456789") == "DEA123456789"
    assert isrc("hello") is isrc(None) is isrc("") is None


def test_a_clip_without_a_prompt_is_named_before_any_work(tiny_files, train_config, clips, tmp_path):
    (clips / "prompts.csv").unlink()
    with pytest.raises(DataError, match="clip_2"):
        run_of(tiny_files, train_config, clips, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(train_source(train_config).index) == 8
