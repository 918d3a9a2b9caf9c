"""The small checkpoints' byte-level BPE tokenizers: each ShapeWorld word is one token, all text can be encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rewarddance.shapeworld.scenes import COUNTS, PREFIXES, all_specs


def prompt_corpus() -> list[str]:
    """Every prompt with every opening, and the other words that a prompt may have."""
    texts = [prefix + spec.text for specs in all_specs().values() for spec in specs for prefix in PREFIXES]
    return [*texts, *texts, " ".join(["", *COUNTS, "an", "to", "the", "is", "photo", "image"])]


def train_tokenizer(
    corpus: Iterable[str], special: Sequence[str], bos: str | None = None, eos: str | None = None, **names: Any
):
    """Train a byte-level BPE on `corpus` until each of its words is one token.

    special: tokens that are never split. bos, eos: those that open and close every text, or None. names: what
    `PreTrainedTokenizerFast` calls them (`pad_token`, `eos_token`, ...), and extra attributes such as
    InternVL's `context_image_token`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in (bos, "$A", eos) if part),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
