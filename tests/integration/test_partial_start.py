"""``sat train --load-partial``: a run starts from what fits of a checkpoint, and keeps the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workshop import Workshop, run_sat


def test_a_deeper_model_starts_from_the_layers_that_there_are(
    shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shop.config("deeper.json", lambda config: config["model"]["diffusion"]["config"].update(depth=3))
    command = shop.train(model_config=config, name="deeper", save_dir=shop / "partial")
    assert run_sat(command) == 2
    assert "--load-partial" in capsys.readouterr().err
    assert run_sat([*command, "--load-partial"]) == 0
    assert "missing: " in capsys.readouterr().err
    (run,) = Path(shop / "partial/deeper").iterdir()
    (report,) = json.loads((run / "load_report.json").read_text())
    assert report["checkpoint"] == shop / "base.ckpt"
    assert {key.split(".")[4] for key in report["missing"]} == {"2"}
    assert (report["unexpected"], report["mismatched"]) == ([], [])
    assert json.loads((run / "manifest.json").read_text())["settings"]["load_partial"] is True


def test_a_whole_start_leaves_no_report(shop: Workshop) -> None:
    command = shop.train(name="whole", save_dir=shop / "partial")
    assert run_sat([*command, "--load-partial"]) == 0
    (run,) = Path(shop / "partial/whole").iterdir()
    assert not (run / "load_report.json").exists()
