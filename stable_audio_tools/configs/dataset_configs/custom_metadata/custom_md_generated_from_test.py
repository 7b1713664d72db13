"""Prompts of generated clips: from the sidecar or the tag of each, else from ``prompts.csv`` in its folder."""

from stable_audio_tools.data.prompts import prompt_for_clip


def get_custom_metadata(info, audio):
    """What the clip at ``info["path"]`` was conditioned on."""
    return prompt_for_clip(info["path"])
