"""Early pruning: trajectories whose predicted x_0 is poor are dropped before they are fully denoised."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from rewarddance.runtime.config import Recipe
from rewarddance.runtime.devices import on_device
from rewarddance.search.batch import Batch
from rewarddance.search.budget import Cost


class Pruning(Recipe):
    """at: shares of the steps after which the predicted x_0 are judged. keep: the share that is kept each time.

    trajectories: how many are begun together, at most; None: as many as budget and batch allow. Defaults are ours.
    """

    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.25, 0.5), min_length=1)
    keep: float = Field(default=0.5, gt=0, lt=1)
    trajectories: int | None = Field(default=None, ge=2)


def stages(recipe: Pruning, steps: int) -> list[int]:
    """The steps before which trajectories are pruned, from 1 to S - 1."""
    return sorted({min(max(1, round(share * steps)), steps - 1) for share in recipe.at} - {0})


def search_pruning(batch: Batch, recipe: Pruning) -> None:
    """Begin many trajectories, keep the best by predicted x_0 at each stage, finish them; repeat until all is spent.

    The judged x_0 comes from the prediction that the next step needs anyway: pruning costs questions, no evaluations.
    """
    stops = stages(recipe, batch.steps)

    def cost(count: int) -> Cost:
        evaluations, questions, before = 0, 0, 0
        for stop in stops:
            kept = math.ceil(recipe.keep * count)
            evaluations += count * (stop + 1 - before)
            questions += batch.judging.question_count(count, 0) if kept < count else 0
            before, count = stop + 1, kept
        evaluations += count * (batch.steps - before)
        return Cost(evaluations, questions + batch.judging.question_count(count, batch.judging.seen))

    batch.check_width("trajectories", recipe.trajectories or 0)
    while count := batch.max_affordable(cost, recipe.trajectories):
        batch.rounds += any(math.ceil(recipe.keep * count) < count for _ in stops)
        seeds = batch.next_seeds(count)
        x_t, before = batch.init_noise(seeds), 0
        for stop in stops:
            x_t = batch.denoise(x_t, before, stop)
            prediction = batch.predict(x_t, stop)
            kept = math.ceil(recipe.keep * count)
            if kept < count:
                x_0 = batch.generator.predict_x0(x_t, prediction, stop)
                predicted = batch.candidates(x_0, [[{}] * count for _ in seeds])
                chosen = [sorted(indices) for indices in batch.best_indices(predicted, kept)]
                rows = on_device(batch.rows(chosen, count), x_t.device)
                x_t, prediction, count = x_t[rows], prediction[rows], kept
                seeds = [[row[i] for i in indices] for row, indices in zip(seeds, chosen, strict=True)]
            x_t, before = batch.generator.advance(x_t, prediction, stop), stop + 1
        x_t = batch.denoise(x_t, before, batch.steps)
        batch.add(batch.candidates(x_t, [[{"noise": seed} for seed in row] for row in seeds]))
