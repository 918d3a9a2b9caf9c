"""Generators and judges for searches, whose answers are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tiny import GaussianGenerator
from torch import Tensor

from rewarddance.types import PixelBatch, Prompt, Question, Scales, Verdict


class GaussianDiffusion:
    """x_0 is N(mean, deviation^2) in every value; predicts E[eps | x_t] and takes DDIM steps, in any scales."""

    def __init__(self, mean: float, deviation: float, scales: Sequence[Scales]) -> None:
        self.mean, self.variance, self._scales = mean, deviation**2, [*scales, Scales(1.0, 0.0)]
        self.num_steps = len(scales)

    def scales(self, step: int) -> Scales:
        return self._scales[step]

    def encode(self, prompts: Sequence[Prompt]) -> None:
        return None

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        noise = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])
        alpha, sigma = self.scales(0)
        return noise * math.sqrt(alpha**2 + sigma**2)

    def predict(self, x_t: Tensor, step: int, condition: None) -> Tensor:
        alpha, sigma = self.scales(step)
        return sigma * (x_t - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        alpha, sigma = self.scales(step)
        return (x_t - sigma * prediction) / alpha

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        alpha, sigma = self.scales(step + 1)
        return alpha * self.predict_x0(x_t, prediction, step) + sigma * prediction

    def decode(self, x_0: Tensor) -> PixelBatch:
        return x_0.unsqueeze(1)


def preserving(steps: int) -> list[Scales]:
    """Variance preserving, as in DDPM and DDIM, from nearly pure noise."""
    angles = torch.linspace(0.49 * math.pi, 0, steps + 1)[:-1].tolist()
    return [Scales(math.cos(angle), math.sin(angle)) for angle in angles]


def exploding(steps: int) -> list[Scales]:
    """Variance exploding, as in Karras' and diffusers' Euler."""
    return [Scales(1.0, sigma) for sigma in torch.logspace(1.7, -2, steps).tolist()]


def generators(steps: int) -> dict[str, GaussianGenerator | GaussianDiffusion]:
    return {
        "flow": GaussianGenerator(2.0, 0.5, steps),
        "preserving": GaussianDiffusion(2.0, 0.5, preserving(steps)),
        "exploding": GaussianDiffusion(2.0, 0.5, exploding(steps)),
    }


class Bright:
    """Scores a picture's brightness, alone or against a reference; keeps every question, and gives a reason."""

    needs_reference = False

    def __init__(self, bias: float = 0.0) -> None:
        self.bias, self.questions = bias, []

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.questions += questions
        margins = [
            q.candidate.mean() - (q.reference.mean() - self.bias if q.reference is not None else 0) for q in questions
        ]
        return Verdict(torch.stack(margins) if margins else torch.zeros(0))

    def explain(self, questions: Sequence[Question]) -> Verdict:
        return Verdict(self(questions).margin, tuple(f"too dark {number}" for number in range(len(questions))))
