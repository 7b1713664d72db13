"""Other libraries, kept from talking over what we say to the user, and from guessing what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_audio_tools.errors import CheckpointError


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bars, remarks and warnings that transformers makes while it loads a model.

    They speak of weights that we leave out on purpose, or of its own next version; what is really missing is
    checked where the model is loaded. Errors come through, and so do the bars of downloads from the hub.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads_shown = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # takes the hub's bars with it
    if downloads_shown:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def readable_errors(kind: str, name: str, expected: str) -> Iterator[None]:
    """What transformers raises where it finds nothing to load, as one line.

    Args:
        kind: what the message calls it.
        name: a folder, or a name on the hub.
        expected: what should be there.

    Raises:
        CheckpointError: nothing could be loaded.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        where = "in this folder" if Path(name).is_dir() else "on the Hugging Face hub or in its local cache"
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CheckpointError(
            f"{kind} {name!r}: expected {expected} {where}: {reason}; give the path of a downloaded copy"
        ) from error


def load_pretrained(
    name: str, kind: str, model: type[Any], *parts: type[Any], advice: str
) -> tuple[Any, ...]:
    """A model in the Hugging Face format, whole, and the ``parts`` that lie beside it (tokenizer, extractor).

    Args:
        name: a folder, or a name on the hub.
        kind: what messages call the model.
        model, parts: classes with ``from_pretrained``.
        advice: what to give instead, for the message.

    Raises:
        CheckpointError: it cannot be loaded, or weights are missing: transformers would go on with random
            numbers in their place.
    """
    try:
        with quiet_transformers():
            loaded, report = model.from_pretrained(name, output_loading_info=True)
            beside = [part.from_pretrained(name) for part in parts]
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name}: no {kind} model could be loaded ({reason}); give {advice}") from error
    missing = sorted(set(report["missing_keys"]) & {key for key, _ in loaded.named_parameters()})
    if missing:
        raise CheckpointError(
            f"{name}: is no whole {kind}, {len(missing)} weights are missing, {missing[0]} first"
        )
    return loaded, *beside
