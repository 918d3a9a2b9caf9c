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
    generate_videos,
    pair_videos,
    video_prompts,
)
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Preference, Prompt

TASKS = ("t2i", "t2v", "i2v")


@runtime_checkable
class OracleScore(Protocol):
    """The oracle's figures of one picture or video, in [0, 1]; `overall` orders those of one prompt."""

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

    prompts: from a split, a number n and a seed; each has its category in its metadata, and its picture, if any.
    preferences: training pairs ("train", votes) and test sets in the oracle's own order ("id", "early", "ood"), a
    generator's pictures among them.
    score: the oracle on pictures of one prompt.
    """

    name: str
    prompts: Callable[[str, int, int], list[Prompt]]
    preferences: Callable[[Generator, int], dict[str, list[Preference]]]
    score: Callable[[Tensor, Prompt], Sequence[OracleScore]]


def task_of(name: str, recipe: PreferenceRecipe | MotionRecipe) -> WorldTask:
    """A task by its name in `TASKS`, with the recipe of its preferences."""
    if isinstance(recipe, PreferenceRecipe):
        return WorldTask(
            name,
            _picture_prompts,
            partial(_preferences, recipe),
            lambda pictures, prompt: judge_pixels(pictures, [prompt.text] * len(pictures)),
        )
    if recipe.task != name:
        raise InputError(f"the task is {name}, and its preferences are of {recipe.task}.", "Make them the same.")
    return WorldTask(
        name,
        partial(video_prompts, recipe),
        partial(_preferences, recipe),
        lambda videos, prompt: judge_videos(videos, [prompt] * len(videos)),
    )


def parse_preferences(name: str, content: Any) -> PreferenceRecipe | MotionRecipe:
    """The part `preferences` of a recipe as the task's own. Raises pydantic's ValidationError for unknown keys."""
    if name == "t2i":
        return PreferenceRecipe.model_validate(content)
    return MotionRecipe.model_validate({"task": name, **content} if isinstance(content, dict) else content)


def _picture_prompts(split: str, n: int, seed: int) -> list[Prompt]:
    return [
        Prompt(text, metadata={"category": spec.category, "layout": spec.layout})
        for text, spec in prompt_set(split, n, seed)
    ]


def _preferences(
    recipe: PreferenceRecipe | MotionRecipe, generator: Generator, seed: int
) -> dict[str, list[Preference]]:
    pools = {}
    for split, n in recipe.prompt_counts().items():
        if isinstance(recipe, PreferenceRecipe):
            pools[split] = generate(generator, split, n, recipe.samples, seed)
        else:
            pools[split] = generate_videos(generator, draw_pools(split, recipe, seed), split, recipe, seed)
    pair: Callable[..., list[Preference]] = pair_up if isinstance(recipe, PreferenceRecipe) else pair_videos

    def test_set(split: str, **options: Any) -> list[Preference]:
        return pair(pools[split], split, recipe.test_pairs, recipe, seed, exact=True, **options)

    return {
        "train": pair(pools["train"], "train", recipe.pairs, recipe, seed, exact=False, early="some"),
        "id": test_set("held_out"),
        "early": test_set("held_out", early="all"),
        "ood": test_set("unseen"),
    }


PICTURES = task_of("t2i", PreferenceRecipe())
"""The task of pictures, where no preferences are gathered."""
