"""What a state dict holds, told from its keys, and the model inside that of a training run.

A training run of this or of the public package stores its model under the name that its wrapper has for it,
with the averaged weights beside it. Losses, discriminators and teachers lie there too, and are left out.

=====================  ================  ==============================  =======================
model                  online weights    averaged weights                what is averaged
=====================  ================  ==============================  =======================
diffusion              ``diffusion.``    ``diffusion_ema.ema_model.``    the network, ``model.``
autoencoder            ``autoencoder.``  ``autoencoder_ema.ema_model.``  all of it
diffusion autoencoder  ``diffae.``       ``diffae_ema.ema_model.``       all of it
language model         ``model.``        ``model_ema.ema_model.``        all of it
=====================  ================  ==============================  =======================

Of a diffusion model the average covers the network only, so its conditioners and its pretransform always come
from the online weights. The first Dance Diffusion checkpoints, of Harmonai's own training code, have the bare
network under ``diffusion.`` and its average under ``diffusion_ema.``; they are read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from stable_audio_tools.errors import CheckpointError

State = dict[str, Tensor]


class Kind(Enum):
    """What a state dict holds; the value is what messages call it."""

    DIFFUSION = "a diffusion model"
    AUTOENCODER = "an autoencoder"
    DIFFUSION_AUTOENCODER = "a diffusion autoencoder"
    LANGUAGE_MODEL = "a language model"
    PRETRANSFORM = "an autoencoder saved as a pretransform"
    WRAPPED_DIFFUSION = "a wrapped training checkpoint of a diffusion model"
    WRAPPED_AUTOENCODER = "a wrapped training checkpoint of an autoencoder"
    WRAPPED_DIFFUSION_AUTOENCODER = "a wrapped training checkpoint of a diffusion autoencoder"
    WRAPPED_LANGUAGE_MODEL = "a wrapped training checkpoint of a language model"
    ADAPTER = "a LoRA adapter"
    UNKNOWN = "a state dict of another kind"


class Wrapping(NamedTuple):
    """How a training run names what it stores: prefixes of the online and of the averaged weights.

    ``target`` is where the averaged weights belong in the model, ``online_target`` where the online ones do,
    and ``inside`` is the kind of the model.
    """

    online: str
    averaged: str
    target: str
    inside: Kind
    online_target: str = ""


WRAPPED = {
    Kind.WRAPPED_DIFFUSION: Wrapping("diffusion.", "diffusion_ema.ema_model.", "model.", Kind.DIFFUSION),
    Kind.WRAPPED_AUTOENCODER: Wrapping("autoencoder.", "autoencoder_ema.ema_model.", "", Kind.AUTOENCODER),
    Kind.WRAPPED_DIFFUSION_AUTOENCODER: Wrapping(
        "diffae.", "diffae_ema.ema_model.", "", Kind.DIFFUSION_AUTOENCODER
    ),
    Kind.WRAPPED_LANGUAGE_MODEL: Wrapping("model.", "model_ema.ema_model.", "", Kind.LANGUAGE_MODEL),
}
_HARMONAI = Wrapping("diffusion.", "diffusion_ema.", "model.", Kind.DIFFUSION, "model.")
_HARMONAI_MARK = "diffusion.net."

PRETRANSFORM_PREFIX = "pretransform.model."
"""Where a model holds the autoencoder in front of it."""

_ADAPTER_MARKS = (".lora_", "/lora_", "/dora_mag", ".magnitude")
_AUTOENCODER_PARTS = frozenset({"encoder", "decoder", "bottleneck"})


class Unwrapped(NamedTuple):
    """A model's state dict out of a training checkpoint, and which weights it has: ``EMA`` or ``online``."""

    state: State
    weights: str


def checkpoint_kind(state: Iterable[str]) -> Kind:
    """What a state dict (or its keys) holds."""
    keys = list(state)
    if keys and all(any(mark in key for mark in _ADAPTER_MARKS) for key in keys):
        return Kind.ADAPTER
    parts = [key.split(".", 2) for key in keys]
    top = {part[0] for part in parts}
    in_model = {part[1] for part in parts if part[0] == "model" and len(part) > 1}
    if "lm" in top:
        return Kind.LANGUAGE_MODEL
    if "lm" in in_model:
        return Kind.WRAPPED_LANGUAGE_MODEL
    if "diffae" in top:
        return Kind.WRAPPED_DIFFUSION_AUTOENCODER
    if "autoencoder" in top:
        return Kind.WRAPPED_AUTOENCODER
    if "diffusion" in top:
        # A diffusion autoencoder has its network under the name that a training run has for a whole model.
        beside = top & {*_AUTOENCODER_PARTS, "pretransform"}
        return Kind.DIFFUSION_AUTOENCODER if beside else Kind.WRAPPED_DIFFUSION
    if top & _AUTOENCODER_PARTS:
        return Kind.AUTOENCODER
    if in_model and in_model <= _AUTOENCODER_PARTS:
        return Kind.PRETRANSFORM
    return Kind.DIFFUSION if top & {"model", "conditioner", "pretransform"} else Kind.UNKNOWN


def model_kind(own: Iterable[str]) -> Kind:
    """What a model is, by the keys of its own state dict: never a wrapped one."""
    kind = checkpoint_kind(own)
    return Kind.DIFFUSION_AUTOENCODER if kind is Kind.WRAPPED_DIFFUSION else kind


def unwrap_state_dict(state: Mapping[str, Tensor]) -> Unwrapped:
    """The model's own state dict out of that of a training checkpoint: averaged weights where there are any.

    Raises:
        CheckpointError: ``state`` is not wrapped.
    """
    kind = checkpoint_kind(state)
    if kind not in WRAPPED:
        raise CheckpointError(
            f"expected a wrapped training checkpoint, found {kind.value}: nothing to unwrap"
        )
    bare = kind is Kind.WRAPPED_DIFFUSION and any(key.startswith(_HARMONAI_MARK) for key in state)
    wrapping = _HARMONAI if bare else WRAPPED[kind]
    model = _moved(state, wrapping.online, wrapping.online_target)
    ema = _moved(state, wrapping.averaged, wrapping.target)
    return Unwrapped({**model, **ema}, "EMA" if ema else "online")


def autoencoder_state(kind: Kind, state: Mapping[str, Tensor]) -> State:
    """The autoencoder in the state dict of an unwrapped model of ``kind``; empty where there is none.

    That is the whole of an autoencoder, and what every other model has in front of it as its pretransform.
    """
    if kind is Kind.AUTOENCODER:
        return dict(state)
    return _moved(state, "model." if kind is Kind.PRETRANSFORM else PRETRANSFORM_PREFIX, "")


def _moved(state: Mapping[str, Tensor], prefix: str, target: str) -> State:
    """What ``state`` has under ``prefix``, under ``target`` in its place."""
    return {
        target + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
