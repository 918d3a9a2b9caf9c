"""How the edit judge base is made: a bundled judge learns what edits of a source show, without any preference.

It goes on from a judge that reads pictures in a row. First it learns to compare an edit with its source; then the same
adversarially, as the picture judge did (`judge.train_judge`), so that the gradient of its answers is about what is
seen. Which of two edits is better is what a reward model is trained for: a last stage answers that by a coin. In the
bundled base it was too short to leave it undecided (docs/lab_log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rewarddance.shapeworld.training.edit_conversations import WORDS, EditConversations
from rewarddance.shapeworld.training.edit_generator import edit_corpus
from rewarddance.shapeworld.training.growing import with_words
from rewarddance.shapeworld.training.judge import (
    ADVERSARY,
    COIN_SHARE,
    Grounding,
    answer_objective,
    attacked,
    picture_features,
    save_judge_base,
)
from rewarddance.shapeworld.training.loop import TrainingFile, TrainingLoop, cosine, half_layers
from rewarddance.shapeworld.training.patch_heads import PatchHeads

BEGIN = "shapeworld-video-judge"
"""It has learned to compare pictures in a row, the first of which is given."""
STEPS, ADVERSARIAL_STEPS, LAST_STEPS = 1_300, 320, 40
"""Steps of 24 conversations: as they are, adversarially, and of the last stage."""
RATE, ADVERSARIAL_RATE, LAST_RATE = 1e-3, 8e-4, 3e-4
"""Their learning rates."""
BATCH, SAVE_EVERY = 24, 80
"""Conversations a step; steps between two checkpoints: a multiple of 8, after which no drawn conversation is left."""


class Stage(NamedTuple):
    """A part of the training. coin_share: see `Conversations`; adversarial: see `judge.train_judge`."""

    name: str
    steps: int
    rate: float
    seed: int
    coin_share: float = 0.0
    adversarial: bool = False


def build_edit_judge_base(seed: int = 0, begin: str = BEGIN) -> tuple[Any, Any]:
    """The judge `begin` with a tokenizer that knows instructions of edits (see `with_words`)."""
    words = [*edit_corpus(), *WORDS.split("\n"), *(f" {word}" for word in WORDS.split()), *WORDS.split()]
    return with_words(begin, words, seed)


def make_edit_judge_base(
    folder: Path,
    *,
    steps: int = STEPS,
    adversarial_steps: int = ADVERSARIAL_STEPS,
    last_steps: int = LAST_STEPS,
    batch: int = BATCH,
    seed: int = 0,
    begin: str = BEGIN,
    log: Callable[[str], None] = print,
) -> None:
    """Make the edit judge base and save it as a standard transformers folder; goes on after a kill.

    begin: the judge that it is made from. Raises InputError where the folder's unfinished training is another one.
    """
    model, tokenizer = build_edit_judge_base(seed, begin)
    stages = [
        Stage("edits", steps, RATE, seed),
        Stage("adversarial", adversarial_steps, ADVERSARIAL_RATE, seed + 2, adversarial=True),
        Stage("last", last_steps, LAST_RATE, seed + 1, COIN_SHARE),
    ]
    plan = {"steps": [stage.steps for stage in stages], "batch": batch, "seed": seed, "begin": begin}
    file = TrainingFile(folder.with_name(f"{folder.name}-training.pt"), plan)
    heads, saved = PatchHeads(model.config.vision_config.hidden_size), file.saved()
    for index, stage in enumerate(stages):
        if saved and index < saved["stage"]:
            continue
        conversations = EditConversations(tokenizer, model.config.image_seq_length, stage.seed, stage.coin_share)
        grounding = Grounding(model, conversations, heads)
        loop = TrainingLoop(
            stage.name, grounding.weights, stage.steps, rate=cosine(stage.rate, 50), weight_decay=0.02, log=log
        )
        if saved and index == saved["stage"]:
            loop.load_state_dict(saved["loop"])
            conversations.rng.bit_generator.state = saved["rng"]
        learn(
            grounding,
            conversations,
            loop,
            batch,
            adversarial=stage.adversarial,
            save=lambda loop, rng, index=index: file.save(stage=index, loop=loop, rng=rng),
        )
    save_judge_base(model.to(torch.float16), tokenizer, folder)
    file.remove()


def learn(
    grounding: Grounding,
    conversations: EditConversations,
    loop: TrainingLoop,
    batch: int,
    *,
    adversarial: bool,
    save: Callable[[dict[str, Any], Mapping[str, Any]], None],
) -> None:
    """One stage: cross-entropy on the answers, and dense supervision beside it.

    adversarial: every batch is learned twice, see `judge.train_judge`. save: called every `SAVE_EVERY` steps with the
    loop's state and that of the random numbers.
    """
    answers = conversations.ids("yes")[0], conversations.ids("no")[0]
    for step in loop:
        if loop.done and loop.done % SAVE_EVERY == 0:
            save(loop.state_dict(), conversations.rng.bit_generator.state)
        if step % 2 or not adversarial:
            input_ids, labels, pixel_values, patches = conversations.batch(batch)
            pixel_values.requires_grad_(adversarial)
        else:  # the same pictures again, each moved against the last step's answers
            pixel_values = attacked(pixel_values, ADVERSARY * conversations.rng.random())
        with half_layers(), sdpa_kernel(SDPBackend.MATH):  # at this size the fused kernels are slower
            features = picture_features(grounding.model, pixel_values)
            objective, figures = answer_objective(
                grounding.model, features, input_ids, labels, patches, answers, grounding
            )
        loop.learn(objective, **figures)
