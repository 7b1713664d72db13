"""``sat generate``: clips from prompts, or from noise alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stable_audio_tools.errors import UsageError

if TYPE_CHECKING:
    from stable_audio_tools.models.files import ModelFiles

_MODEL, _SAMPLING = "Model", "Sampling"
_FORMATS = ("wav", "flac", "ogg")


def generate(
    model_config: Path = typer.Option(None, help="Model config (JSON).", rich_help_panel=_MODEL),
    ckpt_path: Path = typer.Option(
        None, help="Its checkpoint, unwrapped or as training wrote it.", rich_help_panel=_MODEL
    ),
    pretrained_name: str = typer.Option(
        None, help="Or a Hugging Face name or folder of a model.", rich_help_panel=_MODEL
    ),
    lora_ckpt_path: list[str] = typer.Option(
        None,
        help="An adapter on top, or PATH:STRENGTH; may be given more than once.",
        rich_help_panel=_MODEL,
    ),
    pretransform_ckpt_path: Path = typer.Option(
        None, help="Checkpoint of the autoencoder, if not in the model's.", rich_help_panel=_MODEL
    ),
    prompt: list[str] = typer.Option(None, help="What it should sound like; may be given more than once."),
    prompts_file: Path = typer.Option(None, help="Or a text file with one prompt a line."),
    negative_prompt: str = typer.Option(None, help="What to steer away from."),
    num_clips: int = typer.Option(
        None, help="How many clips, of a model that takes no prompts; 1 by default.", min=1
    ),
    seconds: float = typer.Option(None, help="Length of each clip; by default the training window."),
    output_dir: Path = typer.Option(Path("outputs/generated"), help="Where the clips go."),
    steps: int = typer.Option(100, help="Sampler steps.", rich_help_panel=_SAMPLING),
    cfg_scale: float = typer.Option(7.0, help="Strength of guidance.", rich_help_panel=_SAMPLING),
    sampler: str = typer.Option(
        None, help="Sampler; by default that of the objective.", rich_help_panel=_SAMPLING
    ),
    sigma_min: float = typer.Option(None, help="Last noise level.", rich_help_panel=_SAMPLING),
    sigma_max: float = typer.Option(None, help="First noise level.", rich_help_panel=_SAMPLING),
    seed: int = typer.Option(
        42, help="Seed of the first clip; each further one adds 1.", rich_help_panel=_SAMPLING
    ),
    batch_size: int = typer.Option(4, help="Clips at once; it does not change them."),
    format: str = typer.Option("wav", help=f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps."),
) -> None:
    """Make a clip for each prompt, with a sidecar that says how: it can be made again and be attributed.

    A model that takes no prompts, such as Dance Diffusion, makes --num-clips of them.
    """
    prompts = _prompts(prompt or [], prompts_file)
    if format not in _FORMATS:
        raise UsageError(f"--format: found {format!r}, expected one of {', '.join(_FORMATS)}")
    files = replace(
        _model_files(model_config, ckpt_path, pretrained_name),
        lora_ckpt_path=tuple(lora_ckpt_path or ()) or None,
        pretransform_ckpt_path=pretransform_ckpt_path,
    )
    if _takes_prompts(files.model_config):
        if num_clips is not None:
            raise UsageError("--num-clips: this model takes prompts; give --prompt as often as you like")
        if not prompts:
            raise UsageError("give --prompt (as often as you like) or --prompts-file")
    else:
        if prompts or negative_prompt is not None:
            raise UsageError("--prompt: this model takes none; give --num-clips")
        prompts = [""] * (num_clips or 1)
    from stable_audio_tools.inference.clips import ClipRequest, generate_clips

    model = files.load(device)
    length = model.config.duration_seconds if seconds is None else seconds
    options = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    clips = generate_clips(
        model,
        [ClipRequest(text, seconds_total=length, negative_prompt=negative_prompt) for text in prompts],
        output_dir,
        batch_size=batch_size,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        sampler_options={name: value for name, value in options.items() if value is not None},
        seed=seed,
        device=device or "auto",
        suffix=f".{format}",
        checkpoint=files.name,
        model_sha256=files.sha256(),
    )
    for clip in clips:
        typer.echo(clip)


def _prompts(given: list[str], file: Path | None) -> list[str]:
    """Those of the command line, then the lines of the file."""
    prompts = list(given)
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--prompts-file: {file}: no such file")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts-file: {file}: cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UsageError(f"--prompts-file: {file}: holds no prompts")
    return prompts


def _takes_prompts(model_config: Path) -> bool:
    from stable_audio_tools.schema.model import DiffusionCondModelConfig, DiffusionUncondModelConfig
    from stable_audio_tools.schema.reader import read_model_config

    config = read_model_config(model_config)
    if not isinstance(config, DiffusionCondModelConfig | DiffusionUncondModelConfig):
        raise UsageError(
            f"{model_config}: model_type is {config.model_type!r}, but this command is for diffusion models;"
            " for a language model call inference.language_model.generate_lm"
        )
    return isinstance(config, DiffusionCondModelConfig)


def _model_files(
    model_config: Path | None, ckpt_path: Path | None, pretrained_name: str | None
) -> ModelFiles:
    from stable_audio_tools.models.files import ModelFiles
    from stable_audio_tools.models.pretrained import find_pretrained

    if pretrained_name is not None and model_config is None and ckpt_path is None:
        return find_pretrained(pretrained_name)
    if pretrained_name is None and model_config is not None and ckpt_path is not None:
        return ModelFiles(model_config, ckpt_path)
    raise UsageError("give --model-config with --ckpt-path, or --pretrained-name alone")
