"""Preferences about edits of ShapeWorld: drawn ones of every kind, and an editor's own with its early predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from rewarddance.protocols import Generator
from rewarddance.runtime.config import MOST
from rewarddance.shapeworld.edits.oracle import EditScore, score_edit
from rewarddance.shapeworld.edits.scenes import edited_scene, source_scene, target_of
from rewarddance.shapeworld.edits.specs import EditSpec, edit_near_miss, edit_specs
from rewarddance.shapeworld.preferences import (
    Candidate,
    Early,
    PairRecipe,
    Pool,
    fill_pools,
    pair_drawn_and_generated,
)
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import SPLITS, Scene, pick, random_scene, wrong_attribute
from rewarddance.types import Preference, Prompt

EDITED = ("right", "wrong", "untouched", "over-edited", "repainted")
"""What a drawn edit may be. wrong: something else was done to the target, or the same to another object. over-edited:
right, and another object changed, vanished or came. repainted: the right object in another picture."""
_SHARES = (0.3, 0.25, 0.1, 0.25, 0.1)
_SPOILED = 0.35


class EditRecipe(PairRecipe):
    """How many preferences about edits are made. Both edits of a pair are of one source, the prompt's image.

    ordered_by: the oracle's score that annotators vote on and that orders test pairs: overall, or by itself how much of
        the change was made (following), or of all else was kept (keeping).
    """

    task: Literal["edit"] = "edit"
    ordered_by: Literal["overall", "following", "keeping"] = "overall"
    drawn: int = Field(default=8, ge=2, le=MOST)
    overlaid: int = Field(default=2, ge=0, le=MOST)


class _Asked(NamedTuple):
    """An instruction with its source and what it leads to; style_seed draws all pictures of a source alike."""

    text: str
    spec: EditSpec
    source: Scene
    edited: Scene
    style_seed: int


def _asked(split: str, n: int, seed: int) -> list[_Asked]:
    """`n` instructions of a split with their sources: number i is the same for every n."""
    asked = []
    for number, (text, spec) in enumerate(edit_specs(split, n, seed)):
        rng = np.random.default_rng([seed, 22, SPLITS.index(split), number])
        asked.append(_Asked(text, spec, *source_scene(spec, rng), int(rng.integers(2**31))))
    return asked


def _picture(scene: Scene, style: str, style_seed: int) -> np.ndarray:
    return render(scene, style, np.random.default_rng(style_seed))


def edit_prompts(split: str, n: int, seed: int) -> list[Prompt]:
    """`n` instructions of a split, each kind in turn, with their sources as images and their kinds as categories."""
    return [
        Prompt(
            task.text,
            metadata={"category": task.spec.kind},
            image=to_pixels([_picture(task.source, "flat", task.style_seed)])[0],
        )
        for task in _asked(split, n, seed)
    ]


def draw_edit_pools(split: str, recipe: EditRecipe, seed: int) -> list[Pool]:
    """Drawn edits of every quality for the instructions of a split, in the order of `edit_prompts`.

    In domain (train, held_out) they are flat; out of domain (unseen) source and edits are in another style ("sketch")
    and the instructions need combinations that no training pair asks for.
    """
    style = "sketch" if split == "unseen" else "flat"
    rng = np.random.default_rng([seed, 23, SPLITS.index(split)])
    pools = []
    for task in _asked(split, recipe.prompt_counts()[split], seed):
        source = _picture(task.source, style, task.style_seed)
        judge = partial(_judge, before=task.source, spec=task.spec)
        drawn = []
        for _ in range(recipe.drawn):
            frames = draw_edit(task.spec, task.source, task.edited, style, task.style_seed, rng)[None]
            drawn.append(Candidate(frames, style, judge(frames)))
        pools.append(Pool(Prompt(task.text, image=to_pixels([source])[0]), task.spec, judge, drawn=drawn))
    return pools


def _judge(frames: np.ndarray, before: Scene, spec: EditSpec) -> EditScore:
    return score_edit(frames[0], before, spec)


def draw_edit(
    spec: EditSpec, source: Scene, edited: Scene, style: str, style_seed: int, rng: np.random.Generator
) -> np.ndarray:
    """A drawn edit [H, W, 3] of a source: one of EDITED. A third of all are spoiled.

    edited: what the instruction leads to; style_seed: of the source's picture, so that what stays looks the same.
    """
    scene = drawn_scene(pick_kind(rng), spec, source, edited, rng)
    picture = _picture(scene, style, style_seed)
    if rng.random() < _SPOILED:
        picture = spoil(picture, pick(DEFECTS, rng), float(rng.uniform(0.1, 0.9)), rng)
    return picture


def pick_kind(rng: np.random.Generator) -> str:
    """One of EDITED, each as often as drawn edits are."""
    return str(rng.choice(EDITED, p=_SHARES))


def drawn_scene(kind: str, spec: EditSpec, source: Scene, edited: Scene, rng: np.random.Generator) -> Scene:
    """The scene of a drawn edit of one kind of EDITED."""
    if kind == "right":
        return edited
    if kind == "untouched":
        return source
    if kind == "wrong":
        for _ in range(20):
            changed = edited_scene(edit_near_miss(spec, rng), source, rng)
            if changed is not None and set(changed) != set(source):
                return changed
        return wrong_attribute(source, rng)
    target = target_of(spec, source)
    new = [thing for thing in edited if thing not in source]
    if kind == "repainted":
        return (*random_scene(rng)[:2], *new)
    kept = [thing for thing in edited if thing in source and thing is not target]
    what = rng.random()
    if kept and what < 0.5:
        return (*new, *wrong_attribute(tuple(kept), rng))
    if kept and what < 0.8:
        dropped = int(rng.integers(len(kept)))
        return (*new, *kept[:dropped], *kept[dropped + 1 :])
    return (*edited, *random_scene(rng)[:1])


def generate_edits(
    generator: Generator, pools: Sequence[Pool], split: str, recipe: EditRecipe, seed: int
) -> list[Pool]:
    """The pools with `recipe.samples` edits of an editor each, and their one-step predictions at random steps."""
    rng = np.random.default_rng([seed, 24, SPLITS.index(split)])
    return fill_pools(pools, generator, recipe.samples, rng, name=f"edits ({split.replace('_', ' ')})", batch_size=48)


def pair_edits(
    pools: Sequence[Pool],
    split: str,
    pairs: int,
    recipe: EditRecipe,
    seed: int,
    *,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs of edits for each pool, drawn and generated.

    exact: shares are the oracle's own order (0 or 1), and pairs without one are left out; else the annotators' votes;
    of a crowd each vote is a preference of its own, those of a pair one after the other.
    early: see `generated_candidates`.
    """
    rng = np.random.default_rng([seed, 25, SPLITS.index(split)])
    return pair_drawn_and_generated(pools, pairs, recipe, rng, exact=exact, early=early, ordered_by=recipe.ordered_by)
