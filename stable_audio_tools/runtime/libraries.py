"""Other libraries, kept from talking over what we say to the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
