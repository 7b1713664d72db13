"""Everything this package raises on purpose.

::

    StableAudioError            a user can act on it: one line, exit code 2
    ├── UsageError              a flag or an argument does not fit
    ├── ConfigError             a JSON config is wrong; the message starts with its path
    ├── DataError               a dataset, a table or a file of it is wrong
    │   └── AudioError          an audio file cannot be read or written
    ├── CheckpointError         a checkpoint is missing, of another kind, or does not fit the model
    ├── StoreError              a store of features or latents belongs to another run, or is incomplete
    └── TrainingError           training cannot go on (NaN loss, a batch larger than the dataset)

A message says where, what was found, what was expected and what to do, in one line.
Any other exception that leaves the package is a bug and keeps its traceback.
"""

from __future__ import annotations


class StableAudioError(Exception):
    """Base of every error a user can act on."""


class UsageError(StableAudioError):
    """A flag or an argument does not fit."""


class ConfigError(StableAudioError):
    """A JSON config is wrong."""


class DataError(StableAudioError):
    """A dataset, a table or a file of it is wrong."""


class AudioError(DataError):
    """An audio file cannot be read or written."""


class CheckpointError(StableAudioError):
    """A checkpoint is missing, of another kind, or does not fit the model."""


class StoreError(StableAudioError):
    """A store of features or latents belongs to another run, or is incomplete."""


class TrainingError(StableAudioError):
    """Training cannot go on."""
