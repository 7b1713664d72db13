"""Published shapes with random weights, since no benchmark may need a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stable_audio_tools

PACKAGE = Path(stable_audio_tools.__file__).parent
OPEN_1_0 = PACKAGE / "configs" / "model_configs" / "txt2audio" / "stable_audio_open_1_0.json"
TOKENIZER = PACKAGE / "demo" / "assets" / "t5"


def with_random_text_encoder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``config`` (JSON) with a text encoder of t5-base's size and random weights, written to ``folder``."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    sizes = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    for conditioner in config["model"]["conditioning"]["configs"]:
        if conditioner["type"] == "t5":
            conditioner["config"]["t5_model_name"] = str(folder)
    return config
