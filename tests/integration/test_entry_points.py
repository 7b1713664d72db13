"""The documented commands exist under their documented names, with their documented flags."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from workshop import Workshop, run_sat

from stable_audio_tools.cli.main import JOBS
from stable_audio_tools.schema.reader import read_json
from stable_audio_tools.training.settings import load_defaults

REPOSITORY = Path(__file__).parents[2]
TRAINING = """
    --model-config --dataset-config --val-dataset-config --pretrained-ckpt-path --pretransform-ckpt-path
    --ckpt-path --batch-size --num-workers --precision --name --save-dir --checkpoint-every --num-gpus
    --num-nodes --accum-batches --strategy --seed --config-file --gradient-clip-val --logger
    --remove-pretransform-weight-norm --recover --save-top-k
"""
DOCUMENTED = {
    "train.py": TRAINING,
    "train_lora.py": f"{TRAINING} --lora-ckpt-path",
    "download_mtg_jamendo.py": "--target --audio-dir",
    "unwrap_model.py": "--model-config --ckpt-path --name --use-safetensors",
    "pre_encode.py": """
        --model-config --ckpt-path --pretrained-name --model-half --dataset-config --output-path --batch-size
        --sample-size --is-discrete --num-nodes --num-gpus --num-workers --strategy --limit-batches --shuffle
    """,
    "scripts/dac_hist_dedup.py": """
        --dataset-config --dataset-dir --output-dir --device --similarity-device --similarity-threshold
        --histogram-mode --max-audio-seconds --model-path
    """,
    "scripts/precompute_song_describer_clap_embeddings.py": """
        --csv-path --audio-dir --output-path --prompt-source --prompt-seed --device
    """,
    "scripts/eval_song_describer_checkpoint_clap.py": """
        --model-config --ckpt-path --precomputed-embeddings-path --steps --cfg-scale --gen-batch-size
        --clap-batch-size --device
    """,
    "scripts/dtrak_extract_features.py": """
        --model-config --ckpt-path --dataset-config --queries --output --pre-encoded
    """,
    "scripts/dtrak_score.py": "--train-features --query-features --output-dir",
    "scripts/run_dtrak_attribution.sh": "CKPT_PATH OUTPUT_DIR SCORE_FLAGS --model-config --proj-rank",
}


def help_of(script: str, columns: int = 100) -> str:
    """What ``<script> --help`` prints on a terminal of that width, without colours."""
    path = REPOSITORY / script
    command = ["bash", str(path)] if path.suffix == ".sh" else [sys.executable, str(path)]
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHON": sys.executable}
    result = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", DOCUMENTED)
def test_help_has_every_documented_flag_in_full(script: str) -> None:
    words = set(re.findall(r"[\w-]+", help_of(script)))
    assert not set(DOCUMENTED[script].split()) - words


def test_every_script_is_documented_here() -> None:
    scripts = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "scripts").iterdir()}
    scripts |= {path.name for path in REPOSITORY.glob("*.py")}
    assert {name for name in scripts if name.endswith((".py", ".sh"))} == set(DOCUMENTED)


def test_sat_help_names_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sat(["--help"]) == 0
    lines = capsys.readouterr().out
    assert all(re.search(rf"^\W+{name} ", lines, re.MULTILINE) for name in JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_help(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sat([job, "--help"]) == 0
    assert f"sat {job}" in capsys.readouterr().out


def test_sat_without_a_job_shows_the_help_and_an_unknown_job_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_sat([])
    assert "generate" in "".join(capsys.readouterr())
    assert run_sat(["generat"]) == 2
    assert "generate" in capsys.readouterr().err, "the nearest job is named"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sat(["--version"]) == 0
    assert re.fullmatch(r"stable-audio-tools \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from stable_audio_tools.cli.main import build; build(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_schema_is_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sat(["config", "schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == f"{kind} config"
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"model": "DiffusionCondModelConfig", "dataset": "AudioDirectory"}[kind] in schema["$defs"]


def test_the_shipped_configs_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = sorted(REPOSITORY.glob("model_config*.json"))
    shipped += sorted((REPOSITORY / "stable_audio_tools/configs").rglob("*.json"))
    assert len(shipped) >= 6
    assert run_sat(["config", "check", *map(str, shipped)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in shipped]
    assert all(("dataset of type audio_dir" in line) == ("dataset_type" in read_json(path)) for line, path in
               zip(lines, shipped, strict=True))  # fmt: skip


def test_the_documented_defaults() -> None:
    defaults = load_defaults(REPOSITORY / "defaults.ini")
    documented = {
        "batch_size": 8,
        "checkpoint_every": 10_000,
        "num_gpus": 1,
        "num_nodes": 1,
        "precision": "16-mixed",
        "seed": 42,
    }
    assert {key: defaults[key] for key in documented} == documented


def test_unwrapping_writes_into_the_working_folder(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model-config", shop / "model.json", "--ckpt-path", shop / "wrapped.ckpt"]
    assert run_sat(["unwrap", *flags, "--name", "mine"]) == 0
    assert run_sat(["unwrap", *flags, "--name", "mine", "--use-safetensors"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.ckpt", "mine.safetensors"]


def test_training_writes_to_the_documented_place_and_flags_win_over_defaults(
    shop: Workshop, tmp_path: Path
) -> None:
    ini = tmp_path / "mine.ini"
    ini.write_text("[DEFAULTS]\nname = from_the_file\nbatch_size = 3\nsave_top_k = 1\n", encoding="utf-8")
    command = shop.train(config_file=str(ini), save_dir=str(tmp_path / "out"), name="mine", max_steps="2")
    assert run_sat([*command, "--checkpoint-every", "1"]) == 0
    (checkpoint,) = tmp_path.glob("out/mine/*/checkpoints/*.ckpt")
    assert checkpoint.name == "step=00000002.ckpt", "one is kept, as the file says"
    assert json.loads((checkpoint.parents[1] / "manifest.json").read_text())["settings"]["batch_size"] == 2
