"""Every mistake a user can make is answered in one line that says what is wrong, and exit code 2.

Each case is a command that works, with one thing changed. It must end with exit code 2, exactly one line on
standard error that starts with ``error:`` and holds the words given here, no traceback, and no new file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from workshop import Workshop, flags, run_sat

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.demo.assets import asset
from stable_audio_tools.runtime.files import atomic_path

REPOSITORY = Path(__file__).parents[2]
Case = tuple[Callable[[Workshop], list[str]], str]


def dataset_with_truncated_mp3(shop: Workshop) -> str:
    """A dataset config of the music and of an MP3 of which only the first third is there."""
    folder = shop.root / "cut"
    if not folder.exists():
        shutil.copytree(shop.music, folder)
        audio, rate = read_audio(next(folder.rglob("*.wav")))
        whole = folder / "whole.mp3"
        with av.open(str(whole), "w") as container:
            stream = container.add_stream("libmp3lame", rate=rate)
            stream.layout = "stereo"
            frame = av.AudioFrame.from_ndarray(audio.repeat(1, 4).numpy(), format="fltp", layout="stereo")
            frame.sample_rate = rate
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        content = whole.read_bytes()
        whole.unlink()
        (folder / "broken.mp3").write_bytes(content[: len(content) // 3])
    return shop.dataset("cut.json", folder)


def widen_vae(config: dict[str, Any]) -> None:
    """Make the autoencoder another one."""
    for part in ("encoder", "decoder"):
        config["model"]["pretransform"]["config"][part]["config"]["channels"] = 16


def only_the_vae(config: dict[str, Any]) -> None:
    """Make it the config of its autoencoder."""
    config.update(model_type="autoencoder", model=config["model"]["pretransform"]["config"])
    config.pop("training")


def network(**keys: Any) -> Callable[[dict[str, Any]], object]:
    """Change keys of the diffusion transformer."""
    return lambda config: config["model"]["diffusion"]["config"].update(keys)


def optimizer(**keys: Any) -> Callable[[dict[str, Any]], object]:
    """Change keys of the optimizer."""
    return lambda config: config["training"]["optimizer_configs"]["diffusion"]["optimizer"].update(keys)


def text_encoder(name: str) -> Callable[[dict[str, Any]], object]:
    """Change where the text encoder is."""
    return lambda config: config["model"]["conditioning"]["configs"][0]["config"].update(t5_model_name=name)


def evaluate(shop: Workshop, **changes: str) -> list[str]:
    """Score the clips against the music."""
    named = {"generated-dir": shop / "clips", "reference": str(shop.music), "clap-model": str(asset("clap"))}
    return ["evaluate", "folder", *flags({**named, "output-path": shop / "scores.json"}, changes)]


def dedup(shop: Workshop, **changes: str) -> list[str]:
    """Look for duplicates in the music."""
    named = {"dataset-config": shop / "data.json", "model-path": str(asset("dac"))}
    return ["dedup", *flags({**named, "output-dir": shop / "dedup", "device": "cpu"}, changes)]


def without(arguments: list[str], flag: str) -> list[str]:
    """The arguments without a flag and its value."""
    place = arguments.index(flag)
    return arguments[:place] + arguments[place + 2 :]


TRAINING: dict[str, Case] = {
    "no model config": (lambda s: s.train(model_config=s / "none.json"), "none.json: no such file"),
    "no dataset config": (lambda s: s.train(dataset_config=s / "none.json"), "none.json: no such file"),
    "no checkpoint": (lambda s: s.train(pretrained_ckpt_path=s / "none.ckpt"), "none.ckpt"),
    "no vae checkpoint": (lambda s: s.train(pretransform_ckpt_path=s / "none.ckpt"), "none.ckpt"),
    "no checkpoint to resume": (lambda s: s.train(ckpt_path=s / "none.ckpt"), "none.ckpt"),
    "no defaults": (lambda s: s.train(config_file=s / "none.ini"), "none.ini"),
    "no music folder": (lambda s: s.train(dataset_config=s.dataset("d1.json", s / "none")), "none"),
    "empty folder": (lambda s: s.train(dataset_config=s.dataset("d2.json", s / "empty")), "no audio files"),
    "no metadata module": (
        lambda s: s.train(dataset_config=s.dataset("d3.json", s.music, module="none.py")),
        "none.py",
    ),
    "broken metadata module": (
        lambda s: s.train(dataset_config=s.dataset("d4.json", s.music, module=s.write("bad.py", "1 / 0"))),
        "bad.py: the metadata module cannot be run",
    ),
    "truncated mp3": (
        lambda s: s.train(dataset_config=dataset_with_truncated_mp3(s), batch_size="9"),
        "broken.mp3: truncated",
    ),
    "truncated mp3 in a worker": (
        lambda s: s.train(dataset_config=dataset_with_truncated_mp3(s), batch_size="9", num_workers="1"),
        "broken.mp3: truncated",
    ),
    "batch larger than the dataset": (lambda s: s.train(batch_size="9"), "lower --batch-size"),
    "not JSON": (lambda s: s.train(model_config=s.write("m1.json", "{")), "m1.json: not valid JSON"),
    "a list": (lambda s: s.train(model_config=s.write("m2.json", "[]")), "expected a JSON object"),
    "typo": (
        lambda s: s.train(model_config=s.config("m3.json", lambda c: c.update(sample_sise=1))),
        "sample_size",
    ),
    "unknown model type": (
        lambda s: s.train(model_config=s.config("m4.json", lambda c: c.update(model_type="diffusion_con"))),
        "diffusion_cond",
    ),
    "unknown optimizer": (
        lambda s: s.train(model_config=s.config("m5.json", optimizer(type="AdamX"))),
        "AdamX",
    ),
    "unknown optimizer argument": (
        lambda s: s.train(model_config=s.config("m6.json", optimizer(config={"rl": 1}))),
        "rl",
    ),
    "no text encoder": (
        lambda s: s.train(model_config=s.config("m7.json", text_encoder("./none"))),
        "none",
    ),
    "autoencoder config": (
        lambda s: s.train(model_config=s.config("m8.json", only_the_vae)),
        "training: missing; expected a block",
    ),
    "vae as base": (lambda s: s.train(pretrained_ckpt_path=s / "vae.ckpt"), "found an autoencoder"),
    "adapter as base": (
        lambda s: s.train(pretrained_ckpt_path=s / "adapter/adapter_model.safetensors"),
        "found a LoRA adapter",
    ),
    "vae of another shape": (
        lambda s: s.train(model_config=s.config("m9.json", widen_vae), pretransform_ckpt_path=s / "vae.ckpt"),
        "of another shape",
    ),
    "mismatched keys": (
        lambda s: s.train(model_config=s.config("m10.json", network(depth=3))),
        "missing",
    ),
    "mismatched shapes": (
        lambda s: s.train(model_config=s.config("m11.json", network(embed_dim=32))),
        "of another shape",
    ),
    "truncated checkpoint": (lambda s: s.train(pretrained_ckpt_path=s / "truncated.ckpt"), "truncated.ckpt"),
    "text as checkpoint": (lambda s: s.train(pretrained_ckpt_path=s / "data.json"), "data.json"),
    "folder as checkpoint": (lambda s: s.train(pretrained_ckpt_path=s / "adapter"), "adapter"),
    "resume from plain weights": (lambda s: s.train(ckpt_path=s / "base.ckpt"), "--pretrained-ckpt-path"),
    "resume another model": (
        lambda s: without(
            s.train(model_config=s.config("m13.json", network(depth=3)), ckpt_path=s / "wrapped.ckpt"),
            "--pretrained-ckpt-path",
        ),
        "wrapped.ckpt: is not a checkpoint of this model: 30 missing",
    ),
    "resume a lora run without lora": (
        lambda s: s.train(ckpt_path=s / "adapter.ckpt", max_steps="2"),
        "adapter.ckpt",
    ),
    "resume lora from a full run": (
        lambda s: s.train("train-lora", ckpt_path=s / "wrapped.ckpt", max_steps="2"),
        "wrapped.ckpt",
    ),
    "lora run as base": (lambda s: s.train(pretrained_ckpt_path=s / "adapter.ckpt"), "adapter"),
    "no validation set": (lambda s: s.train(val_dataset_config=s / "none.json"), "none.json"),
    "typo in defaults": (
        lambda s: s.train(config_file=s.write("d.ini", "[DEFAULTS]\nbatch_sise = 3\n")),
        "batch_size",
    ),
    "everything excluded": (
        lambda s: s.train(
            dataset_config=s.dataset(
                "d5.json",
                s.music,
                exclude_paths_file=s.write(
                    "all.txt", "\n".join(str(path) for path in s.music.rglob("*.wav"))
                ),
            )
        ),
        "exclude list",
    ),
    "unknown demo key": (
        lambda s: s.train(
            model_config=s.config("m14.json", lambda c: c["training"].update(demo={"demo_evry": 2}))
        ),
        "demo_every",
    ),
    "unknown timestep law": (
        lambda s: s.train(
            model_config=s.config("m15.json", lambda c: c["training"].update(timestep_sampler="unifrm"))
        ),
        "uniform",
    ),
    "unknown precision": (lambda s: s.train(precision="17"), "--precision"),
    "unknown logger": (lambda s: s.train(logger="paper"), "--logger"),
    "unknown device": (lambda s: s.train(device="abacus"), "abacus"),
    "unknown strategy": (lambda s: s.train(strategy="luck"), "luck"),
    "no batch": (lambda s: s.train(batch_size="0"), "--batch-size"),
    "too many gpus": (lambda s: s.train(num_gpus="64"), "--num-gpus"),
    "save dir is a file": (lambda s: s.train(save_dir=s / "a-file"), "a-file"),
    "lora without base": (
        lambda s: without(s.train("train-lora"), "--pretrained-ckpt-path"),
        "--pretrained-ckpt-path",
    ),
    "lora that fits nothing": (
        lambda s: s.train(
            "train-lora",
            model_config=s.config("m12.json", lambda c: c.update(lora={"component_whitelist": ["tx"]})),
        ),
        "tx",
    ),
    "no adapter": (lambda s: s.train("train-lora", lora_ckpt_path=s / "none"), "none"),
}

MODELS: dict[str, Case] = {
    "unwrap: no file": (lambda s: ["unwrap", "--ckpt-path", s / "none.ckpt"], "none.ckpt"),
    "unwrap: unwrapped": (
        lambda s: ["unwrap", "--ckpt-path", s / "base.ckpt", "--name", s / "x"],
        "nothing to unwrap",
    ),
    "unwrap: another model": (
        lambda s: [
            *("unwrap", "--ckpt-path", s / "wrapped.ckpt", "--name", s / "x"),
            *("--model-config", s.config("u1.json", network(depth=3))),
        ],
        "missing",
    ),
    "unwrap: a lora run": (
        lambda s: ["unwrap", "--ckpt-path", s / "adapter.ckpt", "--name", s / "x"],
        "adapter",
    ),
    "generate: a lora run": (lambda s: s.generate(ckpt_path=s / "adapter.ckpt"), "adapter"),
    "unwrap: a file in the way": (
        lambda s: ["unwrap", "--ckpt-path", s / "wrapped.ckpt", "--name", s / "a-file/x"],
        "a-file",
    ),
    "generate: no checkpoint": (lambda s: s.generate(ckpt_path=s / "none.ckpt"), "none.ckpt"),
    "generate: vae": (lambda s: s.generate(ckpt_path=s / "vae.ckpt"), "found an autoencoder"),
    "generate: nan weights": (lambda s: s.generate(ckpt_path=s / "nan.ckpt"), "NaN"),
    "generate: unknown sampler": (lambda s: s.generate(sampler="dpmpp-4m"), "dpmpp-3m-sde"),
    "generate: no steps": (lambda s: s.generate(steps="0"), "steps"),
    "generate: no seconds": (lambda s: s.generate(seconds="0"), "seconds"),
    "generate: negative seconds": (lambda s: s.generate(seconds="-1"), "seconds"),
    "generate: negative seed": (lambda s: s.generate(seed="-5"), "seed"),
    "generate: no batch": (lambda s: s.generate(batch_size="0"), "batch"),
    "generate: unknown format": (lambda s: s.generate(format="mp5"), "mp5"),
    "generate: unknown device": (lambda s: s.generate(device="abacus"), "abacus"),
    "generate: no prompts": (lambda s: s.generate(prompts_file=s / "none.txt"), "none.txt"),
    "generate: prompts are a folder": (lambda s: s.generate(prompts_file=s / "empty"), "empty"),
    "generate: binary prompts": (
        lambda s: s.generate(prompts_file=s.write("b.txt", b"\xff\xfe\x00")),
        "b.txt",
    ),
    "generate: a file in the way": (lambda s: s.generate(output_dir=s / "a-file"), "a-file"),
    "generate: no model": (lambda s: ["generate", "--prompt", "x"], "--model-config"),
    "generate: no adapter": (lambda s: s.generate(lora_ckpt_path=s / "none"), "none"),
    "generate: checkpoint as adapter": (lambda s: s.generate(lora_ckpt_path=s / "base.ckpt"), "base.ckpt"),
    "generate: sigmas": (lambda s: s.generate(sigma_min="10", sigma_max="1"), "sigma"),
}

ANALYSIS: dict[str, Case] = {
    "attribute: no queries": (lambda s: s.attribute(queries=s / "none"), "none"),
    "attribute: empty queries": (lambda s: s.attribute(queries=s / "empty"), "no audio files"),
    "attribute: no prompt": (lambda s: s.attribute(queries=str(s.music)), "prompts.csv"),
    "attribute: unknown measurement": (lambda s: s.attribute(f="l3-norm"), "l3-norm"),
    "attribute: no timesteps": (lambda s: s.attribute(K="0"), "K"),
    "attribute: no training set": (lambda s: s.attribute(train_dataset_config=s / "none.json"), "none.json"),
    "attribute: vae": (lambda s: s.attribute(ckpt_path=s / "vae.ckpt"), "found an autoencoder"),
    "attribute: nan weights": (lambda s: s.attribute(ckpt_path=s / "nan.ckpt"), "finite"),
    "attribute: bad regex": (lambda s: s.attribute(param_regex="("), "param"),
    "attribute: a file in the way": (lambda s: s.attribute(output_dir=s / "a-file"), "a-file"),
    "attribute: no stores": (
        lambda s: ["attribute", "score", "--train-features", s / "none", "--query-features", s / "none"],
        "none",
    ),
    "evaluate: no clips": (lambda s: evaluate(s, generated_dir=s / "none"), "none"),
    "evaluate: empty": (lambda s: evaluate(s, generated_dir=s / "empty"), "no audio files"),
    "evaluate: no reference": (lambda s: evaluate(s, reference=s / "none.npz"), "none.npz"),
    "evaluate: reference is no npz": (lambda s: evaluate(s, reference=s / "model.json"), "model.json"),
    "evaluate: no clap": (lambda s: evaluate(s, clap_model=s / "none"), "none"),
    "evaluate: another model as clap": (lambda s: evaluate(s, clap_model=str(asset("dac"))), "dac"),
    "evaluate: a file in the way": (lambda s: evaluate(s, output_path=s / "a-file/scores.json"), "a-file"),
    "dedup: nothing": (lambda s: ["dedup"], "--dataset-config"),
    "dedup: both": (lambda s: dedup(s, dataset_dir=str(s.music)), "exactly one"),
    "dedup: no folder": (lambda s: ["dedup", "--dataset-dir", s / "none"], "none"),
    "dedup: empty": (lambda s: ["dedup", "--dataset-dir", s / "empty"], "no audio files"),
    "dedup: threshold": (lambda s: dedup(s, similarity_threshold="1.5"), "threshold"),
    "dedup: histogram": (lambda s: dedup(s, histogram_mode="globl"), "global"),
    "dedup: no codec": (lambda s: dedup(s, model_path=s / "none"), "none"),
    "dedup: another model as codec": (lambda s: dedup(s, model_path=str(asset("clap"))), "clap"),
    "dedup: a file in the way": (lambda s: dedup(s, output_dir=s / "a-file"), "a-file"),
    "config: unknown kind": (lambda s: ["config", "schema", "modle"], "modle"),
    "config: no file": (lambda s: ["config", "check", s / "none.json"], "none.json"),
    "config: typo": (
        lambda s: ["config", "check", s.config("c1.json", lambda c: c["model"].update(conditionning={}))],
        "conditioning",
    ),
}
CASES = {**TRAINING, **MODELS, **ANALYSIS}
BEFORE_IT_SHOWS = {
    "truncated mp3": {"runs"},
    "truncated mp3 in a worker": {"runs"},
    "attribute: nan weights": {"attribution"},
}
"""Where a case writes before its mistake can show: settings of a run, and a store that can be continued."""


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(
    name: str,
    shop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, words = CASES[name]
    arguments = build(shop)
    before = shop.files()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    assert run_sat(arguments) == 2

    assert words in only_error(capsys.readouterr().err)
    new = {path.relative_to(shop.root) for path in shop.files() - before}
    assert not {path for path in new if path.suffix in (".ckpt", ".csv", ".wav")}
    assert {path.parts[0] for path in new} <= BEFORE_IT_SHOWS.get(name, set()), new
    assert not list(tmp_path.iterdir())


def only_error(errors: str) -> str:
    """The one line that says what is wrong, which is the last thing to read."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert errors.splitlines()[-1] == lines[0], errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize(
    ("change", "checkpoint"), [(optimizer(config={"lr": 1e30}), "base.ckpt"), (dict, "nan.ckpt")]
)
def test_a_loss_that_is_not_finite_ends_the_run(
    change: Callable[[dict[str, Any]], object],
    checkpoint: str,
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_config = shop.config(f"{tmp_path.name}.json", change)
    changes = {"model_config": model_config, "pretrained_ckpt_path": shop / checkpoint, "max_steps": "9"}
    capsys.readouterr()
    assert run_sat(shop.train(**changes, save_dir=str(tmp_path))) == 2
    line = only_error(capsys.readouterr().err)
    assert "the loss is" in line
    assert "music/" in line, "the tracks of the batch are named"
    (run,) = tmp_path.glob("run/*")
    assert (run / "nan_batch.json").is_file()
    assert not list((run / "checkpoints").iterdir()), "weights that are no use are not kept"


def test_an_unknown_flag_is_a_usage_error(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sat(shop.train(batch_sise="2")) == 2
    errors = capsys.readouterr().err
    assert "--batch-sise" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train.py", ["--model-config", "no.json", "--dataset-config", "no.json"], "no.json: no such file"),
        ("train_lora.py", ["--model-config", "{m}", "--dataset-config", "{d}"], "--pretrained-ckpt-path"),
        ("unwrap_model.py", ["--model-config", "{m}", "--ckpt-path", "{b}"], "nothing to unwrap"),
        ("scripts/dac_hist_dedup.py", ["--dataset-dir", "nowhere"], "nowhere"),
    ],
)
def test_the_documented_scripts_do_the_same(
    script: str, arguments: list[str], words: str, shop: Workshop, tmp_path: Path
) -> None:
    names = {"m": shop / "model.json", "d": shop / "data.json", "b": shop / "base.ckpt"}
    command = [sys.executable, str(REPOSITORY / script), *(word.format(**names) for word in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert words in only_error(result.stderr)
    assert not list(tmp_path.iterdir())


def test_nothing_stays_under_the_final_name_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "model.ckpt"
    target.write_text("the old one", encoding="utf-8")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the new one", encoding="utf-8")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
    assert target.read_text(encoding="utf-8") == "the old one"
