"""The user's Python file that says what is known of a track: ``get_custom_metadata(info, audio) -> dict``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.data.paths import find_path
from stable_audio_tools.errors import DataError, StableAudioError

FUNCTION = "get_custom_metadata"
_PACKAGE = Path(__file__).parents[1]


def resolve_module_path(name: str, base_dir: Path | None) -> Path:
    """The Python file ``name``: in the working folder, beside the config, or shipped in the package.

    Raises:
        DataError: it is in none of them.
    """
    path, tried = find_path(name, base_dir, _PACKAGE.parent, _PACKAGE / "configs" / "dataset_configs")
    if path is None or not path.is_file():
        places = ", ".join(str(place) for place in tried)
        raise DataError(f"custom_metadata_module {name!r} does not exist; looked for {places}")
    return path.absolute()


class MetadataFunction:
    """The ``get_custom_metadata`` of a file. Can be pickled: another process runs the file again, once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        _function_of(self.path)  # a broken file shows here, not in the middle of an epoch

    def __call__(self, info: dict[str, Any], audio: Tensor | None) -> dict[str, Any]:
        """What the user's function says of the track.

        Raises:
            DataError: the function failed, or did not return a dict; names the module and the track.
        """
        track = info.get("path", "?")
        try:
            result = _function_of(self.path)(info, audio)
        except StableAudioError:
            raise
        except Exception as error:  # the user's code may raise anything
            what = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise DataError(f"{self.path}: {FUNCTION} failed on {track}: {what}") from error
        if not isinstance(result, dict):
            kind = type(result).__name__
            raise DataError(f"{self.path}: {FUNCTION} returned {kind} for {track}, expected a dict")
        return result


def load_metadata_function(path: str | Path) -> MetadataFunction:
    """The metadata function in the Python file at ``path``; the file runs once in each process.

    Raises:
        DataError: the file cannot be run, or defines no ``get_custom_metadata``.
    """
    return MetadataFunction(path)


_loaded: dict[Path, Callable[[dict[str, Any], Tensor | None], Any]] = {}


def _function_of(path: Path) -> Callable[[dict[str, Any], Tensor | None], Any]:
    if path not in _loaded:
        _loaded[path] = _run_file(path)
    return _loaded[path]


def _run_file(path: Path) -> Callable[[dict[str, Any], Tensor | None], Any]:
    name = f"sat_metadata_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise DataError(f"{path}: the metadata module cannot be run: {what}") from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise DataError(f"{path}: defines no function {FUNCTION}(info, audio)")
    return function
