"""Preferences about ShapeWorld pictures: a generator's own, its early predictions, and drawn ones.

What they share with preferences about videos is here, too: a picture is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor

from rewarddance.generators.sampling import predictions
from rewarddance.protocols import Generator
from rewarddance.runtime.config import MOST, Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.annotators import AnnotatorRecipe, cast_votes
from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.reasons import reason
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import (
    SPLITS,
    Spec,
    near_miss,
    pick,
    prompt_set,
    random_scene,
    sample_scene,
    wrong_attribute,
)
from rewarddance.types import Preference, Prompt


class PairRecipe(Recipe):
    """How many preferences are made, of pictures or of videos.

    train_prompts, id_prompts, ood_prompts: prompts of the training split and of the test sets in and out of domain.
    samples: a generator's pictures for each prompt; each also gives one early prediction.
    overlaid: training pictures for each prompt that show two of the generator's in one; each with its early prediction.
    drawn: drawn pictures for each prompt.
    pairs: training pairs for each prompt.
    test_pairs: pairs for each prompt of the test sets, which are judged by the oracle without noise.
    least_difference: test pairs closer than this in the oracle's score are not drawn, for their order means little.
    """

    train_prompts: int = Field(default=300, ge=1, le=MOST)
    samples: int = Field(default=6, ge=2, le=MOST)
    overlaid: int = Field(default=3, ge=0, le=MOST)
    drawn: int = Field(default=4, ge=0, le=MOST)
    pairs: int = Field(default=14, ge=1, le=MOST)
    id_prompts: int = Field(default=100, ge=1, le=MOST)
    ood_prompts: int = Field(default=100, ge=1, le=MOST)
    test_pairs: int = Field(default=6, ge=1, le=MOST)
    least_difference: float = Field(default=0.05, ge=0)
    annotators: AnnotatorRecipe = AnnotatorRecipe()

    def prompt_counts(self) -> dict[str, int]:
        """How many prompts each split has."""
        return dict(zip(SPLITS, (self.train_prompts, self.id_prompts, self.ood_prompts), strict=True))


class PreferenceRecipe(PairRecipe):
    """How many preferences about pictures are made.

    reasons: give each pair the oracle's reasons, one for each order, where the votes agree with the oracle.
    """

    reasons: bool = False


class Candidate(NamedTuple):
    """A picture or a video that may stand in a pair.

    frames: [T, H, W, 3] in [0, 1]; one of a picture.
    source: where it comes from.
    score: the oracle's. A prediction has that of the finished picture of its own noise: nobody can vote on a blur
    (after the step-aware preferences of SPO, arXiv 2406.04314).
    """

    frames: np.ndarray
    source: str
    score: Any


class Pool(NamedTuple):
    """What was made for one prompt.

    prompt: with the picture that its videos are to begin with, if any.
    spec: what the prompt asks for.
    judge: the oracle on frames [T, H, W, 3], under this prompt.
    final: a generator's finished pictures.
    early: a one-step prediction of each, at a random step.
    drawn: drawn pictures or videos.
    """

    prompt: Prompt
    spec: Any
    judge: Callable[[np.ndarray], Any]
    final: Sequence[Candidate] = ()
    early: Sequence[Candidate] = ()
    drawn: Sequence[Candidate] = ()


Early = Literal["none", "some", "all"]


def picture_pool(text: str, spec: Spec) -> Pool:
    """An empty pool of pictures."""
    return Pool(Prompt(text), spec, lambda frames: score_picture(frames[0], spec))


def pair_up(
    pools: Sequence[Pool],
    split: str,
    pairs: int,
    recipe: PreferenceRecipe,
    seed: int,
    *,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs for each of the prompts of a split, over pictures of every quality.

    In domain (splits train, held_out): the generator's pictures, and flat drawings, right, nearly right and spoiled.
    Out of domain (split unseen): pictures in another style ("sketch" drawings, right, nearly right and spoiled) and
    the generator's pictures, on combinations that no training prompt asks for.

    exact: shares are the oracle's own order (0 or 1), else the annotators' votes; of a crowd each vote is a preference
    of its own, those of a pair one after the other.
    early: see `generated_candidates`.
    """
    rng = np.random.default_rng([seed, 4, SPLITS.index(split)])
    style, n_drawn = ("sketch", recipe.samples * 2) if split == "unseen" else ("flat", recipe.drawn)
    preferences: list[Preference] = []
    for pool in pools:
        candidates = generated_candidates(pool, pools, early, recipe.overlaid, rng)
        for frames in [draw_picture(pool.spec, style, rng)[None] for _ in range(n_drawn)]:
            candidates.append(Candidate(frames, style, pool.judge(frames)))
        for _ in range(pairs):
            preferences += draw_pair(pool, candidates, recipe, rng, exact, reasons=recipe.reasons)
    return preferences


def pair_drawn_and_generated(
    pools: Sequence[Pool],
    pairs: int,
    recipe: PairRecipe,
    rng: np.random.Generator,
    *,
    exact: bool,
    early: Early,
    fps: float | None = None,
    ordered_by: str = "overall",
) -> list[Preference]:
    """`pairs` pairs for each pool, of what was drawn for it and what a generator made (see `draw_pair`)."""
    preferences: list[Preference] = []
    for pool in pools:
        candidates = [*pool.drawn, *generated_candidates(pool, pools, early, recipe.overlaid, rng)]
        for _ in range(pairs):
            preferences += draw_pair(pool, candidates, recipe, rng, exact, fps=fps, ordered_by=ordered_by)
    return preferences


def generated_candidates(
    pool: Pool, pools: Sequence[Pool], early: Early, n_overlaid: int, rng: np.random.Generator
) -> list[Candidate]:
    """The candidates of a pool that a generator made.

    early: with "some", one-step predictions and `n_overlaid` overlaid pictures are among them; with "all", all are
    predictions.
    """
    candidates = [*(pool.final if early != "all" else ()), *(pool.early if early != "none" else ())]
    if early == "some" and pool.final:
        for _ in range(n_overlaid):
            candidates += overlay(pool, pools[int(rng.integers(len(pools)))], rng)
    return candidates


def overlay(pool: Pool, other: Pool, rng: np.random.Generator) -> list[Candidate]:
    """A picture of the pool laid over one of another (or the same) pool, and their predictions laid over each other.

    A generator that is rewarded for missing objects learns to draw too many: without these a judge would not notice.
    """
    source = pool if rng.random() < 0.5 else other
    i, j = int(rng.integers(len(pool.final))), int(rng.integers(len(source.final)))
    final = np.maximum(pool.final[i].frames, source.final[j].frames)
    early = np.maximum(pool.early[i].frames, source.early[j].frames)
    score = pool.judge(final)
    return [Candidate(final, "overlaid", score), Candidate(early, "overlaid prediction", score)]


def draw_pair(
    pool: Pool,
    candidates: Sequence[Candidate],
    recipe: PairRecipe,
    rng: np.random.Generator,
    exact: bool,
    *,
    reasons: bool = False,
    fps: float | None = None,
    ordered_by: str = "overall",
) -> list[Preference]:
    """The preferences about two random candidates: one, or one for each vote of a crowd.

    None where no pair with an order, or of two different videos, was found. reasons: with the oracle's reasons, where
    the votes agree with it. fps: of both, where they are videos. ordered_by: the oracle's score that is voted on.
    """
    for _ in range(50):
        first, second = (candidates[i] for i in rng.choice(len(candidates), size=2, replace=False))
        difference = getattr(second.score, ordered_by) - getattr(first.score, ordered_by)
        if difference == 0 and np.array_equal(first.frames, second.frames):  # as two edits of one picture can be
            continue
        if exact and abs(difference) < recipe.least_difference:
            continue
        votes = [(float(difference > 0), "")]
        if not exact:
            votes = cast_votes(first.frames, second.frames, difference, recipe.annotators, rng)
        pixels = [to_pixels(candidate.frames)[:, 0] for candidate in (first, second)]
        preferences = []
        for share, annotator in votes:
            agrees = reasons and (share - 0.5) * difference > 0  # a wrong vote has no true reason
            preferences.append(
                Preference(
                    pool.prompt,
                    pixels[0],
                    pixels[1],
                    share,
                    f"{first.source}/{second.source}",
                    reason=reason(second.score, first.score) if agrees else "",
                    reason_swapped=reason(first.score, second.score) if agrees else "",
                    annotator=annotator,
                    fps=(fps, fps),
                )
            )
        return preferences
    return []


def draw_picture(spec: Spec, style: str, rng: np.random.Generator) -> np.ndarray:
    """A drawing for a prompt: right, nearly right, with wrong attributes, or with too much. Half of all are spoiled."""
    kind = rng.random()
    if kind < 0.3:
        scene = sample_scene(spec, rng)
    elif kind < 0.6:
        scene = sample_scene(near_miss(spec, rng), rng)
    elif kind < 0.8:
        scene = wrong_attribute(sample_scene(spec, rng), rng, int(rng.integers(1, 3)))
    else:
        scene = sample_scene(spec, rng) + random_scene(rng)[:2]
    picture = render(scene, style, rng)
    if rng.random() < 0.5:
        picture = spoil(picture, pick(DEFECTS, rng), float(rng.uniform(0.1, 0.9)), rng)
    return picture


def generate(generator: Generator, split: str, n_prompts: int, samples: int, seed: int) -> list[Pool]:
    """`samples` finished pictures for each of `n_prompts` prompts of a split, and their one-step predictions."""
    pools = [picture_pool(text, spec) for text, spec in prompt_set(split, n_prompts, seed)]
    rng = np.random.default_rng([seed, 5 + SPLITS.index(split)])
    return fill_pools(pools, generator, samples, rng, name=f"pictures ({split.replace('_', ' ')})", batch_size=96)


def fill_pools(
    pools: Sequence[Pool],
    generator: Generator,
    samples: int,
    rng: np.random.Generator,
    *,
    name: str,
    batch_size: int,
) -> list[Pool]:
    """The pools, each with `samples` finished pictures of a generator, and their predictions at random steps."""
    filled: list[Pool] = []
    prompts_at_once = max(1, batch_size // samples)
    with progress_bar(name, len(pools)) as bar:
        for start in range(0, len(pools), prompts_at_once):
            batch = pools[start : start + prompts_at_once]
            prompts = [pool.prompt for pool in batch for _ in range(samples)]
            stops = rng.integers(0, generator.num_steps, size=len(prompts)).tolist()
            seeds = rng.integers(2**31, size=len(prompts)).tolist()
            early, final = map(_frames, predictions(generator, prompts, seeds, stops, batch_size=batch_size))
            for k, pool in enumerate(batch):
                scores = {row: pool.judge(final[row]) for row in range(k * samples, (k + 1) * samples)}
                finished = [Candidate(final[row], "sample", score) for row, score in scores.items()]
                predicted = [Candidate(early[row], "prediction", score) for row, score in scores.items()]
                filled.append(pool._replace(final=finished, early=predicted))
            bar.advance(len(batch))
    return filled


def _frames(pixels: Tensor) -> np.ndarray:
    """Pixels [B, T, 3, H, W] as frames [B, T, H, W, 3]."""
    return pixels.float().cpu().permute(0, 1, 3, 4, 2).numpy()
