"""Train the demo's tiny models on a CPU or a GPU.

The stages are ``vae``, ``dac``, ``clap``, ``t5`` (independent of each other) and ``base`` (needs ``vae``
and ``t5``). They can run as processes side by side on one GPU, which these small models leave mostly idle;
the music is rendered by the first call with ``--only music`` and shared through ``--work``::

    T="python -m stable_audio_tools.demo.train_assets --out assets --work /tmp/world --device cuda"
    $T --only music
    $T --only vae --minutes 4 & $T --only dac --minutes 4 & $T --only t5,clap --minutes 4 & wait
    $T --only base,card --minutes 3

``--minutes`` is shared by the stages of a call; a stage that would take longer finishes its learning-rate
schedule by then. Every draw is seeded; on a GPU the results still vary in the last digits with the order of
its sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.demo.pretraining import base, clap, dac, t5, vae
from stable_audio_tools.demo.pretraining.card import write_card
from stable_audio_tools.demo.pretraining.stage import Stage
from stable_audio_tools.demo.pretraining.world import held_out_world, pretraining_world
from stable_audio_tools.errors import StableAudioError, UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.progress import console, say

STAGES: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "t5": t5.train,
    "clap": clap.train,
    "dac": dac.train,
    "vae": vae.train,
    "base": base.train,
}
_ALL = ["music", *STAGES, "card"]


def train_assets(
    out: Path,
    *,
    work: Path,
    device: str | None = None,
    only: list[str] | None = None,
    minutes: float | None = None,
    seed: int = 42,
    smoke: bool = False,
    steps_scale: float = 1.0,
) -> None:
    """Run the stages named in ``only`` (default: all) and write their models under ``out``.

    Raises:
        UsageError: a stage is unknown.
    """
    only = only or _ALL
    if unknown := [name for name in only if name not in _ALL]:
        raise UsageError(f"--only: unknown stage {unknown[0]!r}; expected some of {', '.join(_ALL)}")
    chosen, place = [name for name in STAGES if name in only], resolve_device(device)
    if place.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if chosen or "music" in only:
        # smoke: eight pieces are enough to see that all stages run
        sizes = (1, 1) if smoke else (5, 28)
        music = pretraining_world(
            work, place, artists_per_style=sizes[0], pieces_per_artist=sizes[1], seed=seed
        )
        held_out = held_out_world(work, place, pieces_per_artist=1 if smoke else 3, seed=seed)
        for name in chosen:
            say(f"stage {name}: {len(music.pieces)} pieces, {music.hours:.2f} h")
            limit = None if minutes is None else 60 * minutes / len(chosen)
            stage = Stage(
                name, out, music, held_out, place, seed, steps_scale=0.0 if smoke else steps_scale,
                smoke=smoke, limit_seconds=limit,
            )  # fmt: skip
            card = STAGES[name](stage)
            say(f"{name}: {card['parameters']:,} parameters, {card['steps']} steps, {card['results']}")
    if "card" in only:
        say(f"wrote {write_card(out)}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo's tiny models.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "assets", help="folder of the models"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/demo-world"), help="folder for the rendered music"
    )
    parser.add_argument("--device", help="auto, cpu, cuda")
    parser.add_argument("--only", help=f"comma-separated stages: {', '.join(_ALL)}")
    parser.add_argument("--minutes", type=float, help="time for all stages of this call")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps on little music, to see that all runs"
    )
    flags = parser.parse_args()
    only = flags.only.split(",") if flags.only else None
    try:
        train_assets(
            flags.out, work=flags.work, device=flags.device, only=only, minutes=flags.minutes,
            seed=flags.seed, smoke=flags.smoke, steps_scale=flags.steps_scale,
        )  # fmt: skip
    except StableAudioError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
