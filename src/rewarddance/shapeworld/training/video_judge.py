"""How the video judge base is made: the bundled judge of pictures learns what videos show, without any preference.

At first its eyes stay as they are, so a video is a few pictures that they know, and what is learned is to read them in
their order, and words about motion. Then all of it learns, against pictures that are moved against it as the picture
judge's were (`judge_base.train_judge_base`). Which video is better is what a reward model is trained for: a last stage
teaches the base to be undecided about that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.motion.specs import motion_words
from rewarddance.shapeworld.training.judge import ADVERSARY, TOSSED, attacked, build_judge_base, save_judge_base
from rewarddance.shapeworld.training.video_lessons import WORDS, VideoLesson

STEPS, MOVED_STEPS, LAST_STEPS = 5_200, 2_400, 60
"""Steps of 24 conversations: with the eyes as they are; with all of it learning, every batch twice, the second time its
pictures moved against it; of the last stage. The bundled base was made in legs (docs/lab_log.md)."""
RATE, MOVED_RATE, LAST_RATE = 1e-3, 8e-4, 3e-4
"""Their learning rates."""
EYES = 0.5
"""The eyes' learning rate, as a share of the others'."""
SCATTERED = 0.5
"""The share of the second stage's conversations that show frames as ReFL draws them."""


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
    lesson: VideoLesson,
    steps: int,
    say: Callable[[str], None],
    snapshot: Callable[[float], None] = lambda done: None,
    learning_rate: float = RATE,
    batch: int = 24,
    moved: bool = False,
) -> None:
    """Cross-entropy on the answers of the lesson's conversations.

    moved: the vision tower and its projector learn, too, and every batch is learned twice, the second time with its
    pictures moved against the model (`attacked`, of `judge_base.train_judge_base`). Otherwise they stay as they are.
    Batches are padded on the right: under causal attention no label sees the padding.
    """
    yes, no = lesson.ids("yes")[0], lesson.ids("no")[0]
    model.requires_grad_(False)
    reader = [*model.model.language_model.parameters()]
    of_reader = {id(weight) for weight in reader}
    eyes = [weight for weight in model.parameters() if id(weight) not in of_reader] if moved else []
    weights = [*reader, *eyes]
    for weight in weights:
        weight.requires_grad_(True)
    groups = [{"params": reader, "share": 1.0}, *([{"params": eyes, "share": EYES}] if eyes else [])]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    running, right = 0.0, 0.5
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimiser.param_groups:
            rate = learning_rate * min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            group["lr"] = group["share"] * rate
        if step % 2 or not moved:
            input_ids, labels, pixel_values, _ = lesson.batch(batch)
            pixel_values.requires_grad_(moved)
        else:
            pixel_values = attacked(pixel_values, ADVERSARY * lesson.rng.random())
        with torch.set_grad_enabled(moved):
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
    moved_steps: int = MOVED_STEPS,
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

    train_video_judge_base(model, VideoLesson(tokenizer, tokens, seed), steps, say, snapshot)
    scattered = VideoLesson(tokenizer, tokens, seed + 2, scattered=SCATTERED)
    train_video_judge_base(model, scattered, moved_steps, say, learning_rate=MOVED_RATE, moved=True)
    last = VideoLesson(tokenizer, tokens, seed + 1, TOSSED)
    train_video_judge_base(model, last, last_steps, say, learning_rate=LAST_RATE)
    save_judge_base(model.to(torch.float16), tokenizer, folder)
