"""What a conditional diffusion transformer is told, held against what it can take."""

from __future__ import annotations

from collections.abc import Sequence

from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.conditioning import ConditioningConfig
from stable_audio_tools.schema.networks import DiTConfig

MASK_ID = "inpaint_mask"
MASKED_ID = "inpaint_masked_input"
"""The conditioning of models that are trained to inpaint; it comes from the caller and has no conditioner."""


INPUTS = {
    "cross_attention_cond_ids": "cond_token_dim",
    "global_cond_ids": "global_cond_dim",
    "prepend_cond_ids": "prepend_cond_dim",
    "input_concat_ids": "input_concat_dim",
    "local_add_cond_ids": "local_add_cond_dim",
}
"""By key of the ids: the key of the width that the network takes there."""


def check_inputs(ids: Config, network: DiTConfig) -> None:
    """Refuse ids that the network has no input for, and inputs that nothing would fill.

    Raises:
        ValueError: the message names both keys.
    """
    for key, width in INPUTS.items():
        named = getattr(ids, key)
        if named and not getattr(network, width):
            raise ValueError(
                f"{key} are {named}, but config.{width} is 0; expected the width of what comes in"
            )
    for key, width in (
        ("input_concat_ids", "input_concat_dim"),
        ("local_add_cond_ids", "local_add_cond_dim"),
    ):
        if getattr(network, width) and not getattr(ids, key):
            raise ValueError(
                f"config.{width} is {getattr(network, width)}, but {key} is empty; name what comes in there"
            )


def check_widths_of_ids(
    ids: Config, network: DiTConfig, conditioning: ConditioningConfig, io_channels: int
) -> None:
    """Refuse conditioners whose embeddings do not fit where they go.

    An id without a conditioner arrives as a tensor, of a width that is not known here.

    Args:
        ids: the block that has the keys of ``INPUTS``.

    Raises:
        ValueError: the message says which id makes what, and what was expected.
    """
    made = {entry.id: entry.config.output_dim or conditioning.cond_dim for entry in conditioning.configs}
    for key in ("cross_attention_cond_ids", "prepend_cond_ids"):
        width = INPUTS[key]
        for name in getattr(ids, key):
            if name in made and made[name] != getattr(network, width):
                raise ValueError(
                    f"diffusion.{key}: {name!r} makes {made[name]} channels (conditioning.cond_dim or its"
                    f" output_dim), but diffusion.config.{width} is {getattr(network, width)}"
                )
    beside = {MASK_ID: 1, MASKED_ID: io_channels} | made
    for key, known in (
        ("global_cond_ids", made),
        ("input_concat_ids", beside),
        ("local_add_cond_ids", beside),
    ):
        _check_sum(key, getattr(ids, key), known, network)


def _check_sum(key: str, named: Sequence[str], made: dict[str, int], network: DiTConfig) -> None:
    """Channels are joined: what is known of them must be the whole width, or leave room for the rest."""
    width = INPUTS[key]
    expected = getattr(network, width)
    known = {name: made[name] for name in named if name in made}
    rest = len(named) - len(known)
    if named and (sum(known.values()) + rest > expected or (not rest and sum(known.values()) != expected)):
        parts = " + ".join(f"{count} of {name!r}" for name, count in known.items())
        more = f" and {rest} more to come in as tensors" if rest else ""
        raise ValueError(
            f"diffusion.{key} make {sum(known.values())} channels ({parts}){more},"
            f" but diffusion.config.{width} is {expected}"
        )
