"""What stands for the picture in ReFL's gradient: which steps it enters, with which weights, and by which paths.

Every deterministic sampler here is Euler's in y = x_t / (alpha + sigma) and t = sigma / (alpha + sigma), where
u = eps - x_0 is the velocity: y' = y + (t' - t) u (a flow has y = x_t and u = v; DDIM is the same, 2010.02502). So a
surrogate of the picture is a sum over active steps, x_0 + sum_i c_i (u_i - sg u_i): it has the rollout's own value, and
its gradient is what the terms say. The methods of the field are choices of these terms, each in `PRESETS` by its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from rewarddance.errors import InputError
from rewarddance.protocols import Generator
from rewarddance.runtime.config import MOST, Recipe

_Parameter = Annotated[float, Field(gt=0)]
"""Of a Dirichlet distribution."""


class Term(NamedTuple):
    """An active step.

    coefficient: c, what x_0 gains from its velocity. share: how much of the gradient in its input goes on to the terms
    before it; 0 where the network's input is taken as given.
    """

    step: int
    coefficient: float
    share: float = 0.0


class Leap(NamedTuple):
    """A step of its own from `start` to `end`, the integral of the velocities at `nodes` with their weights."""

    start: int
    end: int
    nodes: tuple[tuple[int, float], ...]


class Route(NamedTuple):
    """What a step's gradient goes through.

    terms: by rising step. stop: the step whose prediction the reward sees, or the number of steps for the picture.
    leaps: those whose distance from the rollout weighs the samples, each of at least least_distance.
    """

    terms: tuple[Term, ...]
    stop: int
    leaps: tuple[Leap, ...] = ()
    least_distance: float = 0.0

    @property
    def first(self) -> int:
        return self.terms[0].step


class Surrogate(Recipe):
    """The choices that tell ReFL's relatives apart. In a recipe a name of `PRESETS`, or a mapping whose `like` names
    the preset that its other keys change.

    active: the steps whose velocity gets a gradient. last: the last one; spaced: `count`, evenly spaced from a random
        one on, up to the step whose prediction is seen; late: `count` at random, step i with weight
        (i + 1)^late_bias; leaps: the first `leap_terms` nodes of two leaps k -> j -> end, k and j at random.
    sees: the finished picture, or the one-step prediction at a random step of the last `stop_range` of the schedule.
    count: of active steps, or with leaps the nodes of each leap's quadrature (Lagrange's; 1 is Euler's step).
    late_bias: see active.
    rescale: with late, how far the terms are scaled up for the steps that are left out; 1: to all of the schedule.
    nested: share of the gradient in the network's input at a random step j that goes on to the terms before it; 0 for
        none. With late, the active steps are split over both sides of j, and j is one of them.
    leap_terms, node_share: nodes of a leap that are active, and what the gradient of all but the first is scaled by.
    least_distance: samples weigh 1 / (d_j + d_0), the mean distances of the leaps' ends from the rollout, each at least
        this; by default all weigh alike.
    segments, last_leap: k and j are where a Dirichlet draw with these parameters parts the schedule (after j, between
        them, before k), j within the last `last_leap` of it; by default any two steps.
    noised_copies: with last, each sample is also noised to the last step again so often, and the reward sees all.
    """

    active: Literal["last", "spaced", "late", "leaps"]
    sees: Literal["picture", "prediction"] = "picture"
    count: int = Field(default=1, ge=1)
    late_bias: float = Field(default=0.0, ge=0, le=64)
    rescale: float = Field(default=0.0, ge=0)
    nested: float = Field(default=0.0, ge=0, le=1)
    leap_terms: int = Field(default=1, ge=1)
    node_share: float = Field(default=1.0, ge=0)
    least_distance: float | None = Field(default=None, gt=0)
    segments: tuple[_Parameter, _Parameter, _Parameter] | None = None
    last_leap: float = Field(default=1.0, gt=0, le=1)
    stop_range: float = Field(default=0.4, gt=0, le=1)
    noised_copies: int = Field(default=0, ge=0, le=MOST)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A name, or a mapping with `like`, as its choices."""
        if isinstance(value, str):
            value = {"like": value}
        if not isinstance(value, dict) or "like" not in value:
            return value
        name, changes = value["like"], {key: choice for key, choice in value.items() if key != "like"}
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"there is no surrogate {name!r}; there are {', '.join(PRESETS)}")
        return {**PRESETS[name], **changes}

    @model_validator(mode="after")
    def _every_choice_says_something(self) -> Surrogate:
        of = {
            "count": self.active != "last",
            "late_bias": self.active == "late",
            "rescale": self.active == "late",
            "nested": self.active in ("late", "leaps"),
            "leap_terms": self.active == "leaps",
            "node_share": self.leap_terms > 1,
            "least_distance": self.active == "leaps",
            "segments": self.active == "leaps" or bool(self.nested),
            "last_leap": self.segments is not None,
            "stop_range": self.sees == "prediction",
            "noised_copies": self.active == "last",
        }
        for name, used in of.items():
            if not used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says nothing here (active is {self.active}): leave it out")
        if (self.active == "spaced") != (self.sees == "prediction"):
            raise ValueError("a prediction is seen with active: spaced, and only so")
        if self.active == "late" and self.nested and self.count < 2:
            raise ValueError("a nested path has an active step on both sides: give a count of 2 or more")
        if self.leap_terms > self.count:
            raise ValueError(f"leap_terms is {self.leap_terms}, and a leap has {self.count} nodes (count)")
        return self

    @property
    def copies(self) -> int:
        """How many pictures of each sample the reward sees."""
        return 1 + self.noised_copies

    def check(self, num_steps: int) -> None:
        """Raises InputError where the sampler has fewer steps than are wanted."""
        wanted = {"last": 1, "spaced": self.count, "late": self.count, "leaps": 2}[self.active]
        wanted = 3 if self.segments is not None else wanted
        if wanted > num_steps:
            raise InputError(
                f"refl.surrogate wants {wanted} steps, and the generator takes {num_steps}.",
                "Lower its count, or raise num_inference_steps.",
            )

    def route(self, times: Sequence[float], rng: np.random.Generator) -> Route:
        """The terms of one step of training, for a schedule of times t [S + 1] from noise to 0."""
        end = len(times) - 1
        widths = [after - before for before, after in itertools.pairwise(times)]
        if self.active == "last":
            return Route((Term(end - 1, widths[-1]),), end)
        if self.active == "spaced":
            stop = end - int(rng.integers(1, max(1, round(self.stop_range * end)) + 1))
            terms = [Term(i, widths[i] if i < stop else -times[i]) for i in spaced(stop + 1, self.count, rng)]
            return Route(tuple(terms), stop)
        if self.active == "late":
            return Route(self._late(widths, rng), end)
        k, j = self._joints(end, rng)
        leaps = tuple(Leap(a, b, quadrature(times, a, b, self.count)) for a, b in ((k, j), (j, end)))
        terms = [
            Term(step, weight * (self.node_share if place else 1.0), self.nested if step == j else 0.0)
            for leap in leaps
            for place, (step, weight) in enumerate(leap.nodes[: self.leap_terms])
        ]
        return Route(tuple(terms), end, leaps if self.least_distance else (), self.least_distance or 0.0)

    def _late(self, widths: Sequence[float], rng: np.random.Generator) -> tuple[Term, ...]:
        end, joint = len(widths), -1
        if self.nested:
            _, joint = self._joints(end, rng)
            before = min(max(round(self.count * joint / end), 1), joint, self.count - 1)
            after = min(self.count - before, end - joint)
            before = min(self.count - after, joint)
            steps = late(range(joint), before, self.late_bias, rng)
            steps += [joint, *late(range(joint + 1, end), after - 1, self.late_bias, rng)]
        else:
            steps = late(range(end), self.count, self.late_bias, rng)
        scale = 1 + self.rescale * (sum(widths) / sum(widths[i] for i in steps) - 1)
        return tuple(Term(i, scale * widths[i], self.nested if i == joint else 0.0) for i in steps)

    def _joints(self, end: int, rng: np.random.Generator) -> tuple[int, int]:
        """k < j."""
        if self.segments is None:
            k, j = sorted(rng.permutation(end)[:2].tolist())
            return k, j
        lengths = np.maximum(np.round(rng.dirichlet(self.segments) * end).astype(int), 1)
        lengths[lengths.argmax()] += end - lengths.sum()
        after = min(int(lengths[0]) + 1, max(2, round(self.last_leap * end)))
        return max(0, end - after - int(lengths[1])), end - after


def spaced(n: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` of n steps, evenly spaced from a random first one on (2405.00760); all, where there are no more."""
    if count >= n:
        return list(range(n))
    stride = n // count
    start = int(rng.integers(n - (count - 1) * stride))
    return [start + i * stride for i in range(count)]


def late(steps: range, count: int, bias: float, rng: np.random.Generator) -> list[int]:
    """`count` different ones of these steps, the i-th of them with weight (i + 1)^bias (2606.11075)."""
    if count >= len(steps):
        return list(steps)
    weights = np.arange(1, len(steps) + 1, dtype=float) ** bias
    return sorted(steps.start + int(i) for i in rng.choice(len(steps), count, replace=False, p=weights / weights.sum()))


def quadrature(times: Sequence[float], start: int, end: int, order: int) -> tuple[tuple[int, float], ...]:
    """Nodes and weights of a leap: the integral from t_start to t_end of the polynomial through the velocities at
    `order` steps, evenly spaced in [start, end) from start on (2606.11075). With order 1, Euler's t_end - t_start."""
    inside = min(order, end - start)
    nodes = [start + round(i * (end - start - 1) / max(inside - 1, 1)) for i in range(inside)]
    weights = []
    for node in nodes:
        others = [times[other] for other in nodes if other != node]
        basis = np.poly1d(others, r=True) / np.prod([times[node] - other for other in others])
        integral = basis.integ()
        weights.append(float(integral(times[end]) - integral(times[start])))
    return tuple(zip(nodes, weights, strict=True))


def times_of(generator: Generator) -> list[float]:
    """t = sigma / (alpha + sigma) before each step, and 0 after the last."""
    scales = [generator.scales(step) for step in range(generator.num_steps + 1)]
    return [float(sigma / (alpha + sigma)) for alpha, sigma in scales]


PRESETS: dict[str, dict[str, Any]] = {
    # 2309.17400, algorithm 1: the last step, with noised copies of its result beside it.
    "draft_lv": {"active": "last", "noised_copies": 2},
    # 2405.00760: evenly spaced steps with detached inputs, and the prediction of an early stop.
    "drtune": {"active": "spaced", "sees": "prediction", "count": 3, "stop_range": 0.4},
    # 2604.15311, with the shares that FlowBP's code has for it.
    "leapalign": {"active": "leaps", "nested": 0.3, "least_distance": 0.1},
    # 2606.11075, three; settings of its code for SD3.5, which differs with guidance: there the negative branch has no
    # gradient, and the loss is divided by the guidance.
    "flowbp_sparse": {"active": "late", "count": 4, "late_bias": 1.0, "rescale": 0.5},
    "flowbp_bridge": {"active": "late", "count": 5, "late_bias": 4.0, "nested": 0.5},
    "flowbp_lagrange": {
        "active": "leaps",
        "count": 3,
        "leap_terms": 2,
        "node_share": 0.25,
        "nested": 0.1,
        "least_distance": 0.2,
        "segments": (2.5, 6.0, 2.0),
        "last_leap": 0.4,
    },
}
"""Published methods by name."""
