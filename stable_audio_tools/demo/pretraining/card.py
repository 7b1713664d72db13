"""The model card of the tiny models, written from what their training recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.schema.reader import read_json

_ABOUT = {
    "t5": "Text encoder (transformers `T5EncoderModel` and tokenizer), trained to fill gaps in captions.",
    "clap": "Audio and text embeddings (transformers `ClapModel` and processor), trained contrastively.",
    "dac": "Residual vector-quantised codec (transformers `DacModel`), multi-resolution STFT and L1 loss.",
    "vae": "Oobleck VAE, stereo at 16 kHz, ratio 512, 32 channels; multi-resolution STFT, L1 and a light KL.",
    "base": "Diffusion transformer on the latents of `vae`, which it contains; v objective; text by `t5`.",
}


def write_card(out: Path) -> Path:
    """Write ``TRAINING.md`` in ``out`` from the records beside it; returns its path."""
    lines = [
        "# The demo's tiny models",
        "",
        "Trained by `python -m stable_audio_tools.demo.train_assets` on music that this package composed",
        "and synthesised itself, by generic artists who play the demo artists' instruments. No recording by",
        "anyone else was used. The results are on pieces by the demo's artists, whom the models did not",
        "hear in training. They are toys: good enough to run every stage of the package on a CPU, and of",
        "no use for other music.",
        "",
    ]
    for name, about in _ABOUT.items():
        path = out / "cards" / f"{name}.json"
        if path.exists():
            lines += _section(name, about, read_json(path))
    card = out / "TRAINING.md"
    write_text(card, "\n".join(lines))
    return card


def _section(name: str, about: str, record: dict[str, Any]) -> list[str]:
    facts = {
        "parameters": f"{record['parameters']:,}",
        "data": f"{record['pieces']} pieces, {record['hours']} h",
        "steps": f"{record['steps']} in {record['seconds']:.0f} s on {record['device']}",
        "seed": record["seed"],
    }
    lines = [f"## {name}", "", about, "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    for key, value in record["results"].items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"| {key} | {shown} |")
    lines += ["", "Means over the course of training:", ""]
    lines += [f"- {key}: {' '.join(f'{v:.4g}' for v in values)}" for key, values in record["curves"].items()]
    return [*lines, ""]
