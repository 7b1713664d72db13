"""Every flag of a pre-encoding run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from stable_audio_tools.errors import UsageError

DEFAULT_SAMPLE_SIZE = 1_320_960
"""Of a crop for an autoencoder on its own, about 30 s at 44.1 kHz, as publicly documented."""

_MAX_CROPS = 10_000
_LEAST = {
    "batch_size": 1,
    "sample_size": 0,
    "crops": 1,
    "num_workers": 0,
    "num_gpus": 0,
    "num_nodes": 1,
    "limit_batches": 1,
}
_WHAT, _COMPUTE = "What is stored", "Compute"


def _flag(default: Any, text: str, panel: str | None = None, **more: Any) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text, "panel": panel, **more})


@dataclass(frozen=True)
class PreEncodeSettings:
    """The settings of a run.

    Raises:
        UsageError: a value is out of range, or flags exclude each other; the message names the flag.
    """

    model_config: str | None = _flag(None, "Config of an autoencoder, or of a model that has one (JSON).")
    ckpt_path: str | None = _flag(None, "Its checkpoint, or that of the autoencoder alone.")
    pretrained_name: str | None = _flag(
        None, "Instead of these two: a folder or a Hugging Face name, with model_config.json."
    )
    dataset_config: str = _flag("", "Dataset config of type audio_dir (JSON).")
    output_path: str = _flag("", "Folder of the latents; a run that was killed goes on in it.")
    sample_size: int | None = _flag(
        None,
        "Audio samples of a crop; 0 stores whole tracks. The default is the window of a diffusion model,"
        f" and {DEFAULT_SAMPLE_SIZE} for an autoencoder.",
        _WHAT,
    )
    crops: int = _flag(1, "Crops of each track; crop k is what training would take in epoch k.", _WHAT)
    is_discrete: bool = _flag(False, "Store codes, for a language model.", _WHAT, one_way=True)
    posterior: bool = _flag(
        False,
        "Store what a VAE draws latents from, so that training draws anew each step; twice as large.",
        _WHAT,
        one_way=True,
    )
    float16: bool = _flag(False, "Store 16 bits of each number: half as large.", _WHAT, one_way=True)
    seed: int = _flag(42, "Seed of crops and draws; that of the training run gives its crops.", _WHAT)
    limit_batches: int | None = _flag(None, "Stop after so many batches on each device.", _WHAT)
    shuffle: bool = _flag(False, "Take tracks in a random order; each keeps its number.", _WHAT, one_way=True)
    verify: bool = _flag(
        False, "Hold what is there to its hashes, and encode again what is damaged.", _WHAT, one_way=True
    )
    model_half: bool = _flag(False, "Compute in float16 on a GPU.", _COMPUTE, one_way=True)
    batch_size: int = _flag(1, "Crops at once on each device.", _COMPUTE)
    num_workers: int = _flag(4, "Processes that decode, for each device.", _COMPUTE)
    num_gpus: int = _flag(1, "Processes on this machine, a GPU each; 0 computes on the CPU.", _COMPUTE)
    num_nodes: int = _flag(1, "Machines; NODE_RANK says which this is.", _COMPUTE)
    strategy: str = _flag("auto", "Taken, and without effect: processes share nothing.", _COMPUTE)
    device: str = _flag("auto", "auto, cpu, cuda or mps.", _COMPUTE)

    def __post_init__(self) -> None:
        for key in ("dataset_config", "output_path"):
            if not getattr(self, key):
                raise UsageError(f"{_spelled(key)}: not given")
        if (self.model_config is None) == (self.pretrained_name is None):
            raise UsageError("give either --model-config with --ckpt-path, or --pretrained-name")
        if self.pretrained_name is not None and self.ckpt_path is not None:
            raise UsageError("--pretrained-name and --ckpt-path exclude each other")
        for key, least in _LEAST.items():
            found = getattr(self, key)
            if found is not None and found < least:
                raise UsageError(f"{_spelled(key)}: expected {least} or more, found {found}")
        if self.crops > _MAX_CROPS:
            raise UsageError(f"--crops: expected {_MAX_CROPS} or fewer, found {self.crops}")
        if self.crops > 1 and self.sample_size == 0:
            raise UsageError("--crops and --sample-size 0 exclude each other: a whole track is one crop")
        if self.is_discrete and (self.posterior or self.float16):
            raise UsageError("--is-discrete stores codes: leave out --posterior and --float16")

    @property
    def kind(self) -> str:
        """What is stored: ``codes``, ``posterior`` or ``latents``."""
        return "codes" if self.is_discrete else "posterior" if self.posterior else "latents"

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def _spelled(key: str) -> str:
    return "--" + key.replace("_", "-")
