"""What a run on ShapeWorld is about: pictures, videos, videos that begin with a picture, or edits; each as one record.

A task supplies prompts, preferences and the oracle; the run itself does not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.protocols import Generator
from rewarddance.shapeworld.edits.oracle import judge_edits
from rewarddance.shapeworld.edits.preferences import (
    EditRecipe,
    draw_edit_pools,
    edit_prompts,
    generate_edits,
    pair_edits,
)
from rewarddance.shapeworld.motion.oracle import judge_videos
from rewarddance.shapeworld.motion.preferences import (
    MotionRecipe,
    draw_pools,
    generate_videos,
    pair_videos,
    video_prompts,
)
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.preferences import Pool, PreferenceRecipe, generate, pair_up
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Preference, Prompt

TaskRecipe = PreferenceRecipe | MotionRecipe | EditRecipe


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
    pools: what is voted on, by split, a generator's pictures among it.
    preferences: of pools, training pairs ("train", votes) and test sets in the oracle's own order ("id", "early",
    "ood").
    score: the oracle on pictures of one prompt.
    parts: the oracle's figures that alignment is made of, where they pull apart: following and keeping of edits.
    """

    name: str
    prompts: Callable[[str, int, int], list[Prompt]]
    pools: Callable[[Generator, int], dict[str, list[Pool]]]
    preferences: Callable[[dict[str, list[Pool]], int], dict[str, list[Preference]]]
    score: Callable[[Tensor, Prompt], Sequence[OracleScore]]
    parts: tuple[str, ...] = ()


class _World(NamedTuple):
    """What pictures, videos and edits each bring: see `WorldTask`.

    pools: a generator's pictures for the prompts of a split, and drawn ones; pair: the preferences about them.
    """

    prompts: Callable[[Any, str, int, int], list[Prompt]]
    pools: Callable[[Generator, str, Any, int], list[Pool]]
    pair: Callable[..., list[Preference]]
    score: Callable[[Tensor, list[Prompt]], Sequence[OracleScore]]
    parts: tuple[str, ...] = ()


def task_of(name: str, recipe: TaskRecipe) -> WorldTask:
    """A task by its name in `TASKS`, with the recipe of its preferences. Raises InputError where they differ."""
    task = "t2i" if isinstance(recipe, PreferenceRecipe) else recipe.task
    if task != name:
        raise InputError(f"the task is {name}, and its preferences are of {task}.", "Make them the same.")
    world = _WORLDS[type(recipe)]
    return WorldTask(
        name,
        partial(world.prompts, recipe),
        partial(_pools, world, recipe),
        partial(_preferences, world, recipe),
        lambda pixels, prompt: world.score(pixels, [prompt] * len(pixels)),
        world.parts,
    )


def parse_preferences(name: str, content: Any) -> TaskRecipe:
    """The part `preferences` of a recipe as the task's own. Raises pydantic's ValidationError for unknown keys."""
    kind = TASKS[name]
    if isinstance(content, dict) and kind is not PreferenceRecipe:
        content = {"task": name, **content}
    return kind.model_validate(content)


def _pools(world: _World, recipe: TaskRecipe, generator: Generator, seed: int) -> dict[str, list[Pool]]:
    return {split: world.pools(generator, split, recipe, seed) for split in recipe.prompt_counts()}


def _preferences(
    world: _World, recipe: TaskRecipe, pools: dict[str, list[Pool]], seed: int
) -> dict[str, list[Preference]]:
    def test_set(split: str, **options: Any) -> list[Preference]:
        return world.pair(pools[split], split, recipe.test_pairs, recipe, seed, exact=True, **options)

    return {
        "train": world.pair(pools["train"], "train", recipe.pairs, recipe, seed, exact=False, early="some"),
        "id": test_set("held_out"),
        "early": test_set("held_out", early="all"),
        "ood": test_set("unseen"),
    }


def _picture_prompts(recipe: PreferenceRecipe, split: str, n: int, seed: int) -> list[Prompt]:
    return [
        Prompt(text, metadata={"category": spec.category, "layout": spec.layout})
        for text, spec in prompt_set(split, n, seed)
    ]


def _pictures(generator: Generator, split: str, recipe: PreferenceRecipe, seed: int) -> list[Pool]:
    return generate(generator, split, recipe.prompt_counts()[split], recipe.samples, seed)


def _videos(generator: Generator, split: str, recipe: MotionRecipe, seed: int) -> list[Pool]:
    return generate_videos(generator, draw_pools(split, recipe, seed), split, recipe, seed)


def _edits(generator: Generator, split: str, recipe: EditRecipe, seed: int) -> list[Pool]:
    return generate_edits(generator, draw_edit_pools(split, recipe, seed), split, recipe, seed)


def _score_pictures(pixels: Tensor, prompts: list[Prompt]) -> Sequence[OracleScore]:
    return judge_pixels(pixels, [prompt.text for prompt in prompts])


_WORLDS: dict[type, _World] = {
    PreferenceRecipe: _World(_picture_prompts, _pictures, pair_up, _score_pictures),
    MotionRecipe: _World(video_prompts, _videos, pair_videos, judge_videos),
    EditRecipe: _World(
        lambda recipe, *asked: edit_prompts(*asked), _edits, pair_edits, judge_edits, ("following", "keeping")
    ),
}
TASKS: dict[str, type[TaskRecipe]] = {
    "t2i": PreferenceRecipe,
    "t2v": MotionRecipe,
    "i2v": MotionRecipe,
    "edit": EditRecipe,
}
"""The tasks by name, with the recipes of their preferences."""
PICTURES = task_of("t2i", PreferenceRecipe())
"""The task of pictures, where no preferences are gathered."""
