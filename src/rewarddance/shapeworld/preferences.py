"""Preferences about ShapeWorld pictures: the generator's own, its early predictions, and drawn ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field

from rewarddance.generators.sampling import predictions
from rewarddance.protocols import Generator
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.annotators import AnnotatorRecipe, vote
from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import Spec, near_miss, prompt_set, sample_scene, wrong_attribute
from rewarddance.types import Preference


class PreferenceRecipe(Recipe):
    """How many preferences are gathered.

    train_prompts: prompts of the training split. samples: generator pictures a prompt (each also gives one early
    prediction). drawn: drawn pictures a prompt. pairs: training pairs a prompt. id_prompts, ood_prompts, test_pairs:
    the two test sets' prompts and pairs a prompt; they are judged by the oracle without noise. least_difference: test
    pairs closer than this in the oracle's overall score have no order worth testing and are not drawn.
    """

    train_prompts: int = Field(default=300, ge=1)
    samples: int = Field(default=6, ge=2)
    drawn: int = Field(default=4, ge=0)
    pairs: int = Field(default=14, ge=1)
    id_prompts: int = Field(default=100, ge=1)
    ood_prompts: int = Field(default=100, ge=1)
    test_pairs: int = Field(default=6, ge=1)
    least_difference: float = Field(default=0.05, ge=0)
    annotators: AnnotatorRecipe = AnnotatorRecipe()


def gather(
    generator: Generator, split: str, n_prompts: int, pairs: int, recipe: PreferenceRecipe, seed: int, exact: bool
) -> list[Preference]:
    """`pairs` pairs for each of `n_prompts` prompts of a split, over pictures of every quality.

    In domain (splits train, held_out): the generator's pictures, its one-step predictions at random steps, and flat
    drawings, right, nearly right and spoiled. Out of domain (split unseen): pictures of another hand ("sketch"
    drawings, right, nearly right and spoiled) and the generator's pictures, on combinations no training pair shows.
    exact: shares are the oracle's own order (0 or 1), else the annotators' votes.
    """
    rng = np.random.default_rng([seed, 4, ("train", "held_out", "unseen").index(split)])
    prompts = prompt_set(split, n_prompts, seed)
    pools = _generated(generator, prompts, recipe.samples, seed, split, early=split != "unseen")
    style = "sketch" if split == "unseen" else "flat"
    preferences = []
    for (prompt, spec), pool in zip(prompts, pools, strict=True):
        n_drawn = recipe.samples * 2 if split == "unseen" else recipe.drawn
        pool = pool + [(draw(spec, style, rng), style) for _ in range(n_drawn)]
        scores = [score_picture(picture, spec).overall for picture, _ in pool]
        for _ in range(pairs):
            preferences.append(_pair(prompt, pool, scores, recipe, rng, exact))
    return [preference for preference in preferences if preference is not None]


def _pair(
    prompt: str,
    pool: Sequence[tuple[np.ndarray, str]],
    scores: Sequence[float],
    recipe: PreferenceRecipe,
    rng: np.random.Generator,
    exact: bool,
) -> Preference | None:
    """Two different pictures of the pool and their share; None where an exact pair with an order was not found."""
    for _ in range(50):
        first, second = rng.choice(len(pool), size=2, replace=False)
        difference = scores[second] - scores[first]
        if exact and abs(difference) < recipe.least_difference:
            continue
        a, b = pool[first][0], pool[second][0]
        share = float(difference > 0) if exact else vote(a, b, difference, recipe.annotators, rng)
        pixels = to_pixels([a, b])
        return Preference(prompt, pixels[0], pixels[1], share, f"{pool[first][1]}/{pool[second][1]}")
    return None


def draw(spec: Spec, style: str, rng: np.random.Generator) -> np.ndarray:
    """A drawing for a prompt: right (a third), nearly right, or with a wrong attribute; half of all are spoiled."""
    kind = rng.random()
    if kind < 0.35:
        scene = sample_scene(spec, rng)
    elif kind < 0.7:
        scene = sample_scene(near_miss(spec, rng), rng)
    else:
        scene = wrong_attribute(sample_scene(spec, rng), rng, int(rng.integers(1, 3)))
    picture = render(scene, style, rng)
    if rng.random() < 0.5:
        picture = spoil(picture, DEFECTS[int(rng.integers(len(DEFECTS)))], float(rng.uniform(0.1, 0.9)), rng)
    return picture


def _generated(
    generator: Generator, prompts: Sequence[tuple[str, Spec]], samples: int, seed: int, split: str, early: bool
) -> list[list[tuple[np.ndarray, str]]]:
    """For each prompt, `samples` finished pictures and, with `early`, as many one-step predictions of random steps."""
    streams = {"train": 5, "held_out": 6, "unseen": 7}
    rng = np.random.default_rng([seed, streams[split]])
    pools: list[list[tuple[np.ndarray, str]]] = []
    at_once = max(1, 96 // samples)
    with progress_bar(f"pictures ({split.replace('_', ' ')})", len(prompts)) as bar:
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            texts = [text for text, _ in part for _ in range(samples)]
            stops = rng.integers(0, generator.num_steps, size=len(texts)).tolist()
            seeds = rng.integers(2**31, size=len(texts)).tolist()
            early_pixels, final = predictions(generator, texts, seeds, stops, batch_size=96)
            for k in range(len(part)):
                own = slice(k * samples, (k + 1) * samples)
                pool = [(picture, "sample") for picture in _arrays(final[own])]
                pool += [(picture, "prediction") for picture in _arrays(early_pixels[own])] if early else []
                pools.append(pool)
            bar.advance(len(part))
    return pools


def _arrays(pixels: torch.Tensor) -> list[np.ndarray]:
    return list(pixels[:, 0].permute(0, 2, 3, 1).numpy())
