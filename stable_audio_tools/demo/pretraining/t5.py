"""The tiny text encoder: T5 trained to fill gaps in captions (Raffel et al. 2020, section 3.1.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.demo.pieces import prompts_of
from stable_audio_tools.demo.pretraining.fitting import fit
from stable_audio_tools.demo.pretraining.stage import Stage, save_half
from stable_audio_tools.demo.pretraining.world import World
from stable_audio_tools.runtime.files import write_json

WIDTH = 128
_VOCABULARY, _MAX_TOKENS, _SENTINELS = 1024, 64, 8
_SPECIAL = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(_SENTINELS))]
_IGNORED = -100


def captions_of(world: World, each: int) -> list[list[str]]:
    """``each`` ways to ask for every piece."""
    return [prompts_of(piece, each) for piece in world.pieces]


def train(stage: Stage) -> dict[str, Any]:
    """Train tokenizer and encoder, and save both as one Hugging Face folder."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    texts = [text for prompts in captions_of(stage.train, 6) for text in prompts]
    tokenizer = _train_tokenizer(texts)
    encoded = [tokenizer(text)["input_ids"][:_MAX_TOKENS] for text in texts]
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    config.decoder_start_token_id = config.pad_token_id
    with stage.seeded():
        model: Any = T5ForConditionalGeneration(config)
    model.to(stage.device)
    draw = stage.draw("gaps")

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(len(encoded), (stage.batch(96),), generator=draw).tolist()
        batch = corrupt([encoded[i] for i in chosen], draw, stage.device)
        return model(**batch).loss, {}

    history = fit("t5", model, step, stage.fit_settings(2500, learning_rate=2e-3))
    unseen = [tokenizer(text)["input_ids"] for prompts in captions_of(stage.held_out, 2) for text in prompts]
    with torch.no_grad():
        loss = float(model(**corrupt(unseen, stage.draw("test gaps"), stage.device)).loss)
    with stage.seeded():
        encoder = T5EncoderModel(config)
    encoder.load_state_dict(model.state_dict(), strict=False)  # the decoder stays behind
    save_half(encoder, stage.folder)
    tokenizer.save_pretrained(stage.folder)
    path = stage.folder / "tokenizer_config.json"  # the class name that transformers 4 knows too
    write_json(path, {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
    return stage.record(history, encoder, {"held-out gap-filling loss": round(loss, 3)})


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A lower-casing BPE tokenizer in which every word has a form: what is no piece falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
    )


def corrupt(
    sequences: Sequence[Sequence[int]], draw: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Cut about a fifth of each sequence out in short spans, each behind a sentinel: inputs and labels."""
    inputs, labels = [], []
    for tokens in sequences:
        kept: list[int] = []
        cut: list[int] = []
        sentinel, position, end = len(_SPECIAL) - _SENTINELS, 0, len(tokens) - 1
        while position < end:
            span = int(torch.randint(1, 4, (), generator=draw))
            if sentinel < len(_SPECIAL) and float(torch.rand((), generator=draw)) < 0.12:
                kept.append(sentinel)
                cut += [sentinel, *tokens[position : min(position + span, end)]]
                sentinel, position = sentinel + 1, position + span
            else:
                kept.append(tokens[position])
                position += 1
        inputs.append(torch.tensor([*kept, 1]))
        labels.append(torch.tensor([*cut, 1]))
    ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=0)
    wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=_IGNORED)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": wanted}
    return {key: value.to(device) for key, value in batch.items()}
