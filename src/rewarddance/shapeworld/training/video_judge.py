"""How the video judge base is made: the bundled judge of pictures learns what videos show, without any preference.

At first its vision tower is frozen: a video is a few pictures that it can read, and it learns to read them in order,
and words about motion. Then all weights are trained, adversarially as the picture judge's were
(`judge.train_judge`). Which video is better is what a reward model is trained for: a last stage teaches the base to be
undecided about that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rewarddance.shapeworld.motion.specs import motion_words
from rewarddance.shapeworld.training.growing import with_words
from rewarddance.shapeworld.training.judge import COIN_SHARE, LARGEST, save_judge_base, train_judge
from rewarddance.shapeworld.training.loop import cosine, snapshots_of
from rewarddance.shapeworld.training.video_conversations import WORDS, VideoConversations

STEPS, ADVERSARIAL_STEPS, LAST_STEPS = 5_200, 2_400, 60
"""Steps of 24 conversations: with a frozen vision tower; with all weights trained, adversarially; of the last stage.
The bundled base was made in legs (docs/lab_log.md)."""
RATE, ADVERSARIAL_RATE, LAST_RATE = 1e-3, 8e-4, 3e-4
"""Their learning rates."""
VISION_SHARE = 0.5
"""The vision tower's learning rate, as a share of the language model's."""
SCATTERED = 0.5
"""The share of the second stage's conversations that show frames as ReFL draws them."""


def build_video_judge_base(seed: int = 0, begin: str = LARGEST) -> tuple[Any, Any]:
    """The picture judge `begin` with a tokenizer that knows words about motion (see `with_words`)."""
    words = [*motion_words(), *WORDS.split("\n"), *(f" {word}" for word in WORDS.split()), *WORDS.split()]
    return with_words(begin, words, seed)


def train_video_judge(
    model: Any,
    conversations: VideoConversations,
    steps: int,
    *,
    learning_rate: float,
    log: Callable[[str], None],
    adversarial: bool = False,
    batch: int = 24,
    snapshot: Callable[[float], None] | None = None,
) -> None:
    """One stage (see `judge.train_judge`). The vision tower and its projector are frozen where not `adversarial`."""
    language = list(model.model.language_model.parameters())
    in_language = {id(weight) for weight in language}
    vision = [weight for weight in model.parameters() if id(weight) not in in_language]
    for weight in vision:
        weight.requires_grad_(adversarial)
    train_judge(
        model,
        conversations,
        steps,
        weights=[{"params": language}, *([{"params": vision, "share": VISION_SHARE}] if adversarial else [])],
        rate=cosine(learning_rate, 50),
        batch=batch,
        log=log,
        adversarial=adversarial,
        snapshot=snapshot,
        snapshots=5,
    )


def make_video_judge_base(
    folder: Path,
    *,
    steps: int = STEPS,
    adversarial_steps: int = ADVERSARIAL_STEPS,
    last_steps: int = LAST_STEPS,
    seed: int = 0,
    log: Callable[[str], None] = print,
    begin: str = LARGEST,
) -> None:
    """Make the video judge base and save it as a standard transformers folder; five snapshots go beside it.

    begin: the judge of pictures that it is made from.
    """
    model, tokenizer = build_video_judge_base(seed, begin)
    draw = partial(VideoConversations, tokenizer, model.config.image_seq_length)
    train = partial(train_video_judge, model, log=log)
    snapshot = snapshots_of(folder, partial(save_judge_base, model, tokenizer))
    train(draw(seed), steps, learning_rate=RATE, snapshot=snapshot)
    scattered = draw(seed + 2, scattered=SCATTERED)
    train(scattered, adversarial_steps, learning_rate=ADVERSARIAL_RATE, adversarial=True)
    train(draw(seed + 1, COIN_SHARE), last_steps, learning_rate=LAST_RATE)
    save_judge_base(model.to(torch.float16), tokenizer, folder)
