"""Preferences about ShapeWorld pictures: the generator's own, its early predictions, and drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from rewarddance.generators.sampling import predictions
from rewarddance.protocols import Generator
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.annotators import AnnotatorRecipe, voted
from rewarddance.shapeworld.oracle import Score, score_picture
from rewarddance.shapeworld.reasons import reason
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import Spec, near_miss, prompt_set, random_scene, sample_scene, wrong_attribute
from rewarddance.types import Preference


class PreferenceRecipe(Recipe):
    """How many preferences are gather_full_tensors.

    train_prompts: prompts of the training split. samples: generator pictures a prompt (each also gives one early
    prediction). overlaid: training pictures a prompt that show what two of the generator's show (each with its early
    prediction too). drawn: drawn pictures a prompt. pairs: training pairs a prompt. id_prompts, ood_prompts,
    test_pairs: the test sets' prompts and pairs a prompt; they are judged by the oracle without noise.
    least_difference: test pairs closer than this in the oracle's overall score have no order worth testing and are not
    drawn. reasons: give each pair the oracle's reasons, one an order, where the votes agree with the oracle.
    """

    train_prompts: int = Field(default=300, ge=1)
    samples: int = Field(default=6, ge=2)
    overlaid: int = Field(default=3, ge=0)
    drawn: int = Field(default=4, ge=0)
    pairs: int = Field(default=14, ge=1)
    id_prompts: int = Field(default=100, ge=1)
    ood_prompts: int = Field(default=100, ge=1)
    test_pairs: int = Field(default=6, ge=1)
    least_difference: float = Field(default=0.05, ge=0)
    reasons: bool = False
    annotators: AnnotatorRecipe = AnnotatorRecipe()


class Shown(NamedTuple):
    """A picture [H, W, 3] in [0, 1], where it comes from, and the oracle's verdict on what it stands for."""

    picture: np.ndarray
    source: str
    seen: Score

    @property
    def score(self) -> float:
        return self.seen.overall


class Pool(NamedTuple):
    """The generator's finished pictures of a prompt, and a one-step prediction of each at a random step.

    Nobody can vote on a blur: a prediction stands for the finished picture of its own noise, with that one's score
    (after the step-aware preferences of SPO, arXiv 2406.04314).
    """

    prompt: str
    spec: Spec
    final: list[Shown]
    early: list[Shown]


Early = Literal["none", "some", "all"]


def pair_up(
    pools: Sequence[Pool],
    split: str,
    pairs: int,
    recipe: PreferenceRecipe,
    seed: int,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs for each of the prompts of a split, over pictures of every quality.

    In domain (splits train, held_out): the generator's pictures, and flat drawings, right, nearly right and spoiled.
    Out of domain (split unseen): pictures of another hand ("sketch" drawings, right, nearly right and spoiled) and
    the generator's pictures, on combinations no training pair shows.

    early: whether "some" pairs have one-step predictions (and overlaid pictures) among theirs, or "all" have one in
    place of a finished picture of the generator. exact: shares are the oracle's own order (0 or 1), else the
    annotators' votes; where those are a crowd each vote is a preference of its own, a pair's one after the other.
    """
    rng = np.random.default_rng([seed, 4, ("train", "held_out", "unseen").index(split)])
    style = "sketch" if split == "unseen" else "flat"
    preferences: list[Preference] = []
    for own in pools:
        shown = [*(own.final if early != "all" else ()), *(own.early if early != "none" else ())]
        if early == "some":
            for _ in range(recipe.overlaid):
                shown += overlaid(own, pools[int(rng.integers(len(pools)))], rng)
        drawn = [draw(own.spec, style, rng) for _ in range(recipe.samples * 2 if split == "unseen" else recipe.drawn)]
        shown += [Shown(picture, style, score_picture(picture, own.spec)) for picture in drawn]
        for _ in range(pairs):
            preferences += _pair(own.prompt, shown, recipe, rng, exact)
    return preferences


def _pair(
    prompt: str, pool: Sequence[Shown], recipe: PreferenceRecipe, rng: np.random.Generator, exact: bool
) -> list[Preference]:
    """Two different pictures of the pool with their share, or with each vote of a crowd; none where an exact pair with
    an order was not found."""
    for _ in range(50):
        first, second = (pool[i] for i in rng.choice(len(pool), size=2, replace=False))
        difference = second.score - first.score
        if exact and abs(difference) < recipe.least_difference:
            continue
        a, b = first.picture, second.picture
        votes = [(float(difference > 0), "")] if exact else voted(a, b, difference, recipe.annotators, rng)
        shown_a, shown_b = to_pixels([a, b])
        found = []
        for share, annotator in votes:
            told = recipe.reasons and (share - 0.5) * difference > 0  # nobody can give a reason for a slip
            found.append(
                Preference(
                    prompt,
                    shown_a,
                    shown_b,
                    share,
                    f"{first.source}/{second.source}",
                    reason=reason(second.seen, first.seen) if told else "",
                    reason_swapped=reason(first.seen, second.seen) if told else "",
                    annotator=annotator,
                )
            )
        return found
    return []


def overlaid(own: Pool, other: Pool, rng: np.random.Generator) -> list[Shown]:
    """All that a picture of the prompt and one of another (or the same) prompt show, in one; and as both foresaw it.

    A generator that is rewarded for missing objects learns to draw too many: without these no judge would know.
    """
    source = own if rng.random() < 0.5 else other
    i, j = int(rng.integers(len(own.final))), int(rng.integers(len(source.final)))
    final = np.maximum(own.final[i].picture, source.final[j].picture)
    early = np.maximum(own.early[i].picture, source.early[j].picture)
    seen = score_picture(final, own.spec)
    return [Shown(final, "overlaid", seen), Shown(early, "overlaid prediction", seen)]


def draw(spec: Spec, style: str, rng: np.random.Generator) -> np.ndarray:
    """A drawing for a prompt: right, nearly right, with a wrong attribute or with too much; half of all are spoiled."""
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
        picture = spoil(picture, DEFECTS[int(rng.integers(len(DEFECTS)))], float(rng.uniform(0.1, 0.9)), rng)
    return picture


def generate(generator: Generator, split: str, n_prompts: int, samples: int, seed: int) -> list[Pool]:
    """`samples` finished pictures for each of `n_prompts` prompts of a split, and their one-step predictions."""
    prompts = prompt_set(split, n_prompts, seed)
    streams = {"train": 5, "held_out": 6, "unseen": 7}
    rng = np.random.default_rng([seed, streams[split]])
    pools: list[Pool] = []
    at_once = max(1, 96 // samples)
    with progress_bar(f"pictures ({split.replace('_', ' ')})", len(prompts)) as bar:
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            texts = [text for text, _ in part for _ in range(samples)]
            stops = rng.integers(0, generator.num_steps, size=len(texts)).tolist()
            seeds = rng.integers(2**31, size=len(texts)).tolist()
            early_pixels, final_pixels = predictions(generator, texts, seeds, stops, batch_size=96)
            early, final = _arrays(early_pixels), _arrays(final_pixels)
            for k, (prompt, spec) in enumerate(part):
                own = slice(k * samples, (k + 1) * samples)
                seen = [score_picture(picture, spec) for picture in final[own]]
                finished = list(map(Shown, final[own], ["sample"] * samples, seen))
                foreseen = list(map(Shown, early[own], ["prediction"] * samples, seen))
                pools.append(Pool(prompt, spec, finished, foreseen))
            bar.advance(len(part))
    return pools


def _arrays(pixels: torch.Tensor) -> list[np.ndarray]:
    return list(pixels[:, 0].permute(0, 2, 3, 1).numpy())
