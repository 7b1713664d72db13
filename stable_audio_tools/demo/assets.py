"""Where the tiny models are, and how they come into a folder of one's own.

::

    assets/base    text-to-music model with its VAE: model.safetensors, model_config.json
    assets/t5      the text encoder it is conditioned on
    assets/dac     the codec that finds duplicates
    assets/clap    the embeddings that judge the result
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.schema.reader import read_json

ASSETS = Path(__file__).parent / "assets"


def asset(name: str, root: Path = ASSETS) -> Path:
    """The folder of one tiny model: ``base``, ``t5``, ``dac`` or ``clap``.

    Raises:
        CheckpointError: it is not there.
    """
    folder = root / name
    if not (folder / "model.safetensors").exists():
        raise CheckpointError(
            f"{folder}: the demo's model {name!r} is missing; reinstall the package, or train it with"
            f" python -m stable_audio_tools.demo.train_assets --out {root}"
        )
    return folder


def base_model_config(root: Path = ASSETS) -> dict[str, Any]:
    """The base model's config with the text encoder as an absolute path, so that it works in any folder."""
    config: dict[str, Any] = read_json(asset("base", root) / "model_config.json")
    for conditioner in config["model"]["conditioning"]["configs"]:
        if conditioner["type"] == "t5":
            conditioner["config"]["t5_model_name"] = str(asset("t5", root).resolve())
    return config


def write_starting_point(folder: str | Path, root: Path = ASSETS) -> tuple[Path, Path, Path]:
    """Write ``model_config.json``, ``base.ckpt`` and ``vae.ckpt`` into ``folder``; returns the three paths.

    They are what ``train.py`` takes as ``--model-config``, ``--pretrained-ckpt-path`` and
    ``--pretransform-ckpt-path``.
    """
    from stable_audio_tools.demo.configs import vae_config
    from stable_audio_tools.models.checkpoints import read_state_dict, save_checkpoint

    folder = Path(folder)
    config = base_model_config(root)
    config_path, base_path, vae_path = folder / "model_config.json", folder / "base.ckpt", folder / "vae.ckpt"
    write_json(config_path, config)
    state = {
        key: value.float()
        for key, value in read_state_dict(asset("base", root) / "model.safetensors").items()
    }
    save_checkpoint(base_path, state, config)
    prefix = "pretransform.model."
    vae = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    save_checkpoint(vae_path, vae, vae_config())
    return config_path, base_path, vae_path
