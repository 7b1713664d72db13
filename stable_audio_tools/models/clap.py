"""A CLAP: audio and text in one space.

Y. Wu et al., "Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation" (ICASSP 2023), in the Hugging Face format, or as LAION published it.

CLAP hears 10 s. Its own preprocessing takes random pieces of longer audio from NumPy's global generator and
picks a random clip of each batch for the fusion path, so that an embedding would change with the batch and
the day. Here everything is a function of the clip alone: a fusion model gets its overview and three pieces
from fixed places; a model without fusion gets windows of 10 s laid evenly over the clip, and their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stable_audio_tools.audio.transforms import resample
from stable_audio_tools.errors import CheckpointError, ConfigError, DataError
from stable_audio_tools.models.clap_laion import LAION_SUFFIXES, LAION_WIDTHS, load_laion
from stable_audio_tools.runtime.libraries import load_pretrained, quiet_transformers, readable_errors

_ADVICE = "a folder with model, tokenizer and preprocessor files, a name on the hub, or a .pt file of LAION"


class Clap:
    """A CLAP with its tokenizer and feature extractor. Gradients flow to its weights where they are wanted.

    Attributes:
        model: the ``ClapModel`` of transformers, in evaluation mode.
        sample_rate: what it hears, in Hz; other rates are resampled.
        dim: width D of the embeddings.
        text_dim: width of the text features.
        max_text_length: tokens that the text branch has positions for.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.sample_rate = int(extractor.sampling_rate)
        self.dim = int(model.config.projection_dim)
        self.text_dim = int(model.config.text_config.hidden_size)
        text = model.config.text_config
        self.max_text_length = int(text.max_position_embeddings - text.pad_token_id - 1)
        self._fusion = bool(model.config.audio_config.enable_fusion)
        self._window = int(extractor.nb_max_samples)

    def keep_only(self, branch: Literal["text", "audio"]) -> Clap:
        """Forget the other branch and what only training takes."""
        other = "audio" if branch == "text" else "text"
        for part in (f"{other}_model", f"{other}_projection", "logit_scale_a", "logit_scale_t"):
            delattr(self.model, part)
        return self

    def embed_audio(self, clips: Sequence[Tensor], sample_rate: int, batch_size: int = 16) -> Tensor:
        """Embeddings of length one, ``(B, D)`` float32, of audio ``(C, T)`` each.

        Raises:
            DataError: a clip cannot be heard.
        """
        heard = [self._mono(clip, sample_rate, position) for position, clip in enumerate(clips)]
        # One row of inputs a clip with fusion; one or more windows a clip without.
        views = [self._fusion_views(clip) if self._fusion else self._windows(clip) for clip in heard]
        weight = next(self.model.audio_model.parameters())
        if not views:
            return torch.zeros(0, self.dim, device=weight.device)
        owner = torch.tensor([position for position, (mels, _) in enumerate(views) for _ in mels])
        mels = torch.cat([mels for mels, _ in views])
        longer = torch.tensor([flag for mels, flag in views for _ in mels])[:, None]
        rows = []
        for features, flags in zip(mels.split(batch_size), longer.split(batch_size), strict=True):
            found = self.model.get_audio_features(
                input_features=features.to(weight), is_longer=flags.to(weight.device)
            )
            rows.append(_unit(_tensor(found)))
        found = torch.cat(rows)
        sums = found.new_zeros(len(heard), self.dim).index_add(0, owner.to(found.device), found)
        return _unit(sums)

    def embed_text(self, texts: Sequence[str], max_length: int | None = None) -> Tensor:
        """Embeddings of length one, ``(B, D)`` float32.

        Args:
            max_length: tokens beyond it are cut; None is the most that the tokenizer allows.
        """
        tokens = self._tokens(texts, padding=True, max_length=max_length)
        return _unit(_tensor(self.model.get_text_features(**tokens)))

    def text_features(self, texts: Sequence[str], layer: int, length: int) -> tuple[Tensor, Tensor]:
        """A hidden state of the text branch at ``length`` tokens, ``(B, length, text_dim)``, and its mask.

        Raises:
            ConfigError: there is no such layer.
        """
        tokens = self._tokens(texts, padding="max_length", max_length=length)
        states = self.model.text_model(**tokens, output_hidden_states=True).hidden_states
        if not -len(states) <= layer < len(states):
            raise ConfigError(
                f"feature_layer_ix: {layer} is none of the {len(states)} hidden states; expected"
                f" {-len(states)} to {len(states) - 1}"
            )
        return states[layer], tokens["attention_mask"].to(torch.bool)

    def _tokens(self, texts: Sequence[str], padding: bool | str, max_length: int | None) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=max_length, return_tensors="pt"
        )
        device = next(self.model.text_model.parameters()).device
        return {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")}

    def _mono(self, clip: Tensor, sample_rate: int, position: int) -> Tensor:
        if clip.ndim != 2 or clip.shape[-1] == 0 or not torch.isfinite(clip).all():
            raise DataError(
                f"clip {position} of shape {tuple(clip.shape)} cannot be embedded: "
                "expected (channels, samples), at least one sample, all finite"
            )
        mono = clip.detach().to("cpu", torch.float32).mean(0)
        return mono if sample_rate == self.sample_rate else resample(mono, sample_rate, self.sample_rate)

    def _mel(self, mono: Tensor, length: int) -> Tensor:
        """Log-mel ``(frames, bands)`` of ``length`` samples, shorter audio repeated as in training."""
        features = self.extractor(
            mono.numpy(), sampling_rate=self.sample_rate, max_length=length, return_tensors="np"
        )["input_features"]
        return torch.as_tensor(features[0][0], dtype=torch.float32)

    def _windows(self, mono: Tensor) -> tuple[Tensor, bool]:
        """Log-mels ``(W, 1, frames, bands)`` of windows that cover the clip evenly, first to last sample."""
        count = max(1, math.ceil(len(mono) / self._window))
        last = max(0, len(mono) - self._window)
        starts = [round(k * last / max(1, count - 1)) for k in range(count)]
        mels = [self._mel(mono[start : start + self._window], self._window) for start in starts]
        return torch.stack(mels)[:, None], False

    def _fusion_views(self, mono: Tensor) -> tuple[Tensor, bool]:
        """Log-mels ``(1, 4, frames, bands)``: the clip shrunk to 10 s, then a piece of each third of it."""
        mel = self._mel(mono, max(len(mono), self._window))
        frames = self._window // self.extractor.hop_length + 1
        if len(mel) <= frames:
            return mel.expand(1, 4, -1, -1), False
        overview = torch.nn.functional.interpolate(
            mel[None, None], size=[frames, mel.shape[1]], mode="bilinear"
        )[0, 0]
        last = len(mel) - frames
        pieces = [mel[start : start + frames] for start in (round(last * k / 6) for k in (1, 3, 5))]
        return torch.stack([overview, *pieces])[None], True


# Widths of text features and of embeddings of the published ones, so that a model can be built without them.
_WIDTHS = {
    name: (768, 512)
    for name in (
        "laion/clap-htsat-fused",
        "laion/clap-htsat-unfused",
        "laion/larger_clap_general",
        "laion/larger_clap_music",
        "laion/larger_clap_music_and_speech",
    )
}


def clap_widths(name: str) -> tuple[int, int]:
    """Channels of the text features and of the embeddings of the CLAP called ``name``.

    Raises:
        CheckpointError: there is no CLAP of that name.
    """
    if name in _WIDTHS:
        return _WIDTHS[name]
    if Path(name).suffix in LAION_SUFFIXES:
        return LAION_WIDTHS
    from transformers import AutoConfig

    with readable_errors("CLAP", name, "a CLAP"), quiet_transformers():
        config: Any = AutoConfig.from_pretrained(name)
    if config.model_type != "clap":
        raise CheckpointError(
            f"CLAP {name!r}: is of type {config.model_type!r}; expected 'clap'; give {_ADVICE}"
        )
    return int(config.text_config.hidden_size), int(config.projection_dim)


def load_clap(name: str) -> Clap:
    """The CLAP called ``name`` with all its parts: a folder or name of Hugging Face, or a ``.pt`` of LAION.

    Raises:
        CheckpointError: there is no CLAP of that name, or it is not whole.
    """
    if torch.get_default_device().type == "meta":  # only keys and shapes are wanted
        with torch.device("cpu"):
            clap = load_clap(name)
        clap.model.to("meta")
        return clap
    if Path(name).suffix in LAION_SUFFIXES:
        return Clap(*load_laion(name))
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model, extractor, tokenizer = load_pretrained(
        name, "CLAP", ClapModel, ClapFeatureExtractor, AutoTokenizer, advice=_ADVICE
    )
    return Clap(model.float(), extractor, tokenizer)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


def _tensor(features: Any) -> Tensor:
    """transformers 4 returns the projected features, 5 an output that has them as ``pooler_output``."""
    return features if isinstance(features, Tensor) else features.pooler_output
