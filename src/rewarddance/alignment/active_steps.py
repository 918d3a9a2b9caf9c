"""ReFL's backward pass for any surrogate: through the velocities of its active steps, and the paths that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rewarddance.alignment.relay import LastSteps, Stage
from rewarddance.alignment.surrogate import Route, Term
from rewarddance.alignment.train import Trainable
from rewarddance.generators.sampling import for_sampling
from rewarddance.runtime.devices import on_device


class ActiveSteps(LastSteps):
    """A rollout whose picture, or prediction, a surrogate stands for: only its terms' steps get a gradient.

    forward and backward are as of `LastSteps`; forward begins at the route's first step. Each term's graph begins at a
    leaf, the rollout's own latent, so that what passes from one term to an earlier one is what the route says.
    """

    def __init__(self, generator: Trainable, conditions: Sequence[Any], parts: Sequence[Tensor], route: Route) -> None:
        super().__init__(generator, conditions, parts, route.first, len(route.terms))
        self.route = route
        self.weights: Tensor | None = None
        self.graphs: list[list[Stage]] = []

    def forward(self, x_t: Tensor) -> Tensor:
        """What the reward sees [B, ...], from x_t [B, ...] before the first term, both without graph."""
        terms, waits = {term.step: term for term in self.route.terms}, len(self.parts) == 1
        generator, last = self.generator, min(self.route.stop, self.generator.num_steps - 1)
        velocities, latents = dict[int, Tensor](), dict[int, Tensor]()
        parts = [on_device(rows, x_t.device) for rows in self.parts]
        for step in range(self.route.first, last + 1):
            move = generator.predict_x0 if step == self.route.stop else generator.advance
            latents[step] = x_t
            if step in terms:
                self.before.append(x_t)
                with torch.set_grad_enabled(waits):
                    stages = [self._velocity(terms[step], x_t[rows], part) for part, rows in enumerate(parts)]
                self.graphs += [stages] if waits else []
                with torch.no_grad():
                    predictions = torch.cat([stage.v.detach() for stage in stages])
                    x_t = move(x_t, predictions, step)
                velocities[step] = torch.cat([stage.after.detach() for stage in stages])
            else:
                x_t, velocities[step] = self._without_graph(x_t, step, move)
        if self.route.leaps:
            self.weights = self._sample_weights(latents | {generator.num_steps: x_t}, velocities)
        return x_t

    def replace_parts(
        self, parts: Sequence[Tensor], conditions: Sequence[Any], shares: Sequence[float], without: Tensor
    ) -> None:
        super().replace_parts(parts, conditions, shares, without)
        self.graphs = []
        if self.weights is not None:
            self.weights = self.weights.masked_fill(without.to(self.weights.device), 0)

    def backward(self, gradient: Tensor, weight: float | None) -> float | None:
        """As `LastSteps.backward`; the distance is the mean over the terms' steps."""
        distances: list[Tensor] = []
        if self.weights is not None:
            gradient = gradient * self.weights.to(gradient).view(-1, *[1] * (gradient.ndim - 1))
        for part, rows in enumerate(self.parts):
            rows = on_device(rows, gradient.device)
            to_go = gradient[rows]
            for number in reversed(range(len(self.route.terms))):
                term, kept = self.route.terms[number], self.graphs.pop() if self.graphs else None
                stage = kept[part] if kept else self._velocity(term, self.before[number][rows], part)
                far = None
                if weight is not None:
                    far = self._distance(stage.x_t, stage.v, term.step, part)
                    far = far * (self.shares[part] / len(self.route.terms))
                    distances.append(far.detach())
                of_u = (term.coefficient * to_go).to(stage.after)
                back = stage.backward(of_u, weight * far if weight and far is not None else None)
                if term.share:
                    assert back is not None, "the step does not depend on the latent before it"
                    to_go = to_go + term.share * sum(self.generator.scales(term.step)) * back
        return torch.stack(distances).sum().item() if distances else None

    def _velocity(self, term: Term, x_t: Tensor, part: int) -> Stage:
        """A leaf, the network's prediction there, and u = (x_t - (alpha + sigma) x_0) / sigma."""
        x_t = x_t.detach().requires_grad_(bool(term.share) and torch.is_grad_enabled())
        v = self.generator.predict(x_t, term.step, self.conditions[part])
        return Stage(x_t, v, self._of_prediction(x_t, v, term.step))

    def _of_prediction(self, x_t: Tensor, v: Tensor, step: int) -> Tensor:
        alpha, sigma = self.generator.scales(step)
        return (x_t - (alpha + sigma) * self.generator.predict_x0(x_t, v, step)) / sigma

    @torch.no_grad()
    def _without_graph(self, x_t: Tensor, step: int, move: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """The latent after a step that is no term, and the velocity there."""
        with for_sampling(self.generator):
            parts = [on_device(rows, x_t.device) for rows in self.parts]
            v = torch.cat([self.generator.predict(x_t[rows], step, self.conditions[k]) for k, rows in enumerate(parts)])
        return move(x_t, v, step), self._of_prediction(x_t, v, step)

    @torch.no_grad()
    def _sample_weights(self, latents: dict[int, Tensor], velocities: dict[int, Tensor]) -> Tensor:
        """1 / (d_j + d_0) [B], each distance the mean over a sample's values and at least the route's least."""
        distances = []
        for leap in self.route.leaps:
            start, end = (latents[step] / sum(self.generator.scales(step)) for step in (leap.start, leap.end))
            moved = sum((weight * velocities[step] for step, weight in leap.nodes), start=start)
            distances.append((moved - end).abs().flatten(1).mean(1).clamp_min(self.route.least_distance))
        return 1 / torch.stack(distances).sum(0)
