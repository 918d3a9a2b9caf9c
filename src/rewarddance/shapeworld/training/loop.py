"""The loop that every bundled base is trained in: AdamW, a schedule, clipped gradients, progress lines, snapshots."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.runtime.devices import multiplies_bfloat16

Schedule = Callable[[int, int], float]
"""From a step, counted from 1, and the number of steps to the learning rate."""
LOG_EVERY = 50


def cosine(rate: float, warm_up: int) -> Schedule:
    """A linear warm-up to `rate` over `warm_up` steps, times a cosine over all steps that ends at 0.02."""

    def rate_at(step: int, steps: int) -> float:
        return rate * min(1.0, step / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step / steps))))

    return rate_at


def snapshots_of(folder: Path, save: Callable[[Path], Any]) -> Callable[[float], None]:
    """A function that `save`s a snapshot beside `folder`, named by the share of steps done."""
    return lambda share: save(folder.with_name(f"{folder.name}-snapshots") / f"{share:.2f}")


def half_layers() -> torch.autocast:
    """bfloat16 in the layers where the CPU multiplies it; weights and losses are float32 everywhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu")))


class TrainingFile:
    """The file from which a training that was killed goes on.

    plan: what says which training it is.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path, self.plan = path, plan

    def save(self, **state: Any) -> None:
        """Write tensors, figures and what is made of them; a kill meanwhile leaves the state before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"plan": self.plan, **state}, part := self.path.with_suffix(".part"))
        os.replace(part, self.path)

    def saved(self) -> dict[str, Any] | None:
        """What was saved last, None where nothing was. Raises InputError where it is of another training."""
        if not self.path.is_file():
            return None
        state = torch.load(self.path, weights_only=True)
        if state["plan"] != self.plan:
            raise InputError(
                f"{self.path} is of another training ({state['plan']}), and this is {self.plan}.",
                "Remove it, or name another folder.",
            )
        return state

    def remove(self) -> None:
        """The training is over."""
        self.path.unlink(missing_ok=True)


class TrainingLoop:
    """Iterates over the steps of one training stage, from 1; the body of a step ends with a call of `learn`.

    name: stands in the progress lines.
    weights: parameters, or AdamW's groups, where a group's `share` multiplies its learning rate.
    rate: the learning rate.
    log: called with a progress line every `LOG_EVERY` steps.
    heads: other parameters to train, whose gradients are not clipped.
    averaged: at the end the weights are their moving average (EMA) and not the last ones.
    snapshot: called with the share of steps done, `snapshots` times.
    """

    def __init__(
        self,
        name: str,
        weights: Iterable[Any],
        steps: int,
        *,
        rate: Schedule,
        weight_decay: float,
        log: Callable[[str], None],
        heads: Iterable[Tensor] = (),
        averaged: bool = False,
        snapshot: Callable[[float], None] | None = None,
        snapshots: int = 10,
    ) -> None:
        groups = list(weights)
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.name, self.steps, self.rate, self.log = name, steps, rate, log
        self.weights = [weight for group in groups for weight in group["params"]]
        self.optimiser = torch.optim.AdamW(
            [*groups, {"params": list(heads)}], betas=(0.9, 0.98), weight_decay=weight_decay
        )
        self.average = [weight.detach().clone() for weight in self.weights] if averaged else None
        self.snapshot, self.snapshot_every = snapshot, math.ceil(steps / snapshots)
        self.figures: dict[str, float] = {}
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        """The weights, the optimiser and the step: what `load_state_dict` of a loop made alike goes on from."""
        heads = self.optimiser.param_groups[-1]["params"]
        return {
            "done": self.done,
            "weights": [weight.detach() for weight in (*self.weights, *heads)],
            "average": self.average or [],
            "optimiser": self.optimiser.state_dict(),
            "figures": self.figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        heads = self.optimiser.param_groups[-1]["params"]
        with torch.no_grad():
            for weight, saved in zip((*self.weights, *heads), state["weights"], strict=True):
                weight.copy_(saved)
            for mean, saved in zip(self.average or (), state["average"], strict=True):
                mean.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.figures = state["done"], dict(state["figures"])

    def __iter__(self) -> Iterator[int]:
        for step in range(self.done + 1, self.steps + 1):
            for group in self.optimiser.param_groups:
                group["lr"] = group.get("share", 1.0) * self.rate(step, self.steps)
            yield step
            self.done = step
            if self.average:
                with torch.no_grad():
                    torch._foreach_lerp_(self.average, self.weights, 1 - min(0.998, (1 + step) / (10 + step)))
            if step % LOG_EVERY == 0 or step == self.steps:
                figures = ", ".join(f"{name} {value:.4f}" for name, value in self.figures.items())
                self.log(f"{self.name} step {step} of {self.steps}: {figures}")
            if self.snapshot and (step % self.snapshot_every == 0 or step == self.steps):
                self._swap_average()
                self.snapshot(step / self.steps)
                self._swap_average()
        self._swap_average()

    def learn(self, objective: Tensor, **figures: Tensor | float) -> None:
        """One step of the optimiser down the gradient of `objective`. figures: running means of them are logged."""
        self.optimiser.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        for name, figure in figures.items():
            value = figure.item() if isinstance(figure, Tensor) else figure
            self.figures[name] = 0.98 * self.figures.get(name, value) + 0.02 * value

    def _swap_average(self) -> None:
        for weight, mean in zip(self.weights, self.average or (), strict=False):
            weight.data, mean.data = mean.data, weight.data
