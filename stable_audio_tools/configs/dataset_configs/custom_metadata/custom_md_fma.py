"""Prompts and names for recordings in MTG-Jamendo layout.

``raw_30s.tsv`` and ``raw.meta.tsv`` are looked for in the folder of the recording and above it. A recording
without a line in ``raw_30s.tsv`` is an error; set ``"on_error": "skip"`` in the dataset config to leave it out.
"""

from stable_audio_tools.data.jamendo import JamendoFolder

_folder = JamendoFolder()


def get_custom_metadata(info, audio):
    """Prompt, ids, names and tags of the recording at ``info["path"]``."""
    return _folder.metadata(info["path"])
