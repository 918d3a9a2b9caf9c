"""Preferences about films of ShapeWorld: a generator's own, its early predictions, and drawn ones; from text, or from a
picture and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from rewarddance.generators.sampling import predictions
from rewarddance.protocols import Generator
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.annotators import AnnotatorRecipe, voted
from rewarddance.shapeworld.motion.films import FILM_DEFECTS, Film, film_of, film_pixels, render_film, spoil_film
from rewarddance.shapeworld.motion.oracle import FilmScore, score_film
from rewarddance.shapeworld.motion.scripts import (
    FPS,
    FRAMES,
    MAX_FRAMES,
    MIN_FRAMES,
    Script,
    changed_identity,
    first_of,
    sample_script,
)
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_near_miss, motion_prompts, sample_motion
from rewarddance.shapeworld.preferences import Early
from rewarddance.shapeworld.render import to_pixels
from rewarddance.shapeworld.scenes import SPLITS
from rewarddance.types import Pixels, Preference

_MOVING = ("flicker", "freeze", "reverse")
"""The defects that only a film can have; half of the spoiled films have one of them."""


class MotionRecipe(Recipe):
    """How many preferences about films are gathered.

    task: "t2v", or "i2v", where both films of a pair were made from one picture, the pair's condition. frames, fps: of
    every film. train_prompts, id_prompts, ood_prompts: prompts of a split. drawn: drawn films a prompt. samples: a
    generator's films a prompt, where there is one (each also gives one early prediction). overlaid: training films a
    prompt that show what two of these show, and as both were foreseen. pairs: training pairs a prompt; test_pairs: of
    the test sets, which are judged by the oracle without noise. least_difference: test pairs closer than this in the
    oracle's overall score have no order worth testing and are not drawn.
    """

    task: Literal["t2v", "i2v"] = "t2v"
    frames: int = Field(default=FRAMES, ge=MIN_FRAMES, le=MAX_FRAMES)
    fps: float = Field(default=FPS, gt=0)
    train_prompts: int = Field(default=300, ge=1)
    drawn: int = Field(default=8, ge=2)
    samples: int = Field(default=6, ge=2)
    overlaid: int = Field(default=2, ge=0)
    pairs: int = Field(default=14, ge=1)
    id_prompts: int = Field(default=100, ge=1)
    ood_prompts: int = Field(default=100, ge=1)
    test_pairs: int = Field(default=6, ge=1)
    least_difference: float = Field(default=0.05, ge=0)
    annotators: AnnotatorRecipe = AnnotatorRecipe()


class ShownFilm(NamedTuple):
    """A film, where it comes from, and the oracle's verdict on it."""

    film: Film
    source: str
    seen: FilmScore


class FilmPool(NamedTuple):
    """The films that were made for one prompt, and the picture [H, W, 3] that they were made from, or None.

    shown: drawn ones. final, early: a generator's, and a one-step prediction of each, which has its score: nobody can
    vote on a blur.
    """

    prompt: str
    spec: MotionSpec
    condition: np.ndarray | None
    shown: list[ShownFilm]
    final: tuple[ShownFilm, ...] = ()
    early: tuple[ShownFilm, ...] = ()


def draw_pools(split: str, recipe: MotionRecipe, seed: int) -> list[FilmPool]:
    """Drawn films of every quality for the prompts of a split, in the order of `motion_prompts`.

    In domain (train, held_out) they are flat; out of domain (unseen) they show combinations and actions that no
    training pair shows, in another hand ("sketch").
    """
    counts = {"train": recipe.train_prompts, "held_out": recipe.id_prompts, "unseen": recipe.ood_prompts}
    prompts = motion_prompts(split, counts.get(split, 1), seed, recipe.task)
    rng = np.random.default_rng([seed, 12, SPLITS.index(split)])
    style = "sketch" if split == "unseen" else "flat"
    pools = []
    for prompt, spec in prompts:
        hand = int(rng.integers(2**31))
        right = _certain(spec, recipe.frames, rng)
        condition = render_film(right, recipe.fps, style, hand).first if recipe.task == "i2v" else None
        shown = []
        for _ in range(recipe.drawn):
            film = draw_film(spec, right, recipe, style, hand, rng)
            shown.append(ShownFilm(film, style, score_film(film.frames, spec, condition)))
        pools.append(FilmPool(prompt, spec, condition, shown))
    return pools


def draw_film(
    spec: MotionSpec, right: Script, recipe: MotionRecipe, style: str, hand: int, rng: np.random.Generator
) -> Film:
    """A drawn film for a prompt: right, with another action, another object or another identity, or with too much.

    right: a script that shows it; for "i2v" most films begin as it does, the others with another picture. hand: the
    seed of the style. Half of all are spoiled.
    """
    begins = recipe.task == "i2v" and rng.random() < 0.85
    kind = rng.random()
    if kind < 0.3:
        script = _like(spec, right, begins, rng)
    elif kind < 0.6:
        script = _like(motion_near_miss(spec, rng, looks=not begins), right, begins, rng)
    elif kind < 0.75:
        script = changed_identity(_like(spec, right, begins, rng), float(rng.uniform(0.2, 1)), rng)
    elif kind < 0.85:
        other = sample_script(sample_motion(rng), recipe.frames, rng, beside=(right := _like(spec, right, begins, rng)))
        script = right + (other or ())
    else:
        script = _like(sample_motion(rng), right, False, rng)
    film = render_film(script, recipe.fps, style, hand)
    if rng.random() < 0.5:
        defects = _MOVING if rng.random() < 0.5 else tuple(name for name in FILM_DEFECTS if name not in _MOVING)
        defect = defects[int(rng.integers(len(defects)))]
        film = spoil_film(film, defect, float(rng.uniform(0.1, 0.9)), int(rng.integers(2**31)))
    return film


def _like(spec: MotionSpec, right: Script, begins: bool, rng: np.random.Generator) -> Script:
    """A script for `spec` as long as `right`; where it `begins` as that does, from the same objects if they have room.

    Where they have none, the film of the same length begins somewhere else, as a generator's may.
    """
    frames = len(right[0])
    if begins:
        looks = {first_of(path).shape: first_of(path) for path in right}
        things = [looks[role.noun.shape] for role in spec.roles]
        script = sample_script(spec, frames, rng, things)
        if script:
            return script
    return _certain(spec, frames, rng)


def _certain(spec: MotionSpec, frames: int, rng: np.random.Generator) -> Script:
    script = sample_script(spec, frames, rng)
    assert script is not None, "without given objects there is always a script, or an error"
    return script


def film_samples(
    generator: Generator, pools: Sequence[FilmPool], split: str, recipe: MotionRecipe, seed: int
) -> list[FilmPool]:
    """The pools with `recipe.samples` films of a generator each, and their one-step predictions at random steps."""
    rng = np.random.default_rng([seed, 15, SPLITS.index(split)])
    n, found = recipe.samples, []
    at_once = max(1, 48 // n)
    with progress_bar(f"films ({split.replace('_', ' ')})", len(pools)) as bar:
        for start in range(0, len(pools), at_once):
            part = pools[start : start + at_once]
            texts = [pool.prompt for pool in part for _ in range(n)]
            stops = rng.integers(0, generator.num_steps, size=len(texts)).tolist()
            seeds = rng.integers(2**31, size=len(texts)).tolist()
            given = [condition_pixels(pool.condition) for pool in part]
            each = [one for one in given for _ in range(n)]
            early, final = predictions(generator, texts, seeds, stops, batch_size=48, conditions=each)
            for k, pool in enumerate(part):
                own = range(k * n, (k + 1) * n)
                finished, foreseen = ([film_of(films[i], recipe.fps) for i in own] for films in (final, early))
                seen = [score_film(film.frames, pool.spec, pool.condition) for film in finished]
                whole, half = (
                    [ShownFilm(film, source, score) for film, score in zip(films, seen, strict=True)]
                    for films, source in ((finished, "sample"), (foreseen, "prediction"))
                )
                found.append(pool._replace(final=tuple(whole), early=tuple(half)))
            bar.advance(len(part))
    return found


def condition_pixels(condition: np.ndarray | None) -> Pixels | None:
    """A picture [H, W, 3] as pixels [1, 3, H, W]."""
    return None if condition is None else to_pixels([condition])[0]


def pair_films(
    pools: Sequence[FilmPool],
    split: str,
    pairs: int,
    recipe: MotionRecipe,
    seed: int,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs of different films for each pool, with their rates, and with the condition where there is one.

    exact: shares are the oracle's own order (0 or 1) and pairs without one are left out; else the annotators' votes;
    where those are a crowd each vote is a preference of its own, a pair's one after the other.
    early: whether "some" pairs have a generator's one-step predictions (and overlaid films) among theirs, or "all" have
    them in place of its finished films. A pair's source names where both come from.
    """
    rng = np.random.default_rng([seed, 13, SPLITS.index(split)])
    found = []
    for pool in pools:
        shown = [*pool.shown, *(pool.final if early != "all" else ()), *(pool.early if early != "none" else ())]
        if early == "some" and pool.final:
            for _ in range(recipe.overlaid):
                shown += overlaid_films(pool, pools[int(rng.integers(len(pools)))], rng)
        found += [one for _ in range(pairs) for one in _pair(pool, shown, recipe, rng, exact)]
    return found


def overlaid_films(own: FilmPool, other: FilmPool, rng: np.random.Generator) -> list[ShownFilm]:
    """All that a film of the prompt and one of another (or the same) prompt show, in one; and as both were foreseen.

    A generator that is rewarded for missing objects learns to draw too many: without these no judge would know.
    """
    source = own if rng.random() < 0.5 else other
    i, j = int(rng.integers(len(own.final))), int(rng.integers(len(source.final)))
    rate = own.final[i].film.fps
    both, foreseen = (
        Film(np.maximum(a[i].film.frames, b[j].film.frames), rate)
        for a, b in ((own.final, source.final), (own.early, source.early))
    )
    seen = score_film(both.frames, own.spec, own.condition)
    return [ShownFilm(both, "overlaid", seen), ShownFilm(foreseen, "overlaid prediction", seen)]


def _pair(
    pool: FilmPool, shown: Sequence[ShownFilm], recipe: MotionRecipe, rng: np.random.Generator, exact: bool
) -> list[Preference]:
    """Two different films of a prompt with their share, or with each vote of a crowd; none where there are no two, or
    none with an order."""
    condition = condition_pixels(pool.condition)
    for _ in range(50):
        first, second = (shown[i] for i in rng.choice(len(shown), size=2, replace=False))
        if np.array_equal(first.film.frames, second.film.frames):  # from one picture the same film can be drawn twice
            continue
        difference = second.seen.overall - first.seen.overall
        if exact and abs(difference) < recipe.least_difference:
            continue
        a, b = first.film, second.film
        votes = [(float(difference > 0), "")]
        if not exact:
            votes = voted(a.frames, b.frames, difference, recipe.annotators, rng)
        films = film_pixels(a), film_pixels(b)
        source = f"{first.source}/{second.source}"
        return [
            Preference(pool.prompt, *films, share, source, condition=condition, annotator=annotator, fps=(a.fps, b.fps))
            for share, annotator in votes
        ]
    return []


def motion_preferences(recipe: MotionRecipe, split: str, seed: int) -> list[Preference]:
    """Pairs of drawn films of a split: votes for training, the oracle's own order for the two test sets."""
    exact = split != "train"
    pools = draw_pools(split, recipe, seed)
    return pair_films(pools, split, recipe.test_pairs if exact else recipe.pairs, recipe, seed, exact)


def motion_tasks(split: str, n: int, recipe: MotionRecipe, seed: int) -> list[tuple[str, MotionSpec, Pixels | None]]:
    """`n` prompts of a split as `motion_prompts` gives them, each with the picture that its films are to begin with."""
    found = []
    for number, (text, spec) in enumerate(motion_prompts(split, n, seed, recipe.task)):
        rng = np.random.default_rng([seed, 14, SPLITS.index(split), number])
        first = None
        if recipe.task == "i2v":
            script, hand = _certain(spec, recipe.frames, rng), int(rng.integers(2**31))
            first = condition_pixels(render_film(script, recipe.fps, "flat", hand).first)
        found.append((text, spec, first))
    return found
