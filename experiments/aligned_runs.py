"""One alignment of a comparison: its prompts and references, how it is watched, and what the oracle finds at its end.

The seconds of a run are those of its references and its steps, not those in which it is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from experiments.rows import Row
from rewarddance.alignment.algorithms import AlgorithmConfig, align_generator, prepare_alignment
from rewarddance.alignment.train import Figures, TrainRecipe
from rewarddance.evaluation.hacking import diversity
from rewarddance.evaluation.statistics import interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.quickstart_figures import Scores, proxy, sampled
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_alarms, read_metrics
from rewarddance.runtime.checkpoint import newest_complete
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.tasks import PICTURES
from rewarddance.types import Prompt

AlgorithmName = Literal["refl", "grpo", "nft"]
ClockName = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
STREAM = 9
"""Of the noises that pictures are looked at from, as in the quickstart's final table."""


class AlignConfig(AlgorithmConfig):
    """How a generator is aligned (see `AlgorithmConfig`). prompts: distinct ones of the training split."""

    prompts: int = Field(default=48, ge=1)

    @property
    def loop(self) -> TrainRecipe:
        return self.chosen

    def with_loop(self, **changes: object) -> AlignConfig:
        """The same with other values in the algorithm's recipe."""
        return self.model_copy(update={self.algorithm: self.loop.model_copy(update=changes)})

    def watched(self, probes: int) -> AlignConfig:
        """The same with a checkpoint at each of about `probes` probes, so that a resumed run knows its seconds."""
        every = max(1, math.ceil(self.loop.steps / probes))
        return self.with_loop(probe_every=every, save_every=every)


class EvalConfig(Recipe):
    """What is looked at. prompts, samples: held-out prompts and pictures of each, before and after. probes: about how
    often it is looked at along the way, at `probe_samples` pictures of the first `probe_prompts` of them.
    """

    prompts: int = Field(default=60, ge=6)
    samples: int = Field(default=4, ge=2)
    probes: int = Field(default=8, ge=1)
    probe_prompts: int = Field(default=24, ge=6)
    probe_samples: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _probes_are_of_them(self) -> EvalConfig:
        if self.probe_prompts > self.prompts:
            raise ValueError(f"of {self.prompts} prompts, {self.probe_prompts} cannot be probed")
        return self


class Probe(BaseModel):
    """What a run was at a step. oracle: alignment in [0, 1]; proxy: P(yes) by the judge it learns from, against the
    base's pictures of other noises; seconds: of training until then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    seconds: float
    oracle: float
    proxy: float
    diversity: float


class AlarmRecord(BaseModel):
    """An alarm, and whether it ended the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    name: str
    stop: bool


class Outcome(Row):
    """One finished run. steps: taken; seconds: of training. Lists [P] are each held-out prompt's mean, before and
    after: the oracle's alignment, the judge's P(yes) against the base's other pictures, the distance of two samples.
    """

    steps: int
    seconds: float
    probes: list[Probe]
    alarms: list[AlarmRecord]
    oracle_base: list[float]
    oracle: list[float]
    reward_base: list[float]
    reward: list[float]
    diversity_base: list[float]
    diversity: list[float]

    @property
    def gain(self) -> np.ndarray:
        return np.array(self.oracle) - np.array(self.oracle_base)

    @property
    def reward_gain(self) -> np.ndarray:
        return np.array(self.reward) - np.array(self.reward_base)

    @property
    def diversity_kept(self) -> float:
        """A share of the base's."""
        return float(np.mean(self.diversity) / np.mean(self.diversity_base))


class Baseline(NamedTuple):
    """What the runs of one seed are looked at with: prompts, and the base's pictures [P, N, T, C, H, W] of them."""

    seed: int
    look: EvalConfig
    prompts: list[Prompt]
    base: Tensor
    scores: Scores


def baseline_of(generator: PipelineGenerator, look: EvalConfig, seed: int) -> Baseline:
    """The base's held-out pictures, which each run of a seed is compared with."""
    prompts = PICTURES.prompts("held_out", look.prompts, seed)
    pictures, scores = sampled(generator, prompts, look.samples, seed, STREAM, "samples of the base")
    return Baseline(seed, look, prompts, pictures, scores)


def alignment_of(scores: Scores) -> list[float]:
    """The oracle's alignment, each prompt's mean."""
    return [float(np.mean([score.alignment for score in row])) for row in scores]


def training_prompts(n: int, seed: int) -> list[str]:
    """At most `n` distinct prompts of the training split, the categories in turn."""
    return list(dict.fromkeys(one.text for one in PICTURES.prompts("train", 4 * n, seed)))[:n]


class Stopwatch:
    """Seconds of a run, without those in which it is looked at, and with those from before an interruption."""

    def __init__(self, clock: Callable[[], float], before: float = 0.0) -> None:
        self.clock, self.began, self.before = clock, clock(), before

    def seconds(self) -> float:
        return self.before + self.clock() - self.began

    @contextmanager
    def stopped(self) -> Iterator[None]:
        now = self.clock()
        try:
            yield
        finally:
            self.began += self.clock() - now


def run_alignment_once(
    way: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    ground: Baseline,
    folder: Path,
    clock: ClockName,
    held_out: RewardModel | None = None,
    references: Path | None = None,
) -> Outcome:
    """Align `generator` and look at it; a run that was interrupted goes on from its last probe.

    held_out: a judge that gates ReFL and is watched. references: the folder of the bank, for runs that share one; else
    it is the run's own. The generator carries the result.
    """
    seed = ground.seed
    watch = Stopwatch(CLOCKS[clock], _seconds_before(folder, way.algorithm))

    def probe() -> Figures:
        with watch.stopped():
            found = look_now(generator, judge, ground)
        return found | {"seconds": watch.seconds()}

    metrics = Metrics(folder / "metrics.jsonl")
    _train(way, generator, judge, folder, metrics, seed, probe, held_out, references)
    seconds = watch.seconds()
    steps = [row["step"] for row in read_metrics(folder) if row["kind"] == "step"]
    pictures, scores = sampled(generator, ground.prompts, ground.look.samples, seed, STREAM, "samples after")
    reward = proxy(judge, ground.prompts, {"base": ground.base, "now": pictures}, ground.base)
    probes = [row for row in read_metrics(folder) if row["kind"] == "probe"]
    return Outcome(
        seed=seed,
        steps=max(steps),
        seconds=round(seconds, 2),
        probes=[Probe(**{name: row[name] for name in Probe.model_fields}) for row in probes],
        alarms=[AlarmRecord(step=row["step"], name=row["name"], stop=bool(row["stop"])) for row in read_alarms(folder)],
        oracle_base=alignment_of(ground.scores),
        oracle=alignment_of(scores),
        reward_base=reward["base"].tolist(),
        reward=reward["now"].tolist(),
        diversity_base=diversity(ground.base).tolist(),
        diversity=diversity(pictures).tolist(),
    )


def look_now(generator: PipelineGenerator, judge: RewardModel, ground: Baseline) -> Figures:
    """Oracle, proxy and diversity of the generator as it is, on the probe's prompts."""
    look = ground.look
    prompts, n = ground.prompts[: look.probe_prompts], look.probe_samples
    pictures, scores = sampled(generator, prompts, n, ground.seed, STREAM)
    oracle = interval(alignment_of(scores))
    said = proxy(judge, prompts, {"now": pictures}, ground.base[: len(prompts)])
    figures = {"oracle": oracle.mean, "oracle_low": oracle.low, "oracle_high": oracle.high}
    return figures | {"proxy": float(said["now"].mean()), "diversity": float(diversity(pictures).mean())}


def pace(
    way: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    folder: Path,
    seed: int,
    clock: ClockName,
    pilot: int,
) -> tuple[float, float]:
    """Seconds that a run takes before its first step (its references), and for each step, from `pilot` + 1 steps of
    which the first is not counted."""
    marks: list[float] = []

    def mark() -> Figures:
        marks.append(CLOCKS[clock]())
        return {}

    began = CLOCKS[clock]()
    short = way.with_loop(steps=pilot + 1, probe_every=1, save_every=pilot + 2)
    _train(short, generator, judge, folder, Metrics(folder / "metrics.jsonl"), seed, mark, None)
    return marks[0] - began, (marks[-1] - marks[1]) / pilot


def _train(
    way: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    folder: Path,
    metrics: Metrics,
    seed: int,
    probe: Callable[[], Figures],
    held_out: RewardModel | None,
    references: Path | None = None,
) -> None:
    torch.manual_seed(seed)
    run = prepare_alignment(
        way,
        generator,
        judge,
        training_prompts(way.prompts, seed),
        references_folder=references or folder / "references",
        seed=seed,
        held_out=held_out,
    )
    align_generator(run, folder=folder, metrics=metrics, probe=probe)


def _seconds_before(folder: Path, phase: str) -> float:
    """Of the run that goes on: until the probe at its newest checkpoint."""
    newest = newest_complete(folder)
    if newest is None:
        return 0.0
    step = int(newest.name.rpartition("-")[2])
    probes = [row for row in read_metrics(folder) if row["phase"] == phase and row["kind"] == "probe"]
    return max((row["seconds"] for row in probes if row["step"] <= step), default=0.0)
