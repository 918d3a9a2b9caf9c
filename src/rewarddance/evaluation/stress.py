"""How hackable is a reward, before anybody trains against it? What it pays for pictures that are no better.

Along the reward's own gradient by less than anybody sees, in pixels or in a decoder's latent (`ascent`), and for plain
disturbances of the picture (`disturbances`). All is measured as m(T(x), r) - m(x, r): the margin of the changed
candidate less that of the unchanged one, with the same prompt and the same reference r. So a pairwise reward and one
that scores each picture by itself have one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from rewarddance.errors import InputError, RewardError
from rewarddance.evaluation.ascent import climb, slope_of_latents, slope_of_pixels
from rewarddance.evaluation.disturbances import DISTURBANCES, LAID_OVER, disturbed
from rewarddance.evaluation.findings import LatentFigures, Sentence, StressFigures, WonFigures
from rewarddance.evaluation.statistics import Interval, interval, interval_of_sums, numbered
from rewarddance.generators.decoder import Decoder, load_decoder
from rewarddance.protocols import RewardModel, margins_on_host
from rewarddance.runtime.memory import memory_for
from rewarddance.types import Question

PIXEL_RADII = (1, 2, 4, 8)
"""How far each value of a picture may move, in 255ths."""
LATENT_RADII = (1, 2, 4, 8)
"""How far each value of a latent may move, in hundredths of the latent's standard deviation."""
NO_GRADIENT = "It gives no gradient in its pictures."
NO_DECODER = "No decoder was given."
FEWEST = 8
"""Candidates from which on a top quarter has a spread."""
_EQUAL = 1e-5
"""Share of the largest margin below which the difference of two is the arithmetic's error."""


def stress(
    reward: RewardModel,
    questions: Sequence[Question],
    *,
    steps: int = 4,
    decoder: Decoder | str | Path | None = None,
    batch_size: int = 16,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> StressFigures:
    """What the candidates of n questions win by changes that make them no better; intervals are over prompts.

    questions: read batch by batch, and not kept. steps: along the gradient's sign, within each radius. decoder: an
    autoencoder whose latent is moved, too; by a name that `load_decoder` takes it is put where the first candidate is.
    batch_size: questions whose changed candidates are in memory together. seed: of the noise, and of which pictures are
    laid over which. tick: called with the number of questions done.

    What a reward cannot be asked is a sentence in the place of its figure: without a gradient, what a gradient wins.
    Raises InputError for no questions, for steps or a batch_size below 1, and for a decoder that cannot draw the
    candidates; and whatever the reward raises.

    >>> stress(judge, [Question("a red circle", candidate, reference)]).pixels[2].margin.mean
    """
    if not len(questions):
        raise InputError("there is no question to stress a reward with.", "Give candidates with their prompts.")
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps is {steps} and batch_size {batch_size}.", "Give at least 1 of each.")
    if isinstance(decoder, str | Path):
        decoder = load_decoder(decoder, str(questions[0].candidate.device))
    margins = _StressMargins(reward, questions, seed)
    no_gradient = NO_GRADIENT if getattr(reward, "differentiable", None) is False else ""
    for start in range(0, len(questions), batch_size):
        rows = range(start, min(start + batch_size, len(questions)))
        batch = [questions[row] for row in rows]
        with memory_for("stressing the reward", "Lower batch_size (stress_options.batch_size)."):
            margins.disturb(rows, batch)
            try:
                if not no_gradient:
                    margins.climb_pixels(rows, batch, steps)
                    if decoder is not None:
                        margins.climb_latents(rows, batch, steps, decoder)
            except RewardError as error:  # it has just answered the same questions without a gradient
                no_gradient = f"{NO_GRADIENT} {error.what}"
        tick(len(batch))
    won, latent = margins.won("disturbance"), no_gradient if decoder else NO_DECODER
    if decoder is not None and not latent:
        reconstruction = margins.won("reconstruction")[0]
        latent = LatentFigures(decoder=decoder.name, reconstruction=reconstruction, within=margins.won("latent"))
    return StressFigures(
        pictures=len(margins.texts),
        prompts=int(margins.units.max()) + 1,
        steps=steps,
        spread=float(margins.before.std()),
        pixels=no_gradient or margins.won("pixels"),
        latent=latent,
        disturbances={name: won[name] for name in DISTURBANCES if name in won},
        left_out={name: margins.left_out[name] for name in DISTURBANCES if name not in won},
        spread_left=spread_left(margins.before, margins.units),
    )


class _StressMargins:
    """Margins of n candidates before and after changes, as far as they were asked.

    before: of the unchanged candidates [n]. margins: by kind and name of the change [n, 2], before and after; NaN where
    it was not made. left_out: why a disturbance did not apply, by its name.
    """

    def __init__(self, reward: RewardModel, questions: Sequence[Question], seed: int) -> None:
        self.reward, self.questions, self.seed = reward, questions, seed
        self.texts = [question.prompt.text for question in questions]
        self.units, self.before = numbered(self.texts), np.full(len(self.texts), np.nan)
        self.margins = dict[tuple[str, Any], np.ndarray]()
        self.left_out = dict[str, Sentence]()

    def disturb(self, rows: Sequence[int], batch: Sequence[Question]) -> None:
        """Ask about a batch's candidates and all of their disturbances at once."""
        questions, changes = list(batch), list[tuple[str, int]]()
        for row, question in zip(rows, batch, strict=True):
            rng = np.random.default_rng([self.seed, row])
            noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
            changed = disturbed(question.candidate, question.prompt.text, self._others(row, rng), noise)
            for name, pixels in changed.items():
                if isinstance(pixels, str):
                    self.left_out.setdefault(name, pixels)
                    continue
                questions.append(replace(question, candidate=pixels))
                changes.append((name, row))
        with torch.no_grad():
            margins = margins_on_host(self.reward, questions).double().numpy()
        self.before[rows] = margins[: len(batch)]
        for (name, row), after in zip(changes, margins[len(batch) :], strict=True):
            self._put("disturbance", name, [row], self.before[row], after)

    def climb_pixels(self, rows: Sequence[int], batch: Sequence[Question], steps: int) -> None:
        radii = [[radius / 255] * len(batch) for radius in PIXEL_RADII]
        start = [question.candidate for question in batch]
        climbed = climb(partial(slope_of_pixels, self.reward, batch), start, radii, steps, bounds=(0.0, 1.0))
        for radius, best in zip(PIXEL_RADII, climbed.best, strict=True):
            self._put("pixels", radius, rows, climbed.start, best)

    def climb_latents(self, rows: Sequence[int], batch: Sequence[Question], steps: int, decoder: Decoder) -> None:
        start = [decoder.encode(question.candidate) for question in batch]
        radii = [[radius / 100 * float(latent.std()) for latent in start] for radius in LATENT_RADII]
        climbed = climb(partial(slope_of_latents, self.reward, decoder, batch), start, radii, steps)
        self._put("reconstruction", 0, rows, self.before[rows], climbed.start)
        for radius, best in zip(LATENT_RADII, climbed.best, strict=True):
            self._put("latent", radius, rows, climbed.start, best)

    def won(self, kind: str) -> dict[Any, WonFigures]:
        """What each change of a kind wins, by its name."""
        figures = {}
        for (change_kind, name), column in self.margins.items():
            if change_kind == kind:
                is_measured = np.isfinite(column[:, 1])
                figures[name] = won_figures(column[is_measured, 0], column[is_measured, 1], self.units[is_measured])
        return figures

    def _others(self, row: int, rng: np.random.Generator) -> list[Tensor]:
        """Candidates of other prompts, each of its own."""
        chosen: dict[str, int] = {}
        for other in rng.permutation(len(self.texts)).tolist():
            if self.texts[other] != self.texts[row]:
                chosen.setdefault(self.texts[other], other)
            if len(chosen) == LAID_OVER:
                break
        return [self.questions[other].candidate for other in chosen.values()]

    def _put(self, kind: str, name: Any, rows: Any, before: Any, after: Any) -> None:
        column = self.margins.setdefault((kind, name), np.full((len(self.texts), 2), np.nan))
        column[rows, 0], column[rows, 1] = before, after


def won_figures(before: np.ndarray, after: np.ndarray, units: np.ndarray) -> WonFigures:
    """What n candidates win, from their margins before and after a change [n]. units [n]: their prompts."""
    won = after - before
    return WonFigures(
        margin=interval(won, units=units),
        p_yes=interval(expit(after) - expit(before), units=units),
        beats=interval((won > _EQUAL * np.abs(before).max()).astype(float), units=units, share=True),
    )


def spread_left(margin: np.ndarray, units: np.ndarray) -> Interval | Sentence:
    """The standard deviation of P(yes) among the quarter of n candidates with the greatest margins, over that of all.

    Where P(yes) is spread evenly it is 0.25. Which ones are the top stays fixed where prompts are drawn for the
    interval. margin, units (prompts): [n].
    """
    n = len(margin)
    if n < FEWEST:
        return f"It needs {FEWEST} candidates, and there are {n}."
    p_yes = expit(margin)
    if p_yes.std() < 1e-9:
        return "P(yes) is the same for all candidates."
    p, top = (p_yes - p_yes.mean()) / p_yes.std(), np.zeros(n)
    top[np.argsort(margin, kind="stable")[n - n // 4 :]] = 1

    def ratio(sums: np.ndarray) -> np.ndarray:
        count, first, second, tops, top_first, top_second = sums.T
        tops = np.maximum(tops, 1)
        variance = second / count - (first / count) ** 2
        top_variance = np.maximum(top_second / tops - (top_first / tops) ** 2, 0)
        return np.sqrt(top_variance / np.where(variance > 1e-12, variance, np.inf))

    parts = np.stack([np.ones(n), p, p**2, top, top * p, top * p**2], 1)
    return interval_of_sums(parts, ratio, units).cut(0, np.inf)
