"""How the video judge base is made: the bundled judge of pictures learns what films show, without any preference.

Its eyes stay as they are, so a film is a few pictures that they know; what is learned is to read them in their order,
and words about motion. Which film is better is what a reward model is trained for: a last stage teaches the base to be
undecided about that, as the picture judge's does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.judge_base import TOSSED, build_judge_base, save_judge_base
from rewarddance.shapeworld.motion.lessons import WORDS, FilmLesson
from rewarddance.shapeworld.motion.specs import motion_words

STEPS, LAST_STEPS = 5_200, 60
"""Steps of 24 conversations, and those of the last stage. The bundled base was made in legs (docs/lab_log.md)."""
LAST_RATE = 3e-4
"""Learning rate of the last stage."""


def build_video_judge_base(seed: int = 0, begin: str = "shapeworld-judge") -> tuple[Any, Any]:
    """The picture judge `begin` with a tokenizer that knows words about motion, and that tokenizer.

    Words that both know keep their embeddings; the others begin as the mean of all, with a little noise.
    """
    words = [*motion_words(), *WORDS.split("\n"), *(f" {word}" for word in WORDS.split()), *WORDS.split()]
    model, tokenizer = build_judge_base(seed, more_words=words)
    folder = find_checkpoint(begin)
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    theirs = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = model.state_dict()
    for name, weight in theirs.items():
        if weight.shape == ours[name].shape and "embed_tokens" not in name and "lm_head" not in name:
            ours[name].copy_(weight)
    table = model.get_input_embeddings().weight
    old = next(weight for name, weight in theirs.items() if "embed_tokens" in name)
    with torch.no_grad():
        table.copy_(old.mean(0) + 0.5 * old.std(0) * torch.randn_like(table))
        for word, place in tokenizer.get_vocab().items():
            if word in known:
                table[place] = old[known[word]]
    return model, tokenizer


def train_video_judge_base(
    model: Any,
    lesson: FilmLesson,
    steps: int,
    say: Callable[[str], None],
    snapshot: Callable[[float], None] = lambda done: None,
    learning_rate: float = 1e-3,
    batch: int = 24,
) -> None:
    """Cross-entropy on the answers of the lesson's conversations; the vision tower and its projector stay as they are.

    Batches are padded on the right: under causal attention no label sees the padding.
    """
    yes, no = lesson.ids("yes")[0], lesson.ids("no")[0]
    model.requires_grad_(False)
    weights = [*model.model.language_model.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    running, right = 0.0, 0.5
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        input_ids, labels, pixel_values, _ = lesson.batch(batch)
        with torch.no_grad():
            tokens = model.model.get_image_features(
                pixel_values=pixel_values,
                vision_feature_layer=-1,
                vision_feature_select_strategy="default",
                return_dict=True,
            ).pooler_output
        here = (input_ids == model.config.image_token_id).unsqueeze(-1)
        embeds = model.get_input_embeddings()(input_ids).masked_scatter(here, tokens.flatten(0, 1))
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        asked = labels != -100
        logits, targets = model.lm_head(hidden[asked]), labels[asked]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            binary = (targets == yes) | (targets == no)
            share = ((logits[binary][:, yes] > logits[binary][:, no]) == (targets[binary] == yes)).float().mean().item()
        keep = 0.97 if step > 1 else 0.0
        running, right = keep * running + (1 - keep) * loss.item(), keep * right + (1 - keep) * share
        if step % 20 == 0 or step == steps:
            say(f"video judge step {step} loss {running:.4f} yes/no {right:.3f}")
        if step % math.ceil(steps / 5) == 0 or step == steps:
            snapshot(done)


def make_video_judge_base(
    folder: Path,
    steps: int = STEPS,
    last_steps: int = LAST_STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
    begin: str = "shapeworld-judge",
) -> None:
    """Make the video judge base and save it as a standard transformers folder; five snapshots go beside it.

    begin: the judge of pictures that it is made from.
    """
    model, tokenizer = build_video_judge_base(seed, begin)
    tokens = model.config.image_seq_length

    def snapshot(done: float) -> None:
        save_judge_base(model, tokenizer, folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    train_video_judge_base(model, FilmLesson(tokenizer, tokens, seed), steps, say, snapshot)
    last = FilmLesson(tokenizer, tokens, seed + 1, TOSSED)
    train_video_judge_base(model, last, last_steps, say, learning_rate=LAST_RATE)
    save_judge_base(model.to(torch.float16), tokenizer, folder)
