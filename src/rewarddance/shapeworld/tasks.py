"""What a run on ShapeWorld is about: pictures, videos, or videos that begin with a picture; each as one record.

A task supplies prompts, preferences and the oracle; the run itself does not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.protocols import Generator
from rewarddance.shapeworld.motion.oracle import judge_videos
from rewarddance.shapeworld.motion.preferences import (
    MotionRecipe,
    draw_pools,
    motion_tasks,
    pair_videos,
    video_samples,
)
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Preference, Prompt

TASKS = ("t2i", "t2v", "i2v")


@runtime_checkable
class Seen(Protocol):
    """What every oracle says of one picture or video, in [0, 1]; overall orders two of one prompt."""

    @property
    def alignment(self) -> float: ...
    @property
    def quality(self) -> float: ...
    @property
    def overall(self) -> float: ...
    @property
    def correct(self) -> bool: ...


@dataclass(frozen=True)
class WorldTask:
    """What a run is about.

    prompts: `n` of a split from a seed, each with its category in its metadata and the picture that it comes with.
    preferences: training pairs ("train", votes) and test sets in the oracle's own order ("id", "early", "ood"), a
    generator's pictures among them. score: the oracle on pictures of one prompt.
    """

    name: str
    prompts: Callable[[str, int, int], list[Prompt]]
    preferences: Callable[[Generator, int], dict[str, list[Preference]]]
    score: Callable[[Tensor, Prompt], Sequence[Seen]]


def task_of(name: str, recipe: PreferenceRecipe | MotionRecipe) -> WorldTask:
    """The task of a name in `TASKS`, whose preferences are gather_full_tensors by a recipe."""
    if isinstance(recipe, MotionRecipe):
        if recipe.task != name:
            raise InputError(f"the task is {name}, and its preferences are of {recipe.task}.", "Make them the same.")
        return WorldTask(name, partial(_video_prompts, recipe), partial(_of_videos, recipe), _videos_seen)
    return WorldTask(name, _picture_prompts, partial(_of_pictures, recipe), _pictures_seen)


def parse_preferences(name: str, content: Any) -> PreferenceRecipe | MotionRecipe:
    """The part `preferences` of a recipe as the task's own. Raises pydantic's ValidationError for unknown keys."""
    if name == "t2i":
        return PreferenceRecipe.model_validate(content)
    return MotionRecipe.model_validate({"task": name, **content} if isinstance(content, dict) else content)


def _picture_prompts(split: str, n: int, seed: int) -> list[Prompt]:
    return [Prompt(text, metadata={"category": spec.category}) for text, spec in prompt_set(split, n, seed)]


def _video_prompts(recipe: MotionRecipe, split: str, n: int, seed: int) -> list[Prompt]:
    return [
        Prompt(text, metadata={"category": spec.category}, image=first)
        for text, spec, first in motion_tasks(split, n, recipe, seed)
    ]


def _of_pictures(recipe: PreferenceRecipe, generator: Generator, seed: int) -> dict[str, list[Preference]]:
    counts = {"train": recipe.train_prompts, "held_out": recipe.id_prompts, "unseen": recipe.ood_prompts}
    pools = {split: generate(generator, split, n, recipe.samples, seed) for split, n in counts.items()}
    tests = recipe.test_pairs
    return {
        "train": pair_up(pools["train"], "train", recipe.pairs, recipe, seed, exact=False, early="some"),
        "id": pair_up(pools["held_out"], "held_out", tests, recipe, seed, exact=True),
        "early": pair_up(pools["held_out"], "held_out", tests, recipe, seed, exact=True, early="all"),
        "ood": pair_up(pools["unseen"], "unseen", tests, recipe, seed, exact=True),
    }


def _of_videos(recipe: MotionRecipe, generator: Generator, seed: int) -> dict[str, list[Preference]]:
    drawn = {split: draw_pools(split, recipe, seed) for split in ("train", "held_out", "unseen")}
    pools = {split: video_samples(generator, own, split, recipe, seed) for split, own in drawn.items()}
    tests = recipe.test_pairs
    return {
        "train": pair_videos(pools["train"], "train", recipe.pairs, recipe, seed, exact=False, early="some"),
        "id": pair_videos(pools["held_out"], "held_out", tests, recipe, seed, exact=True),
        "early": pair_videos(pools["held_out"], "held_out", tests, recipe, seed, exact=True, early="all"),
        "ood": pair_videos(pools["unseen"], "unseen", tests, recipe, seed, exact=True),
    }


def _pictures_seen(pictures: Tensor, prompt: Prompt) -> Sequence[Seen]:
    return judge_pixels(pictures, [prompt.text] * len(pictures))


def _videos_seen(videos: Tensor, prompt: Prompt) -> Sequence[Seen]:
    return judge_videos(videos, [prompt] * len(videos))


PICTURES = task_of("t2i", PreferenceRecipe())
"""Pictures, for whoever gathers no preferences."""
