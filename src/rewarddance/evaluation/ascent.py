"""What a reward pays along its own gradient: projected sign steps within a ball, in pixels or in a decoder's latent.

Source: projected gradient descent of Madry et al. (1706.06083), here of a reward that is to rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.generators.decoder import Decoder
from rewarddance.protocols import RewardModel
from rewarddance.reward.pixel_gradient import pixel_gradient
from rewarddance.types import Question


class Slope(NamedTuple):
    """margin: of B points. gradients: d margin / d point, one each, up to a positive factor."""

    margin: Float[Tensor, " B"]
    gradients: tuple[Tensor, ...]


Ask = Callable[[Sequence[Tensor]], Slope]
"""The margins of B points and where they rise."""


def slope_of_pixels(reward: RewardModel, questions: Sequence[Question], candidates: Sequence[Tensor]) -> Slope:
    """The slope of each question's margin with these candidates in the place of its own.

    Raises RewardError where the reward gives no gradient, or one that is not finite.
    """
    moved = [replace(q, candidate=pixels) for q, pixels in zip(questions, candidates, strict=True)]
    gradient = pixel_gradient(reward, moved, lambda margin: margin.mean(), at_once=len(moved))
    return Slope(gradient.verdict.margin.cpu(), gradient.gradients)


def slope_of_latents(
    reward: RewardModel, decoder: Decoder, questions: Sequence[Question], latents: Sequence[Tensor]
) -> Slope:
    """The slope of each question's margin with its latent decoded. A decoder's graph is of one picture at a time."""
    with torch.no_grad():
        decoded = [decoder.decode(z).to(q.candidate.device) for q, z in zip(questions, latents, strict=True)]
    slope = slope_of_pixels(reward, questions, decoded)
    gradients = []
    for latent, gradient in zip(latents, slope.gradients, strict=True):
        with torch.enable_grad():
            leaf = latent.detach().requires_grad_()
            pixels = decoder.decode(leaf)
            gradients += torch.autograd.grad(pixels, leaf, gradient.to(pixels))
    return Slope(slope.margin, tuple(gradients))


class Climbed(NamedTuple):
    start: Float[Tensor, " B"]  # margins where it began
    best: list[Tensor]  # for each radius, in order, the greatest margins [B] that were met within it


def climb(
    ask: Ask,
    start: Sequence[Tensor],
    radii: Sequence[Sequence[float]],
    steps: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Climbed:
    """The greatest margins met within balls in the largest-coordinate distance around B points.

    radii: of each ball, from the smallest, one for each point. Each ball is searched from the best point of the one
    before, by `steps` steps along the gradient's sign, of 2.5 / steps of the radius, projected back into the ball and
    into `bounds`. So what is won is never less than 0, nor less than within a smaller ball.
    """
    points = [point.detach().clone() for point in start]
    slope = ask(points)
    margin, gradients = slope.margin.clone(), list(slope.gradients)
    start_margin, best = margin.clone(), []
    for radius in radii:
        moved, moved_gradients = list(points), list(gradients)
        for _ in range(steps):
            moved = [
                _projected(x + 2.5 / steps * r * g.sign(), x_0, r, bounds)
                for x, g, x_0, r in zip(moved, moved_gradients, start, radius, strict=True)
            ]
            slope = ask(moved)
            moved_gradients = list(slope.gradients)
            for i in (slope.margin > margin).nonzero().flatten().tolist():
                points[i], gradients[i], margin[i] = moved[i], moved_gradients[i], slope.margin[i]
        best.append(margin.clone())
    return Climbed(start_margin, best)


def _projected(point: Tensor, centre: Tensor, radius: float, bounds: tuple[float, float]) -> Tensor:
    return torch.minimum(torch.maximum(point, centre - radius), centre + radius).clamp(*bounds)
