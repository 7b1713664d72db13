"""CLAP checkpoints as LAION published them, brought into the layout of transformers.

The two differ in names only, but for the query, key and value of the audio branch, which LAION keeps in one
matrix. Sizes are read off the weights, so that a checkpoint of any of LAION's networks loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import read_state_dict
from stable_audio_tools.runtime.libraries import quiet_transformers, readable_errors

LAION_SUFFIXES = (".pt", ".pth", ".ckpt")
LAION_WIDTHS = (768, 512)
"""Text features and embeddings of every CLAP that LAION published."""

_TEXT_ENCODER = "roberta-base"
_LEFT_OUT = (  # mel filters, which the feature extractor has; heads of other tasks; index tables
    "audio_branch.spectrogram_extractor.", "audio_branch.logmel_extractor.", "audio_branch.tscam_conv.",
    "audio_branch.head.", "text_transform.", "audio_transform.", "text_branch.embeddings.position_ids",
)  # fmt: skip
_AUDIO_NAMES = {
    "bn0.": "batch_norm.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.": ".attention.self.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
}
_PROJECTION_NAMES = {"_projection.0.": "_projection.linear1.", "_projection.2.": "_projection.linear2."}


def load_laion(path: str | Path) -> tuple[Any, Any, Any]:
    """Model, feature extractor and tokenizer of the LAION checkpoint at ``path``.

    The tokenizer, RoBERTa's, is read from the folder of the checkpoint where it has one, else by its name.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no CLAP.
    """
    from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

    path = Path(path)
    state = _read(path)
    try:
        config = _config(state)
    except KeyError as error:
        raise CheckpointError(f"{path}: is no CLAP of LAION, {error.args[0]} is missing") from error
    with quiet_transformers():
        model = ClapModel(ClapConfig(**config))
    found = convert(state)
    expected = {key for key, _ in model.named_parameters()} | {
        key for key, _ in model.named_buffers() if ".running_" in key
    }
    own = model.state_dict()
    wrong = sorted(key for key in found if key in own and found[key].shape != own[key].shape)
    missing, unexpected = sorted(expected - set(found)), sorted(set(found) - set(own))
    if missing or unexpected or wrong:
        first = [*missing, *unexpected, *wrong][0]
        raise CheckpointError(
            f"{path}: is no whole CLAP of LAION: {len(missing)} weights are missing, {len(unexpected)}"
            f" unknown and {len(wrong)} of another shape, {first} first"
        )
    model.load_state_dict(found, strict=False)
    extractor = ClapFeatureExtractor(
        frequency_min=50,
        frequency_max=14_000,
        truncation="fusion" if config["audio_config"]["enable_fusion"] else "rand_trunc",
        padding="repeatpad",
    )
    beside = any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    name = str(path.parent) if beside else _TEXT_ENCODER
    with readable_errors("tokenizer", name, f"the tokenizer of {path.name}"), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(name)
    return model, extractor, tokenizer


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LAION's state dict by the names of transformers."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_LEFT_OUT) or key.endswith(".attn_mask"):
            continue
        if key.startswith("audio_branch."):
            result |= _audio(key.removeprefix("audio_branch."), value)
        elif key.startswith("text_branch."):
            result["text_model." + key.removeprefix("text_branch.")] = value
        else:
            result[_renamed(key, _PROJECTION_NAMES)] = value
    return result


def _audio(key: str, value: Tensor) -> dict[str, Tensor]:
    prefix = "audio_model.audio_encoder."
    if ".attn.qkv." in key:
        before, after = key.split(".attn.qkv.")
        names = [f"{prefix}{before}.attention.self.{part}.{after}" for part in ("query", "key", "value")]
        return dict(zip(names, value.chunk(3), strict=True))
    return {prefix + _renamed(key, _AUDIO_NAMES): value}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of both branches, for ``ClapConfig``."""
    audio, text = "audio_branch.", "text_branch."
    patches = state[f"{audio}patch_embed.proj.weight"]
    depths: list[int] = []
    while (count := _count(state, f"{audio}layers.{len(depths)}.blocks.")) > 0:
        depths.append(count)
    tables = [
        state[f"{audio}layers.{row}.blocks.0.attn.relative_position_bias_table"] for row in range(len(depths))
    ]
    words = state[f"{text}embeddings.word_embeddings.weight"]
    projection_dim, audio_width = state["audio_projection.0.weight"].shape
    fusion = state.get(f"{audio}patch_embed.fusion_model.local_att.0.weight")
    return {
        "projection_dim": projection_dim,
        "audio_config": {
            "patch_embeds_hidden_size": len(patches),
            "patch_size": patches.shape[-1],
            "depths": depths,
            "num_hidden_layers": len(depths),
            "num_attention_heads": [table.shape[1] for table in tables],
            "window_size": (round(len(tables[0]) ** 0.5) + 1) // 2,
            "num_mel_bins": len(state[f"{audio}bn0.weight"]),
            "hidden_size": audio_width,
            "projection_dim": projection_dim,
            "enable_fusion": fusion is not None,
            "fusion_type": None if fusion is None else "aff_2d",
            "aff_block_r": 4 if fusion is None else len(patches) // len(fusion),
        },
        "text_config": {
            "vocab_size": len(words),
            "hidden_size": words.shape[1],
            "num_hidden_layers": _count(state, f"{text}encoder.layer."),
            "num_attention_heads": max(1, words.shape[1] // 64),  # RoBERTa's heads are 64 wide
            "intermediate_size": len(state[f"{text}encoder.layer.0.intermediate.dense.weight"]),
            "max_position_embeddings": len(state[f"{text}embeddings.position_embeddings.weight"]),
            "layer_norm_eps": 1e-5,  # RoBERTa's; the default of ClapConfig is another
            "projection_dim": projection_dim,
        },
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are under ``prefix``."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _read(path: Path) -> dict[str, Tensor]:
    # LAION saved scores of the training run beside the weights, as NumPy numbers.
    with torch.serialization.safe_globals(_numpy_numbers()):
        state = read_state_dict(path)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _numpy_numbers() -> list[Any]:
    """What a pickled NumPy number is made of, under the module names of NumPy 1 and 2."""
    import numpy as np

    makers = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def scalar(dtype: Any, content: bytes) -> Any:
            return np.frombuffer(content, dtype)[0]

        scalar.__module__, scalar.__qualname__ = module, "scalar"
        makers.append(scalar)
    return [*makers, np.dtype, *(type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?"))]
