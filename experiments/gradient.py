"""Where along the sampler a judge's gradient leads to better samples, by the oracle: minutes, before hours of ReFL.

At one step the one-step prediction x_0 is moved along the gradient that ReFL would take there, each sample's by the
same share of its length, and sampling goes on from it as it would have. Nothing is trained. A judge that orders samples
well and whose gradient makes none better will be hacked, and so will one that is followed where its gradient is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.alignment.refl import judge_copies, judged_frames
from rewarddance.alignment.relay import decoder_vjp
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.quickstart import Run
from rewarddance.jobs.quickstart_figures import noise_seeds, scored
from rewarddance.protocols import RewardModel
from rewarddance.report.formatting import Cell, Table, as_markdown, figure_text
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import PixelBatch, Pixels, Prompt, Question

STREAM = 21
"""Of the noises and prompts that are looked at, which no other part of a run draws."""
AT_ONCE = 96
"""Samples that go through the generator together."""


class StepEffect(NamedTuple):
    """What moving x_0 at a step did to the finished samples, over prompts. noise: the step's sigma.

    oracle: change of the oracle's overall score; margin: of the judge's margin over the same references.
    """

    step: int
    noise: float
    oracle: Interval
    margin: Interval


def probe_gradient(run: Run, prompts: int = 48, samples: int = 4, size: float = 0.3) -> list[StepEffect]:
    """Every step of the sampler but those without noise, on held-out prompts.

    run: one of the main job whose judge is trained. size: how far x_0 is moved, as a share of its length. Raises
    InputError where there is no judge yet.
    """
    if "judge" not in run.stages:
        raise InputError(f"the judge of {run.folder} is not trained yet.", "Finish the run (--resume) first.")
    generator, judge, recipe = run.generator(), run.judge(), run.recipe
    asked = run.task.prompts("held_out", prompts, recipe.seed + STREAM)
    rows = [one for one in asked for _ in range(samples)]
    seeds = [seed for row in noise_seeds(recipe.seed, prompts, samples, STREAM) for seed in row]
    path = [generator.init_noise(seeds)]
    for step in range(generator.num_steps):
        path.append(_each(generator, rows, path[-1], step, _advanced))
    plain = _decoded(generator, path[-1])
    references = [plain[i - i % samples + (i + 1) % samples] for i in range(len(rows))]

    def seen(pixels: PixelBatch) -> tuple[np.ndarray, np.ndarray]:
        groups = scored(pixels.unflatten(0, (prompts, samples)), asked, run.task)
        return np.array([[s.overall for s in row] for row in groups]), _margins(judge, rows, pixels, references)

    before, found = seen(plain), []
    steps = [step for step in range(generator.num_steps) if generator.scales(step).sigma > 0]
    with progress_bar("steps", len(steps)) as bar:
        for step in steps:
            x_0 = _each(generator, rows, path[step], step, _predicted)
            moved = x_0 + size * _along(run, generator, judge, rows, x_0, references, step)
            x_t = _stepped(generator, path[step], moved, step)
            for later in range(step + 1, generator.num_steps):
                x_t = _each(generator, rows, x_t, later, _advanced)
            oracle, margin = (now - then for now, then in zip(seen(_decoded(generator, x_t)), before, strict=True))
            noise = float(generator.scales(step).sigma)
            found.append(
                StepEffect(step, noise, interval(oracle.mean(1)), interval(margin.reshape(prompts, -1).mean(1)))
            )
            bar.advance()
    return found


def told(found: Sequence[StepEffect], num_steps: int, size: float) -> str:
    """The figures as Markdown, with the range that `refl.grad_step_range` would have to be for the steps that gain."""
    rows: list[list[Cell]] = [
        [str(one.step), f"{one.noise:.2f}", figure_text(one.oracle, sign="+"), f"{one.margin.mean:+.2f}"]
        for one in found
    ]
    table = as_markdown(Table(("noise", "oracle", "margin"), rows))
    gains = [one.step for one in found if one.oracle.low > 0]
    said = (
        f"At a step the one-step prediction was moved along the judge's gradient by {size:g} of its length, and "
        "sampling went on. Oracle: change of the finished samples' overall score, points of 100, 95 % intervals over "
        "prompts, of one step each; margin: change of the judge's."
    )
    if not gains:
        end = "At no step is the interval above 0: on these prompts it is not seen that the gradient leads anywhere."
    else:
        low, high = (step / (num_steps - 1) for step in (gains[0], gains[-1]))
        steps = ", ".join(map(str, gains))
        end = f"The interval is above 0 at {steps}, which refl.grad_step_range=[{low:.2f},{high:.2f}] spans."
    return f"{said}\n\n{table}\n\n{end}"


def _along(
    run: Run,
    generator: PipelineGenerator,
    judge: RewardModel,
    rows: Sequence[Prompt],
    x_0: Tensor,
    references: Sequence[Pixels],
    step: int,
) -> Tensor:
    """Minus ReFL's gradient in x_0 [B, ...], as long as x_0 is; 0 where there is none."""
    recipe = run.recipe.refl
    draw = np.random.default_rng([run.recipe.seed, STREAM, step])
    decode, shown = judged_frames(generator, references, recipe.frames, draw)
    noise = torch.Generator().manual_seed(run.recipe.seed)

    def ask(pixels: PixelBatch) -> Any:
        return judge_copies(judge, rows, pixels, shown, recipe=recipe, noise_rng=noise)

    _, gradient = decoder_vjp(decode, x_0, ask, AT_ONCE)
    length = _length(gradient)
    return torch.where(length > 0, -gradient / length.clamp_min(1e-30) * _length(x_0), torch.zeros_like(x_0))


def _length(x: Tensor) -> Tensor:
    """The Euclidean length of each of a batch, as broad as it."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def _advanced(generator: PipelineGenerator, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
    return generator.advance(x_t, prediction, step)


def _predicted(generator: PipelineGenerator, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
    return generator.predict_x0(x_t, prediction, step)


def _stepped(generator: PipelineGenerator, x_t: Tensor, x_0: Tensor, step: int) -> Tensor:
    """The latent after the step that predicts this x_0: the same noise, at the next level."""
    now, after = generator.scales(step), generator.scales(step + 1)
    return after.alpha * x_0 + after.sigma * (x_t - now.alpha * x_0) / now.sigma


@torch.no_grad()
def _each(
    generator: PipelineGenerator,
    rows: Sequence[Prompt],
    x_t: Tensor,
    step: int,
    what: Any,
) -> Tensor:
    """`what` becomes of each latent at a step, a part of the batch at a time."""
    parts = []
    for start in range(0, len(x_t), AT_ONCE):
        here = slice(start, start + AT_ONCE)
        condition = generator.encode(rows[here])
        parts.append(what(generator, x_t[here], generator.predict(x_t[here], step, condition), step))
    return torch.cat(parts)


@torch.no_grad()
def _decoded(generator: PipelineGenerator, x_0: Tensor) -> PixelBatch:
    return torch.cat([generator.decode(part) for part in x_0.split(AT_ONCE)])


@torch.no_grad()
def _margins(
    judge: RewardModel, rows: Sequence[Prompt], pixels: PixelBatch, references: Sequence[Pixels]
) -> Float[np.ndarray, " B"]:
    asked = [
        Question(row, picture, reference) for row, picture, reference in zip(rows, pixels, references, strict=True)
    ]
    return judge(asked).margin.float().cpu().numpy()
