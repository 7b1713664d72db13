"""The tiny CLAP: audio and captions in one space (Elizalde et al. 2023; Wu et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.demo.pretraining.fitting import fit
from stable_audio_tools.demo.pretraining.stage import Stage, save_half
from stable_audio_tools.demo.pretraining.t5 import captions_of
from stable_audio_tools.demo.synth import SAMPLE_RATE

_TEXT_LENGTH = 48
_CROP_SECONDS = (4.0, 6.144, 8.0, 10.0)


class ClapMel:
    """The log-mel input of CLAP's extractor (``rand_trunc``, ``repeatpad``), batched on any device."""

    def __init__(self, extractor: Any, device: torch.device) -> None:
        self.extractor = extractor
        self.filters = torch.as_tensor(extractor.mel_filters_slaney, dtype=torch.float32, device=device)
        self.window = torch.hann_window(extractor.fft_window_size, device=device)

    def __call__(self, audio: Tensor) -> Tensor:
        """Input features ``(B, 1, 1001, 64)`` of mono ``(B, T)`` at :data:`SAMPLE_RATE`, up to 10 s."""
        audio = upsample(audio, self.extractor.sampling_rate // SAMPLE_RATE)
        room = self.extractor.nb_max_samples
        audio = audio.repeat(1, max(1, room // audio.shape[1]))
        audio = F.pad(audio, (0, room - audio.shape[1]))
        size, hop = self.extractor.fft_window_size, self.extractor.hop_length
        spectrum = torch.stft(audio, size, hop, window=self.window, pad_mode="reflect", return_complex=True)
        mel = spectrum.abs().square().transpose(1, 2) @ self.filters
        return 10 * torch.log10(mel.clamp(min=1e-10)).unsqueeze(1)


def upsample(audio: Tensor, factor: int) -> Tensor:
    """Band-limited interpolation of ``(B, T)`` by a whole factor, in the frequency domain."""
    length = audio.shape[-1]
    spectrum = torch.fft.rfft(audio)
    if length % 2 == 0:  # the bin at the old Nyquist frequency now stands for two
        spectrum[..., -1] *= 0.5
    return torch.fft.irfft(spectrum, n=length * factor) * factor


def train(stage: Stage) -> dict[str, Any]:
    """Train and save a Hugging Face ``ClapModel`` with its processor."""
    from transformers import ClapFeatureExtractor, ClapProcessor

    captions = captions_of(stage.train, 5)
    tokenizer = _train_tokenizer([text for prompts in captions for text in prompts])
    extractor = ClapFeatureExtractor(
        truncation="rand_trunc", padding="repeatpad", frequency_min=50, frequency_max=14000
    )
    mel = ClapMel(extractor, stage.device)
    model = _build(stage, len(tokenizer))
    draw = stage.draw("pairs")

    def tokens(texts: list[str]) -> dict[str, Tensor]:
        batch = tokenizer(
            texts, padding="max_length", max_length=_TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        return {key: batch[key].to(stage.device) for key in ("input_ids", "attention_mask")}

    ids = [tokens(prompts) for prompts in captions]
    input_ids, attention_mask = (
        torch.stack([t[key] for t in ids]) for key in ("input_ids", "attention_mask")
    )

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        seconds = _CROP_SECONDS[int(torch.randint(len(_CROP_SECONDS), (), generator=draw))]
        audio, pieces = stage.train.crops(stage.batch(64), round(seconds * SAMPLE_RATE), draw)
        wording = torch.randint(input_ids.shape[1], (len(pieces),), generator=draw)
        gain = 10 ** ((torch.rand(len(pieces), 1, generator=draw) * 12 - 9) / 20)
        where = (pieces.to(stage.device), wording.to(stage.device))
        features = mel(audio.mean(1) * gain.to(stage.device))
        with torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.device.type == "cuda"):
            found = model(
                input_ids=input_ids[where],
                attention_mask=attention_mask[where],
                input_features=features,
            )
        return _contrastive(found.audio_embeds.float(), found.text_embeds.float(), model.logit_scale_a)

    history = fit("clap", model, step, stage.fit_settings(2500, learning_rate=8e-4, weight_decay=0.05))
    model.eval()
    with torch.no_grad():
        results = _judge(stage, model, mel, tokens)
    save_half(model, stage.folder)
    ClapProcessor(extractor, tokenizer).save_pretrained(stage.folder)
    return stage.record(history, model, results)


def _build(stage: Stage, vocabulary: int) -> Any:
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    text = ClapTextConfig(
        vocab_size=vocabulary, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=80, projection_dim=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=24, hidden_size=192, depths=[1, 1, 2, 1], num_attention_heads=[1, 2, 4, 8],
        projection_dim=64, num_hidden_layers=4, hidden_dropout_prob=0.0, num_classes=8,
    )  # fmt: skip
    with stage.seeded():
        model: Any = ClapModel(
            ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=64)
        )
    return model.to(stage.device).train()


def _train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer with RoBERTa's special tokens, in RoBERTa's order."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    return RobertaTokenizerFast(vocab=learned["vocab"], merges=merges, model_max_length=77)


def _contrastive(audio: Tensor, text: Tensor, log_scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Symmetric cross entropy over the batch (Radford et al. 2021); embeddings ``(B, D)`` of length one."""
    logits = log_scale.clamp(max=3.7).exp() * audio @ text.T
    wanted = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
    return loss, {"top1": (logits.argmax(1) == wanted).float().mean()}


def _judge(stage: Stage, model: Any, mel: ClapMel, tokens: Any) -> dict[str, float]:
    """On unheard music: does the right style win, and is a piece nearer to its own caption?"""
    pieces = stage.held_out.pieces
    audio, texts = [], []
    for index, piece in enumerate(pieces):
        span = stage.held_out.whole(index)[:, : 6 * SAMPLE_RATE].mean(0, keepdim=True)
        text = tokens([piece.caption])
        found = model(**text, input_features=mel(span))
        audio.append(found.audio_embeds[0])
        texts.append(found.text_embeds[0])
    similarity = torch.stack(audio) @ torch.stack(texts).T
    styles = [piece.artist.style for piece in pieces]
    nearest = similarity.argmax(1).tolist()
    own = similarity.diagonal().mean()
    other = (similarity.sum() - similarity.diagonal().sum()) / max(1, len(pieces) * (len(pieces) - 1))
    return {
        "nearest caption has the right style": round(
            sum(styles[i] == styles[j] for i, j in enumerate(nearest)) / len(styles), 3
        ),
        "similarity to own caption": round(float(own), 3),
        "similarity to other captions": round(float(other), 3),
    }
