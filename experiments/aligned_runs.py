"""One alignment of an experiment: its prompts and references, its probes, and what the oracle says at its end.

The seconds of a run are those of its references and its steps, not those of its probes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from experiments.grid import Row
from experiments.tables import Column, Group, gained, gained_reward, over_seeds, paired, percent, points
from rewarddance.alignment.algorithms import AlgorithmConfig, align_generator, prepare_alignment
from rewarddance.alignment.train import Figures
from rewarddance.evaluation.hacking import HackingVerdict, diversity, hacking_verdict
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.quickstart_figures import Scores, means_of, probe_figures, proxy, sampled
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_alarms, read_metrics
from rewarddance.runtime.checkpoint import newest_complete
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.tasks import PICTURES, WorldTask
from rewarddance.types import Prompt

ClockName = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
WATCHER = "proxy_"
"""Before a watcher's name in metrics.jsonl."""
STREAM = 9
"""Of the noises of held-out pictures, as in the quickstart's final table."""


class AlignConfig(AlgorithmConfig):
    """How a generator is aligned (see `AlgorithmConfig`). prompts: distinct ones of the training split."""

    prompts: int = Field(default=48, ge=1)

    def with_loop(self, **changes: object) -> AlignConfig:
        """The same with other values in the algorithm's recipe."""
        return self.model_copy(update={self.algorithm: self.chosen.model_copy(update=changes)})

    def with_probes(self, probes: int) -> AlignConfig:
        """The same with a checkpoint at each of about `probes` probes, so that a resumed run knows its seconds."""
        every = max(1, math.ceil(self.chosen.steps / probes))
        return self.with_loop(probe_every=every, save_every=every)


class EvalConfig(Recipe):
    """What a generator is evaluated on.

    prompts, samples: held-out prompts and pictures of each, before and after.
    probes: about how often it is evaluated along the way.
    probe_prompts, probe_samples: the first of these prompts, and pictures of each, that probes are of.
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
    """What a generator was at a step.

    seconds: of training until then.
    oracle: alignment in [0, 1].
    proxy: P(yes) by the judge it learns from, against the base's pictures of other noises.
    diversity: mean distance of two samples of a prompt.
    watchers: P(yes) in the same way by judges that it does not learn from, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    seconds: float
    oracle: float
    proxy: float
    diversity: float
    watchers: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, logged: Mapping[str, Any]) -> Probe:
        """The probe of a line of metrics.jsonl."""
        figures = {name: logged[name] for name in cls.model_fields if name != "watchers"}
        watchers = {name.removeprefix(WATCHER): logged[name] for name in logged if name.startswith(WATCHER)}
        return cls(**figures, watchers=watchers)


class AlarmRecord(BaseModel):
    """An alarm, and whether it ended the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    name: str
    stop: bool


class Outcome(Row):
    """Each held-out prompt's means [P], before alignment and after.

    steps: taken.
    oracle: the oracle's alignment.
    reward: the judge's P(yes) against the base's other pictures.
    diversity: the distance of two samples in pixels.
    """

    steps: int
    seconds: float
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

    @property
    def verdict(self) -> HackingVerdict:
        before, after = float(np.mean(self.diversity_base)), float(np.mean(self.diversity))
        return hacking_verdict(interval(self.reward_gain), interval(self.gain), before, after)


class AlignedRun(Outcome):
    """One finished run. seconds: of training."""

    probes: list[Probe]
    alarms: list[AlarmRecord]


class Baseline(NamedTuple):
    """What runs of one generator and seed are compared with: prompts, and the base's pictures [P, N, T, C, H, W]."""

    seed: int
    prompts: list[Prompt]
    pictures: Tensor
    scores: Scores


def baseline_of(
    generator: PipelineGenerator, seed: int, prompts: int, samples: int, task: WorldTask = PICTURES
) -> Baseline:
    """`samples` pictures by the base of each of as many held-out prompts."""
    held_out, title = task.prompts("held_out", prompts, seed), "samples of the base"
    return Baseline(seed, held_out, *sampled(generator, held_out, samples, seed, stream=STREAM, title=title, task=task))


def outcome(generator: PipelineGenerator, judge: RewardModel, baseline: Baseline) -> dict[str, list[float]]:
    """The lists of an `Outcome`: an aligned generator's pictures beside the base's of the same noises."""
    samples = baseline.pictures.shape[1]
    pictures, scores = sampled(
        generator, baseline.prompts, samples, baseline.seed, stream=STREAM, title="samples after"
    )
    reward = proxy(judge, baseline.prompts, {"base": baseline.pictures, "now": pictures}, baseline.pictures)
    return {
        "oracle_base": means_of(baseline.scores),
        "oracle": means_of(scores),
        "reward_base": reward["base"].tolist(),
        "reward": reward["now"].tolist(),
        "diversity_base": diversity(baseline.pictures).tolist(),
        "diversity": diversity(pictures).tolist(),
    }


class Stopwatch:
    """Seconds of a run, without those in which it is stopped, and with those from before an interruption."""

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


def train_once(
    config: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    baseline: Baseline,
    folder: Path,
    *,
    clock: ClockName,
    evaluation: EvalConfig,
    held_out: RewardModel | None = None,
    watchers: Mapping[str, RewardModel] | None = None,
    references: Path | None = None,
) -> dict[str, object]:
    """Align `generator`, which carries the result; the steps, seconds, probes and alarms of an `AlignedRun`.

    judge: also looks at the probes of an algorithm that asks none. held_out: a judge that gates ReFL and is watched.
    watchers: judges that only look at the probes.
    references: the folder of the bank, for runs that share one; else it is the run's own.
    """
    watch = Stopwatch(CLOCKS[clock], _seconds_before(folder, config.algorithm))

    def probe() -> Figures:
        with watch.stopped():
            figures = probe_now(generator, judge, baseline, evaluation, watchers or {})
        return figures | {"seconds": watch.seconds()}

    _train(config, generator, judge, folder, baseline.seed, probe=probe, held_out=held_out, references=references)
    seconds, logged = watch.seconds(), read_metrics(folder)
    return {
        "steps": max(row["step"] for row in logged if row["kind"] == "step"),
        "seconds": round(seconds, 2),
        "probes": [Probe.of(row).model_dump() for row in logged if row["kind"] == "probe"],
        "alarms": [
            {"step": row["step"], "name": row["name"], "stop": bool(row["stop"])} for row in read_alarms(folder)
        ],
    }


def probe_now(
    generator: PipelineGenerator,
    judge: RewardModel,
    baseline: Baseline,
    evaluation: EvalConfig,
    watchers: Mapping[str, RewardModel],
) -> Figures:
    """Oracle, diversity and each judge's proxy of the generator as it is, on the probe's prompts."""
    prompts = baseline.prompts[: evaluation.probe_prompts]
    pictures, scores = sampled(generator, prompts, evaluation.probe_samples, baseline.seed, stream=STREAM)
    judges = {"proxy": judge} | {WATCHER + name: watcher for name, watcher in watchers.items()}
    others = baseline.pictures[: len(prompts)]
    rewards = {name: proxy(each, prompts, {"now": pictures}, others)["now"] for name, each in judges.items()}
    return probe_figures(pictures, scores) | {name: float(reward.mean()) for name, reward in rewards.items()}


def seconds_of_steps(
    config: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    folder: Path,
    seed: int,
    *,
    clock: ClockName,
    pilot: int,
) -> tuple[float, float]:
    """Seconds before a run's first step (its references), and of each step.

    From `pilot` + 1 steps, of which the first is not counted.
    """
    marks: list[float] = []

    def mark() -> Figures:
        marks.append(CLOCKS[clock]())
        return {}

    began = CLOCKS[clock]()
    short = config.with_loop(steps=pilot + 1, probe_every=1, save_every=pilot + 2)
    _train(short, generator, judge, folder, seed, probe=mark)
    return marks[0] - began, (marks[-1] - marks[1]) / pilot


def training_prompts(config: AlignConfig, seed: int, task: WorldTask = PICTURES) -> list[Prompt]:
    """The prompts that a run of a seed learns on, distinct in text."""
    distinct: dict[str, Prompt] = {}
    for prompt in task.prompts("train", 4 * config.prompts, seed):
        distinct.setdefault(prompt.text, Prompt(prompt.text, image=prompt.image))
    return list(distinct.values())[: config.prompts]


def _train(
    config: AlignConfig,
    generator: PipelineGenerator,
    judge: RewardModel,
    folder: Path,
    seed: int,
    *,
    probe: Callable[[], Figures],
    held_out: RewardModel | None = None,
    references: Path | None = None,
) -> None:
    prompts = training_prompts(config, seed)
    torch.manual_seed(seed)
    run = prepare_alignment(
        config,
        generator,
        None if config.algorithm == "dpo" else judge,
        prompts,
        references_folder=references or folder / "references",
        seed=seed,
        held_out=held_out,
    )
    align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"), probe=probe)


def _seconds_before(folder: Path, phase: str) -> float:
    """Of the run that goes on: until the probe at its newest checkpoint."""
    newest = newest_complete(folder)
    if newest is None:
        return 0.0
    step = int(newest.name.rpartition("-")[2])
    probes = [row for row in read_metrics(folder) if row["phase"] == phase and row["kind"] == "probe"]
    return max((row["seconds"] for row in probes if row["step"] <= step), default=0.0)


# -- over seeds --------------------------------------------------------------------------------------------------------


def _over_first(group: Group[Any]) -> Interval | None:
    return None if group.rows is group.first else paired(group.first, group.rows, lambda row: row.gain)


GAIN_COLUMNS: list[Column[Group[Any]]] = [
    Column("base", lambda group: over_seeds(row.oracle_base for row in group.rows), points),
    Column("gain", lambda group: over_seeds(row.gain for row in group.rows), gained),
    Column("over the first", _over_first, gained, "over_first"),
    Column("P(yes)", lambda group: over_seeds(row.reward_gain for row in group.rows), gained_reward, "reward_gain"),
    Column(
        "diversity", lambda group: float(np.mean([row.diversity_kept for row in group.rows])), percent, "diversity_kept"
    ),
]
"""Of groups of `Outcome`. over_first: None for the first group and where they have no seed in common."""
