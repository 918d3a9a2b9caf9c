"""Two rewards that pull apart, at several weights: how much of the one is paid for with the other (a Pareto front).

The first is a seed's judge, which says whether the prompt is followed. The second is any reward; by default that little
is drawn at all, which an empty picture has most of. A cell is one alignment by both at one weight under one seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from experiments.aligned_runs import (
    STREAM,
    AlignConfig,
    Baseline,
    EvalConfig,
    baseline_of,
    training_prompts,
)
from experiments.grid import Cell, Experiment, GridRecipe, Report, TimedRow, remove_checkpoints
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
    Column,
    Group,
    gained,
    listed,
    over_seeds,
    percent,
    results,
    svg,
    table,
)
from experiments.trained_judges import check_given, judge_checkpoints, judge_of_seed
from rewarddance.alignment.algorithms import align_generator, prepare_alignment
from rewarddance.evaluation.hacking import diversity
from rewarddance.jobs.quickstart_figures import means_of, proxy, sampled
from rewarddance.protocols import RewardModel
from rewarddance.report.formatting import figure_text, number
from rewarddance.report.run_folder import read_alarms, read_metrics
from rewarddance.reward.function_reward import FunctionReward
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.tracking import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Share = Annotated[float, Field(ge=0, le=1)]
FOLLOW = "follow"
"""The name of the first reward."""


class LittlePaint(FunctionReward):
    """A reward of pictures on which little is painted: -20 times the mean distance of a pixel from the median one."""

    def __init__(self) -> None:
        super().__init__(lambda images, prompts, metadata: -20 * painted(images))


def painted(images: Tensor) -> Tensor:
    """The mean distance of the pixels of pictures [B, C, H, W] from their median colour [B]: 0 of an empty picture."""
    median = images.flatten(2).median(2).values[..., None, None]
    return (images - median).abs().mean((1, 2, 3))


class ParetoRecipe(GridRecipe):
    """What is weighed against what.

    judges: a trained reward's folder for each seed; where there is none, the seed's judge is trained as the quickstart
        trains its own.
    second, second_judge: the name of the second reward, and what `load_reward` takes for it.
    shares: of the second reward; the first has what is left of 1.
    align: the algorithm.
    """

    judges: dict[int, str] = Field(default_factory=dict)
    second: str = Field(default="plain", pattern=r"^\w+$")
    second_judge: str = "experiments.pareto:LittlePaint"
    shares: tuple[Share, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=2)
    align: AlignConfig
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> ParetoRecipe:
        check_given(self.judges, self.seeds)
        if len(set(self.shares)) < len(self.shares):
            raise ValueError("a share stands twice among shares")
        if self.second == FOLLOW:
            raise ValueError(f"second is {FOLLOW!r}, which is the first reward's name")
        return self


class ParetoRun(TimedRow):
    """One finished cell: each held-out prompt's means [P], after and before.

    share: of the second reward. first, second: P(yes) by each reward, of samples against the base's of other noises.
    cosine: how far the two rewards went the same way, the mean over the steps.
    """

    row: Literal["run"] = "run"
    share: float
    first: list[float]
    first_base: list[float]
    second: list[float]
    second_base: list[float]
    oracle: list[float]
    oracle_base: list[float]
    diversity: list[float]
    diversity_base: list[float]
    cosine: float
    alarms: list[str]

    @property
    def gain(self) -> np.ndarray:
        """The oracle's."""
        return np.array(self.oracle) - np.array(self.oracle_base)


class Pareto(Experiment[ParetoRecipe]):
    name, recipe_kind, row_kinds, counted = "pareto", ParetoRecipe, ParetoRun, ParetoRun

    def checkpoints(self) -> list[str]:
        recipe = self.recipe
        return [recipe.generator, *judge_checkpoints(recipe.judge, recipe.judges, recipe.seeds)]

    def cells(self) -> list[Cell]:
        return [Cell(ParetoRun, {"seed": s, "share": share}) for s in self.recipe.seeds for share in self.recipe.shares]

    def prepare(self, group: int) -> tuple[RewardModel, RewardModel, Baseline]:
        recipe, evaluation = self.recipe, self.recipe.eval
        judge = judge_of_seed(recipe.quickstart(group), recipe.judges, self.seed_folder(group))
        baseline = baseline_of(recipe.load_generator(), group, evaluation.prompts, evaluation.samples)
        return judge, load_reward(recipe.second_judge), baseline

    def measure(self, cell: Cell, shared: tuple[RewardModel, RewardModel, Baseline]) -> ParetoRun:
        (first, second, baseline), recipe, share = shared, self.recipe, cell.key["share"]
        folder, began = self.seed_folder(baseline.seed) / f"share-{share:g}", time.monotonic()
        generator, config = recipe.load_generator(), recipe.align
        run = prepare_alignment(
            config,
            generator,
            {FOLLOW: (first, 1 - share), recipe.second: (second, share)},
            training_prompts(config, baseline.seed),
            references_folder=folder / "references",
            seed=baseline.seed,
        )
        align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
        prompts, base = baseline.prompts, baseline.pictures
        pictures, scores = sampled(generator, prompts, base.shape[1], baseline.seed, stream=STREAM, title="samples")
        arms = {"base": base, "now": pictures}
        of_first, of_second = (proxy(judge, prompts, arms, base) for judge in (first, second))
        cosines = [row["rewards_cosine"] for row in read_metrics(folder) if row["kind"] == "step"]
        remove_checkpoints(folder)
        return ParetoRun(
            **cell.key,
            seconds=time.monotonic() - began,
            first=of_first["now"].tolist(),
            first_base=of_first["base"].tolist(),
            second=of_second["now"].tolist(),
            second_base=of_second["base"].tolist(),
            oracle=means_of(scores),
            oracle_base=means_of(baseline.scores),
            diversity=diversity(pictures).tolist(),
            diversity_base=diversity(base).tolist(),
            cosine=float(np.mean(cosines)),
            alarms=[f"{row['name']} at {row['step']}" for row in read_alarms(folder)],
        )

    # -- the table -----------------------------------------------------------------------------------------------------

    def lines(self) -> list[Group[ParetoRun]]:
        rows = {share: self.rows.of(ParetoRun, share=share) for share in self.recipe.shares}
        return [Group(f"{share:g}", of, []) for share, of in rows.items() if of]

    def report(self) -> Report:
        lines, second = self.lines(), self.recipe.second
        best = dict(zip([line.name for line in lines], front([_means(line) for line in lines]), strict=True))
        columns: list[Column[Group[ParetoRun]]] = [
            Column(f"share of {second}", lambda group: float(group.name), lambda share: f"{share:g}", "share"),
            Column("seeds", lambda group: group.seeds, listed),
            Column(
                f"{FOLLOW}, P(yes)", lambda group: over_seeds(row.first for row in group.rows), _probability, FOLLOW
            ),
            Column(
                f"{second}, P(yes)", lambda group: over_seeds(row.second for row in group.rows), _probability, second
            ),
            Column("on the front", lambda group: best[group.name], lambda is_on: "yes" if is_on else "", "front"),
            Column("oracle's gain", lambda group: over_seeds(row.gain for row in group.rows), gained, "gain"),
            Column("diversity", lambda group: _kept(group.rows), percent),
            Column("cosine", lambda group: float(np.mean([r.cosine for r in group.rows])), lambda x: number(x, 1, 2)),
            Column("alarms", lambda group: [bool(row.alarms) for row in group.rows], lambda r: f"{sum(r)} of {len(r)}"),
        ]
        text = (
            f"The generator is aligned by two rewards, {FOLLOW} and {second}, whose weights add up to 1. P(yes): of "
            "samples against the base's of other noises, by each reward. On the front: no other line has more of both. "
            "Oracle's gain: in alignment with the prompt, points of 100, from the same noises. Diversity: % of the "
            "base's. Cosine: between the two rewards' advantages (of ReFL gradients), the mean over the steps. Alarms: "
            f"runs in which one rang. {OVER_SEEDS}; of one seed they are over its prompts.\n\n"
            f"![{FOLLOW} against {second}](pareto.svg)\n\n"
        )
        chart = svg("pareto", (10, 4.2), self.draw)
        return Report(text + table(columns, lines), {"table": results(columns, lines)}, {"pareto.svg": chart})

    def draw(self, figure: Figure) -> None:
        """The first reward, and the oracle's gain, over the second reward: a line through the means of the shares."""
        lines = self.lines()
        for axes, name, of_row in zip(
            figure.subplots(1, 2),
            (f"{FOLLOW}, P(yes)", "Oracle's gain, points of 100"),
            (lambda row: float(np.mean(row.first)), lambda row: 100 * float(row.gain.mean())),
            strict=True,
        ):
            across = [float(np.mean([np.mean(row.second) for row in line.rows])) for line in lines]
            up = [float(np.mean([of_row(row) for row in line.rows])) for line in lines]
            axes.plot(across, up, color=PALETTE[0], marker="o", markersize=5)
            for line in lines:
                points = [(float(np.mean(row.second)), of_row(row)) for row in line.rows]
                axes.scatter(*zip(*points, strict=True), color=PALETTE[0], s=10, alpha=0.4)
            for line, x, y in zip(lines, across, up, strict=True):
                axes.annotate(line.name, (x, y), (5, 5), textcoords="offset points")
            axes.set_title(name)
            axes.set_xlabel(f"{self.recipe.second}, P(yes); at each point its share")


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points are on the Pareto front: no other has as much of both and more of one."""
    return [
        not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        for x, y in points
    ]  # fmt: skip


def _means(line: Group[ParetoRun]) -> tuple[float, float]:
    first, second = ([np.mean(getattr(row, name)) for row in line.rows] for name in ("first", "second"))
    return float(np.mean(first)), float(np.mean(second))


def _kept(rows: Sequence[ParetoRun]) -> float:
    return float(np.mean([np.mean(row.diversity) / np.mean(row.diversity_base) for row in rows]))


def _probability(figure: Any) -> str:
    return figure_text(figure, 1, 3)


EXPERIMENT = Pareto
