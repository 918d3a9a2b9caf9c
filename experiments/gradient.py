"""Where along the sampler a judge's gradient leads to better samples, by the oracle: minutes, before hours of ReFL.

At one step the one-step prediction x_0 is moved along the gradient that ReFL would take there, each sample's by the
same share of its length, and sampling goes on from it as it would have. Nothing is trained. A judge that orders samples
well and whose gradient makes none better will be hacked, and so will one that is followed where its gradient is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.tables import gained, markdown_table
from rewarddance.alignment.picture_loss import judge_copies
from rewarddance.alignment.refl_batch import judged_frames
from rewarddance.alignment.relay import decoder_vjp
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.quickstart import Run
from rewarddance.jobs.quickstart_figures import noise_seeds, scored
from rewarddance.protocols import RewardModel
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import PixelBatch, Pixels, Prompt, Question

STREAM = 21
"""Of the noises and prompts, which no other part of a run draws."""
BATCH_SIZE = 96
"""Samples that go through the generator together."""


class StepEffect(NamedTuple):
    """What moving x_0 at a step did to the finished samples, over prompts.

    noise: the step's sigma.
    oracle: change of the oracle's overall score.
    margin: change of the judge's margin over the same references.
    """

    step: int
    noise: float
    oracle: Interval
    margin: Interval


def probe_gradient(run: Run, prompts: int = 48, samples: int = 4, size: float = 0.3) -> list[StepEffect]:
    """Every step of the sampler but those without noise, on held-out prompts.

    run: a quickstart whose judge is trained. size: how far x_0 is moved, as a share of its length. Raises InputError
    where there is no judge yet.
    """
    if "judge" not in run.stages:
        raise InputError(f"the judge of {run.folder} is not trained yet.", "Finish the run (--resume) first.")
    generator, judge, seed = run.generator(), run.judge(), run.recipe.seed
    held_out = run.task.prompts("held_out", prompts, seed + STREAM)
    rows = [prompt for prompt in held_out for _ in range(samples)]
    seeds = [noise for row in noise_seeds(seed, prompts, samples, STREAM) for noise in row]
    path = [generator.init_noise(seeds)]
    for step in range(generator.num_steps):
        path.append(_at_step(generator, rows, path[-1], step, generator.advance))
    plain = _decode(generator, path[-1])
    references = [plain[i - i % samples + (i + 1) % samples] for i in range(len(rows))]

    def measure(pixels: PixelBatch) -> tuple[np.ndarray, np.ndarray]:
        """The oracle's overall scores and the judge's margins [P, N]."""
        scores = scored(pixels.unflatten(0, (prompts, samples)), held_out, run.task)
        margins = _margins(judge, rows, pixels, references).reshape(prompts, samples)
        return np.array([[score.overall for score in row] for row in scores]), margins

    before, effects = measure(plain), []
    steps = [step for step in range(generator.num_steps) if generator.scales(step).sigma > 0]
    with progress_bar("steps", len(steps)) as bar:
        for step in steps:
            x_0 = _at_step(generator, rows, path[step], step, generator.predict_x0)
            moved = x_0 + size * _direction(run, generator, judge, rows, x_0, references=references, step=step)
            x_t = step_from(generator, path[step], moved, step)
            for later in range(step + 1, generator.num_steps):
                x_t = _at_step(generator, rows, x_t, later, generator.advance)
            after = measure(_decode(generator, x_t))
            oracle, margin = (interval((new - old).mean(1)) for new, old in zip(after, before, strict=True))
            effects.append(StepEffect(step, float(generator.scales(step).sigma), oracle, margin))
            bar.advance()
    return effects


def as_markdown(effects: Sequence[StepEffect], num_steps: int, size: float) -> str:
    """The figures, with the range that `refl.grad_step_range` would have to be for the steps that gain."""
    lines = [[str(e.step), f"{e.noise:.2f}", gained(e.oracle), f"{e.margin.mean:+.2f}"] for e in effects]
    steps = [effect.step for effect in effects if effect.oracle.low > 0]
    text = (
        f"At a step the one-step prediction was moved along the judge's gradient by {size:g} of its length, and "
        "sampling went on. Oracle: change of the finished samples' overall score, points of 100, 95 % intervals over "
        "prompts, of one step each; margin: change of the judge's."
    )
    if not steps:
        end = "At no step is the interval above 0: on these prompts it is not seen that the gradient leads anywhere."
    else:
        low, high = (step / (num_steps - 1) for step in (steps[0], steps[-1]))
        numbers = ", ".join(map(str, steps))
        end = f"The interval is above 0 at {numbers}, which refl.grad_step_range=[{low:.2f},{high:.2f}] spans."
    return f"{text}\n\n{markdown_table(['', 'noise', 'oracle', 'margin'], lines)}\n{end}"


def _direction(
    run: Run,
    generator: PipelineGenerator,
    judge: RewardModel,
    rows: Sequence[Prompt],
    x_0: Tensor,
    *,
    references: Sequence[Pixels],
    step: int,
) -> Tensor:
    """Minus ReFL's gradient in x_0 [B, ...], as long as x_0 is; 0 where there is none."""
    recipe = run.recipe.refl
    rng = np.random.default_rng([run.recipe.seed, STREAM, step])
    decode, frames = judged_frames(generator, references, recipe.frames, rng)
    noise = torch.Generator().manual_seed(run.recipe.seed)

    def ask(pixels: PixelBatch) -> Any:
        judged = judge_copies(judge, rows, pixels, frames, recipe=recipe, noise_rng=noise)
        for fault in judged.faults.values():
            raise fault
        return judged

    _, gradient = decoder_vjp(decode, x_0, ask, BATCH_SIZE)
    length = _length(gradient)
    return torch.where(length > 0, -gradient / length.clamp_min(1e-30) * _length(x_0), torch.zeros_like(x_0))


def _length(x: Tensor) -> Tensor:
    """The Euclidean length of each of a batch, as broad as it."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def step_from(generator: PipelineGenerator, x_t: Tensor, x_0: Tensor, step: int) -> Tensor:
    """The latent after the step that predicts this x_0: the same noise, at the next level."""
    now, after = generator.scales(step), generator.scales(step + 1)
    return after.alpha * x_0 + after.sigma * (x_t - now.alpha * x_0) / now.sigma


@torch.no_grad()
def _at_step(
    generator: PipelineGenerator,
    rows: Sequence[Prompt],
    x_t: Tensor,
    step: int,
    function: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """`function` of each latent, the generator's prediction and the step, a part of the batch at a time."""
    parts = []
    for start in range(0, len(x_t), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        condition = generator.encode(rows[part])
        parts.append(function(x_t[part], generator.predict(x_t[part], step, condition), step))
    return torch.cat(parts)


@torch.no_grad()
def _decode(generator: PipelineGenerator, x_0: Tensor) -> PixelBatch:
    return torch.cat([generator.decode(part) for part in x_0.split(BATCH_SIZE)])


@torch.no_grad()
def _margins(
    judge: RewardModel, rows: Sequence[Prompt], pixels: PixelBatch, references: Sequence[Pixels]
) -> np.ndarray:
    questions = [
        Question(row, picture, reference) for row, picture, reference in zip(rows, pixels, references, strict=True)
    ]
    return judge(questions).margin.float().cpu().numpy()
