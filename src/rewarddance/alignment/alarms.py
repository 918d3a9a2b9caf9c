"""Alarms: what a run's figures look like when its reward is being hacked, raised while there is time to stop.

Most compare the mean of the last `window` steps with that of the run's first window, when the generator was still the
base. `saturation` compares with the window before, `distance` with a fixed threshold, and spread and diversity are also
seen in quarters of a window, of four steps at least. They need no oracle. They are functions of what the steps log, so
a resumed run reads the log back and raises the same alarms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from rewarddance.data.image_stats import MEASURED
from rewarddance.runtime.config import Recipe, changed
from rewarddance.runtime.tracking import Metrics, console

AlarmName = Literal[
    "spread_within", "spread_across", "saturation", "held_out", "diversity_within", "diversity_across", "collapse",
    "drift", "distance", "traded", "untouched", "repainted",
]  # fmt: skip
FILE = "alarms.jsonl"
RING_BY: dict[str, tuple[AlarmName, ...]] = {
    "least_spread": ("spread_within", "spread_across"),
    "least_diversity": ("diversity_within", "diversity_across"),
    "saturated": ("saturation",),
    "still": ("saturation",),
    "climb": ("saturation",),
    "disagreement": ("held_out",),
    "most_collapsed": ("collapse",),
    "most_drift": ("drift",),
    "least_change": ("untouched",),
    "most_change": ("repainted",),
    "most_distance": ("distance",),
}
"""Key of a threshold -> the alarms that ring by it."""
EARLY = ("distance", "spread_within", "spread_across", "diversity_within", "diversity_across")
"""Alarms that are also seen in quarters of a window; the others compare two whole ones."""
Row = Mapping[str, Any]


class AlarmRecipe(Recipe):
    """When alarms ring. All are on; every threshold is ours.

    window: steps whose mean is compared. Distance, spread and diversity are also seen in a quarter of it, of four steps
        at least. No other alarm rings before two windows.
    off: alarms that are not wanted.
    stop_on: alarms that end the run, which keeps the newest checkpoint from before their window; the others only warn.
    least_spread: share of the first window's spread of the margin, within a prompt and across prompts; the two alarms
        of spread ring where it is surely below.
    least_diversity: the same share of the distances between pictures, within a group and across prompts.
    saturated, still, climb: P(yes) is above `saturated` and moved by less than `still` from one window to the next,
        while the margin rose by `climb` logits or more.
        Of several rewards these three are asked of each, and one alarm of all: `traded` rings where one surely rose and
        another surely fell.
    disagreement: the held-out judge gained less than this share of the reward's gain, each in its own deviations from
        step to step.
    most_collapsed: share of groups that are one picture.
    most_drift: how far a statistic of the median picture moved, in robust standard deviations of the base's pictures.
    least_change, most_change: shares of the first window's distance between edits and their sources, below and above
        which `untouched` and `repainted` ring.
    most_distance: mean squared distance of the velocity from the base's, of which a clean latent and its noise each
        have about 1. It varies so little from step to step that a quarter of a window is enough.
    sure: standard errors by which a change must stand out of the noise between steps.
    """

    window: int = Field(default=16, ge=4)
    off: tuple[AlarmName, ...] = ()
    stop_on: tuple[AlarmName, ...] = ("collapse",)
    least_spread: float = Field(default=0.5, ge=0, lt=1)
    least_diversity: float = Field(default=0.7, ge=0, lt=1)
    saturated: float = Field(default=0.8, gt=0, lt=1)
    still: float = Field(default=0.03, gt=0)
    climb: float = Field(default=0.3, gt=0)
    disagreement: float = Field(default=0.25, ge=0, lt=1)
    most_collapsed: float = Field(default=0.5, gt=0, le=1)
    most_drift: float = Field(default=2.0, gt=0)
    least_change: float = Field(default=0.7, ge=0, lt=1)
    most_change: float = Field(default=1.3, gt=1)
    most_distance: float = Field(default=0.15, gt=0)
    sure: float = Field(default=3.0, gt=0)

    @model_validator(mode="after")
    def _what_stops_a_run_is_on(self) -> AlarmRecipe:
        if (name := changed(self, "stop_on")) and (silent := set(self.stop_on) & set(self.off)):
            raise ValueError(f"{sorted(silent)[0]} is off, so it cannot stop a run ({name})")
        for key, names in RING_BY.items():
            if changed(self, key) and {*names} <= {*self.off}:
                raise ValueError(f"{' and '.join(names)} are off, so {key} says nothing: leave it out")
        return self


class Alarm(NamedTuple):
    """What rang at a step.

    saw: the sign, in words.
    do: what to do about it.
    window: steps up to this one in which it was seen.
    stop: does it end the run?
    """

    step: int
    name: str
    saw: str
    do: str
    window: int
    stop: bool = False


WORDS = {
    "spread_within": "spread within a prompt",
    "spread_across": "spread across prompts",
    "diversity_within": "distance between pictures of a prompt",
    "diversity_across": "distance between pictures of different prompts",
    "source_distance": "distance between edits and their sources",
}
_CLOSER = "hold it closer to the base (raise velocity_mse; of grpo kl, of dpo beta)"
DO: dict[str, str] = {
    "spread_within": "The judge no longer tells a prompt's samples apart: stop here, or train a better judge.",
    "spread_across": "The judge answers all prompts alike: look at the pictures, and train the judge on them.",
    "saturation": "P(yes) is full and pushes on for nothing: lower cap, take the loss hinge, or stop here.",
    "held_out": f"Only the judge in training likes what is learned: stop, {_CLOSER}, or lower learning_rate.",
    "diversity_within": f"Samples of a prompt become one: {_CLOSER}, raise reference_mse, or lower learning_rate.",
    "diversity_across": f"Prompts no longer matter: {_CLOSER}, and look at the pictures.",
    "collapse": f"Use the checkpoint from before; {_CLOSER} or lower learning_rate.",
    "distance": f"Far from the base a judge is asked about pictures it never saw: {_CLOSER}, or stop here.",
    "traded": "One reward is paid for with another: raise the weight of the one that fell, or stop here.",
    "untouched": "The editor stops editing: weigh following more, or train the judge on sources that were left alone.",
    "repainted": f"The editor changes what it was to keep: weigh keeping more, {_CLOSER}, or stop here.",
    "drift": f"Look at pictures of this step beside the base's: if it was not asked for, {_CLOSER}.",
}


SPREADS = ("spread_within", "spread_across")


class Window(NamedTuple):
    """n steps: the mean of each figure that all of them have, and its variance from step to step."""

    n: int
    mean: Row
    variance: Row

    @staticmethod
    def of(rows: Sequence[Row]) -> Window:
        keys = [key for key in rows[0] if all(key in row for row in rows)]
        values = np.array([[row[key] for key in keys] for row in rows])
        mean, variance = values.mean(0).tolist(), values.var(0, ddof=1).tolist()
        return Window(len(rows), dict(zip(keys, mean, strict=True)), dict(zip(keys, variance, strict=True)))


def standard_error(key: str, *windows: Window) -> float:
    """sqrt(sum of variance / n): of the difference of two windows' means, or of one mean."""
    return math.sqrt(sum(window.variance[key] / window.n for window in windows))


class AlarmMonitor:
    """Takes each step's figures and returns the alarms that begin to ring."""

    def __init__(self, recipe: AlarmRecipe) -> None:
        self.recipe = recipe
        self.first: Window | None = None
        self.first_few: Window | None = None
        self.recent: list[Row] = []
        self.last_rung: dict[str, int] = {}

    def update(self, step: int, figures: Row) -> list[Alarm]:
        """Alarms that ring at this step and did not in the window before it."""
        n = self.recipe.window
        row = {name: round(float(value), 6) for name, value in figures.items() if isinstance(value, int | float)}
        self.recent = [*self.recent[1 - 2 * n :], row]  # rounded as in metrics.jsonl, which a resumed run reads
        if self.first is None and len(self.recent) == n:
            self.first = Window.of(self.recent)
        few, signs = max(4, n // 4), []
        if len(self.recent) >= few:
            now = Window.of(self.recent[-few:])
            self.first_few = self.first_few or now
            signs.append(("distance", moved_far(now, self.recipe), few))
            if len(self.recent) >= 2 * few:
                signs += [(name, saw, few) for name, saw in losses(self.first_few, now, self.recipe)]
        if self.first is not None and len(self.recent) == 2 * n:
            compared = changes(self.first, Window.of(self.recent[:n]), Window.of(self.recent[n:]), self.recipe)
            signs += [(name, saw, n) for name, saw in compared]
        alarms = []
        for name, saw, window in signs:
            if not saw or name in self.recipe.off:
                continue
            key, first = name, saw.split(" ", 1)[0]
            if name == "drift" or first.endswith(":"):  # each statistic of the pictures, and each reward, by itself
                key = f"{name} {first}"
            if key not in self.last_rung or step - self.last_rung[key] > n:
                alarms.append(Alarm(step, name, saw, DO[name], window, name in self.recipe.stop_on))
            self.last_rung[key] = step
        return alarms


def changes(first: Window, before: Window, now: Window, recipe: AlarmRecipe) -> list[tuple[str, str]]:
    """Each alarm's name and sign, "" for none, from three windows: the run's first, the last but one, the last."""
    checks = [
        *(("saturation", partial(saturated, before, now, recipe, of)) for of in rewards_in(now)),
        ("traded", partial(traded, first, now, recipe)),
        ("held_out", partial(disagreed, first, now, recipe)),
        ("collapse", partial(collapsed, first, now, recipe)),
        *(("drift", partial(drifted, first, now, statistic, recipe)) for statistic in MEASURED),
        ("untouched", partial(left_sources, first, now, recipe, below=True)),
        ("repainted", partial(left_sources, first, now, recipe, below=False)),
    ]
    signs = losses(first, now, recipe)
    for name, check in checks:
        with suppress(KeyError):  # a figure that this run does not log
            signs.append((name, check()))
    return signs


def losses(first: Window, now: Window, recipe: AlarmRecipe) -> list[tuple[str, str]]:
    """Each alarm of spread and diversity with its sign, "" for none, from the first steps and the last.

    A reward that does not know what is good can take a generator apart long before two windows are over: so these are
    also asked of quarters of a window.
    """
    shares = {f"{name}{of}": recipe.least_spread for of in rewards_in(now) for name in SPREADS}
    shares |= dict.fromkeys(("diversity_within", "diversity_across"), recipe.least_diversity)
    return [
        (key.partition("/")[0], fell_below(first, now, key, share, recipe.sure))
        for key, share in shares.items()
        if key in now.mean and key in first.mean
    ]


def rewards_in(window: Window) -> list[str]:
    """What follows a figure's name for each reward: /follow and /keep of several, nothing of a single one."""
    return [key.removeprefix("margin") for key in window.mean if key.startswith("margin/")] or [""]


def said_of(reward: str) -> str:
    """How a sign of one of several rewards begins."""
    return f"{reward[1:]}: " if reward else ""


def fell_below(first: Window, now: Window, key: str, least: float, sure: float) -> str:
    """The figure is below the share `least` of the first window's, by `sure` standard errors."""
    error = math.hypot(least * standard_error(key, first), standard_error(key, now))
    if now.mean[key] + sure * error >= least * first.mean[key]:
        return ""
    share, (name, slash, reward) = 100 * now.mean[key] / first.mean[key], key.partition("/")
    return (
        f"{said_of(slash + reward)}{WORDS[name]} is {now.mean[key]:.3g}, {share:.0f} % of the first {first.n} steps'."
    )


def saturated(before: Window, now: Window, recipe: AlarmRecipe, reward: str = "") -> str:
    """P(yes) is high and stands still while the margin surely rises. reward: one of `rewards_in`."""
    margin, probability = f"margin{reward}", f"reward{reward}"
    rise, p = now.mean[margin] - before.mean[margin], now.mean[probability]
    full = p > recipe.saturated and abs(p - before.mean[probability]) < recipe.still
    if not full or rise < max(recipe.climb, recipe.sure * standard_error(margin, before, now)):
        return ""
    return f"{said_of(reward)}P(yes) stands at {p:.2f} while the margin rose by {rise:.2f} logits in {now.n} steps."


def disagreed(first: Window, now: Window, recipe: AlarmRecipe) -> str:
    """The reward's gain is sure, and the held-out judge's is less than a share of it by two of its standard errors."""
    keys = ("margin", "held_out_margin")
    gain, held_out_gain = (now.mean[key] - first.mean[key] for key in keys)
    scale, held_out_scale = (max(math.sqrt(first.variance[key]), 1e-6) for key in keys)
    lag = recipe.disagreement * gain / scale - held_out_gain / held_out_scale
    sure = gain >= recipe.sure * standard_error(keys[0], first, now)
    if not sure or lag < 2 * standard_error(keys[1], first, now) / held_out_scale:
        return ""
    return f"the margin rose by {gain:.2f} logits, the held-out judge's changed by {held_out_gain:+.2f}."


def traded(first: Window, now: Window, recipe: AlarmRecipe) -> str:
    """One reward's margin surely rose since the first window, and another's surely fell: those that did so most."""
    moved = {}
    for reward in rewards_in(now):
        key = f"margin{reward}"
        change, error = now.mean[key] - first.mean[key], standard_error(key, first, now)
        if abs(change) > max(recipe.sure * error, 1e-6):
            moved[reward] = change / max(error, 1e-6), change
    rose, fell = (pick(moved, key=moved.__getitem__, default="") for pick in (max, min))
    if not moved or moved[rose][1] < 0 or moved[fell][1] > 0:
        return ""
    return f"{rose[1:]} rose by {moved[rose][1]:.2f} logits while {fell[1:]} fell by {-moved[fell][1]:.2f}."


def collapsed(first: Window, now: Window, recipe: AlarmRecipe) -> str:
    """Many groups are one picture each, and were not at first."""
    before, share = first.mean["collapsed"], now.mean["collapsed"]
    if share < recipe.most_collapsed or share < 2 * before:
        return ""
    return f"{100 * share:.0f} % of groups are one picture, {100 * before:.0f} % in the first window."


def moved_far(now: Window, recipe: AlarmRecipe) -> str:
    """The velocity left the base's by more than a trained generator needs; no earlier window is compared."""
    distance = now.mean.get("velocity_mse", 0.0)
    return f"the velocity is {distance:.2f} from the base's in mean square." if distance > recipe.most_distance else ""


def drifted(first: Window, now: Window, statistic: str, recipe: AlarmRecipe) -> str:
    """A statistic of the pictures is surely far from where it was, by how far the base's are from one another."""
    shift, scale = now.mean[statistic] - first.mean[statistic], max(first.mean[f"{statistic}_deviation"], 1e-3)
    if abs(shift) < max(recipe.most_drift * scale, recipe.sure * standard_error(statistic, first, now)):
        return ""
    values = f"went from {first.mean[statistic]:.3g} to {now.mean[statistic]:.3g}"
    return f"{statistic} {values}, {abs(shift) / scale:.1f} deviations of the base's pictures."


def left_sources(first: Window, now: Window, recipe: AlarmRecipe, *, below: bool) -> str:
    """Edits are surely nearer to their sources than a share of what they were (`below`), or farther."""
    key = "source_distance"
    before, after = first.mean[key], now.mean[key]
    gone = after < recipe.least_change * before if below else after > recipe.most_change * before
    if before <= 0 or not gone or abs(after - before) < recipe.sure * standard_error(key, first, now):
        return ""
    return f"{WORDS[key]} is {after:.3g}, {100 * after / before:.0f} % of the first {first.n} steps'."


class AlarmLog:
    """A run's monitor with its record: alarms.jsonl beside metrics.jsonl, and a line on the console for each alarm.

    first: the step that a resumed run goes on from; what was logged up to it is read back, without a sound.
    """

    def __init__(self, recipe: AlarmRecipe, metrics: Metrics, phase: str, first: int) -> None:
        self.phase, self.monitor = phase, AlarmMonitor(recipe)
        self.file = Metrics(metrics.path.with_name(FILE))
        self.file.rewind(phase, first)
        for row in _logged_steps(metrics.path, phase, first):
            self.monitor.update(row["step"], row)

    def check(self, step: int, figures: Row) -> int | None:
        """Record what rings at `step`. Returns the last step to be trusted where the run must end, else None."""
        alarms = self.monitor.update(step, figures)
        for alarm in alarms:
            self.file.log(self.phase, step, "alarm", name=alarm.name, saw=alarm.saw, do=alarm.do, stop=alarm.stop)
            console.print(f"ALARM at step {step} ({alarm.name}): {alarm.saw} {alarm.do}", soft_wrap=True, markup=False)
        return min((step - alarm.window for alarm in alarms if alarm.stop), default=None)


def _logged_steps(path: Path, phase: str, last: int) -> list[dict]:
    """The rows of a phase's steps up to `last`."""
    if not path.exists():
        return []
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["phase"] == phase and row["kind"] == "step" and row["step"] <= last]
