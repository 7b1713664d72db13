"""``sat generate``: clips from prompts."""

from __future__ import annotations

from pathlib import Path

import typer

from stable_audio_tools.errors import UsageError

_SAMPLING = "Sampling"


def generate(
    model_config: Path = typer.Option(None, help="Model config (JSON)."),
    ckpt_path: Path = typer.Option(None, help="Its checkpoint."),
    pretrained_name: str = typer.Option(None, help="Or a Hugging Face name or folder of a model."),
    lora_ckpt_path: Path = typer.Option(None, help="An adapter folder on top."),
    prompt: list[str] = typer.Option(None, help="What it should sound like; may be given more than once."),
    prompts_file: Path = typer.Option(None, help="Or a text file with one prompt a line."),
    negative_prompt: str = typer.Option(None, help="What to steer away from."),
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
    format: str = typer.Option("wav", help="wav, flac or ogg."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:N or mps."),
) -> None:
    """Make a clip for each prompt, with a sidecar that says how: it can be made again and be attributed."""
    prompts = list(prompt or [])
    if prompts_file is not None:
        if not prompts_file.is_file():
            raise UsageError(f"--prompts-file: {prompts_file}: no such file")
        prompts += [
            line.strip() for line in prompts_file.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    if not prompts:
        raise UsageError("give --prompt (as often as you like) or --prompts-file")
    if (pretrained_name is None) == (model_config is None or ckpt_path is None):
        raise UsageError("give --model-config with --ckpt-path, or --pretrained-name")
    from stable_audio_tools.inference.clips import ClipRequest, generate_clips
    from stable_audio_tools.models.loading import load_diffusion_model
    from stable_audio_tools.runtime.device import resolve_device

    loaded = load_diffusion_model(
        model_config, ckpt_path, pretrained_name=pretrained_name, adapter=lora_ckpt_path
    )
    length = seconds or loaded.model.config.duration_seconds
    options = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    clips = generate_clips(
        loaded.model,
        [ClipRequest(text, seconds_total=length, negative_prompt=negative_prompt) for text in prompts],
        output_dir,
        batch_size=batch_size,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        sampler_options={name: value for name, value in options.items() if value is not None},
        seed=seed,
        device=resolve_device(device),
        suffix=f".{format}",
        checkpoint=loaded.name,
        model_sha256=loaded.sha256,
    )
    for clip in clips:
        typer.echo(clip)
