"""Reading, recognising, loading and writing checkpoints.

A file is ``.safetensors``, or a ``torch.save``d dict with a ``state_dict`` (or a bare state dict). What it
holds is told from its keys, see :mod:`~stable_audio_tools.models.checkpoints.kinds`. Loading is strict unless
told, and says what did not fit, see :mod:`~stable_audio_tools.models.checkpoints.loading`.
"""

from stable_audio_tools.models.checkpoints.kinds import (
    Kind,
    State,
    Unwrapped,
    autoencoder_state,
    checkpoint_kind,
    unwrap_state_dict,
)
from stable_audio_tools.models.checkpoints.loading import (
    load_autoencoder,
    load_checkpoint,
    load_pretransform,
    load_state,
)
from stable_audio_tools.models.checkpoints.reading import (
    Checkpoint,
    model_sha256,
    read_checkpoint,
    read_state_dict,
    save_checkpoint,
)
from stable_audio_tools.models.checkpoints.report import LoadReport, compare

__all__ = [
    "Checkpoint",
    "Kind",
    "LoadReport",
    "State",
    "Unwrapped",
    "autoencoder_state",
    "checkpoint_kind",
    "compare",
    "load_autoencoder",
    "load_checkpoint",
    "load_pretransform",
    "load_state",
    "model_sha256",
    "read_checkpoint",
    "read_state_dict",
    "save_checkpoint",
    "unwrap_state_dict",
]
