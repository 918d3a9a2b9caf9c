"""Two rewards of edits that pull apart, at several weights: how much of the one is paid for with the other.

One judge has learned from votes on how much of the change was made ("follow"), the other from votes on how much of all
else was kept ("keep"). A cell is one alignment by both at one weight under one seed. At the ends stand the two ways in
which an editor is hacked: one that changes nothing keeps all, and one that repaints everything may follow all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from experiments.aligned_runs import (
    STREAM,
    AlarmRecord,
    AlignConfig,
    Baseline,
    EvalConfig,
    baseline_of,
    training_prompts,
)
from experiments.grid import Cell, Experiment, Report, Row, Seeds, TimedRow, remove_checkpoints
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
    Column,
    Group,
    gained,
    listed,
    markdown_table,
    over_seeds,
    percent,
    points,
    results,
    share_over_seeds,
    svg,
    table,
)
from experiments.trained_judges import by_prompt, check_given, judge_checkpoints, train
from rewarddance.alignment.algorithms import align_generator, prepare_alignment
from rewarddance.data.image_stats import source_distances
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.evaluation.hacking import HackingVerdict, diversity, hacking_verdict
from rewarddance.evaluation.statistics import interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.quickstart_figures import Scores, means_of, proxy, sampled
from rewarddance.report.formatting import figure_text, number
from rewarddance.report.run_folder import read_alarms, read_metrics
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.edits.preferences import EditRecipe
from rewarddance.shapeworld.preferences import Pool
from rewarddance.shapeworld.tasks import WorldTask, task_of
from rewarddance.types import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Share = Annotated[float, Field(ge=0, le=1)]
RewardName = Literal["follow", "keep"]
VOTES: dict[RewardName, Literal["following", "keeping"]] = {"follow": "following", "keep": "keeping"}
"""The rewards by name, with what the votes of their judges are about."""
LOST = 0.1
"""By how much following or keeping must have fallen at a probe to be called lost."""


class ParetoRecipe(Recipe):
    """What is weighed against what.

    seeds: each has edits, votes, judges, prompts and noises of its own.
    generator_options: further ones of `load_generator`.
    preferences, judge: the votes, and how the two judges of a seed learn from them.
    judges: for a seed, its folder in an earlier run of this experiment, whose judges are taken.
    shares: of keep; follow has what is left of 1.
    align: the algorithm.
    """

    seeds: Seeds = (0, 1, 2)
    generator: str = "shapeworld-editor"
    num_inference_steps: int = Field(default=10, ge=2)
    generator_options: dict[str, Any] = Field(default_factory=dict)
    preferences: EditRecipe = EditRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    judges: dict[int, str] = Field(default_factory=dict)
    shares: tuple[Share, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)
    align: AlignConfig
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> ParetoRecipe:
        check_given(self.judges, self.seeds)
        if len(set(self.shares)) < len(self.shares):
            raise ValueError("a share stands twice among shares")
        return self

    def load_generator(self) -> PipelineGenerator:
        return load_generator(self.generator, self.num_inference_steps, None, **self.generator_options)

    def task(self, reward: RewardName = "follow") -> WorldTask:
        """Edits, with votes as one of the judges learns from."""
        return task_of("edit", self.preferences.model_copy(update={"ordered_by": VOTES[reward]}))


class JudgeTest(Row):
    """A judge on held-out pairs: by prompt, the share that it orders as the oracle's following, and keeping, does."""

    row: Literal["judge"] = "judge"
    judge: RewardName
    following: list[float]
    keeping: list[float]


class EditProbe(BaseModel):
    """The oracle's means of the averaged editor at a step, in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    following: float
    keeping: float
    oracle: float


class Edited(BaseModel):
    """Each held-out prompt's means [P] of an editor's samples.

    follow, keep: P(yes) by each reward, against the base's samples of other noises.
    following, keeping, oracle: the oracle's, the last its alignment.
    diversity: the distance of two samples; distance: of a sample from its source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    follow: list[float]
    keep: list[float]
    following: list[float]
    keeping: list[float]
    oracle: list[float]
    diversity: list[float]
    distance: list[float]


class ParetoRun(TimedRow):
    """One finished cell.

    share: of keep. cosine: how far the advantages of the two rewards went the same way, the mean over the steps.
    source_distance: that of each step's samples from their sources.
    """

    row: Literal["run"] = "run"
    share: float
    now: Edited
    base: Edited
    cosine: float
    source_distance: list[float]
    probes: list[EditProbe]
    alarms: list[AlarmRecord]

    def gain(self, name: str) -> np.ndarray:
        """Of a figure of `Edited` over the base, by prompt."""
        return np.array(getattr(self.now, name)) - np.array(getattr(self.base, name))

    @property
    def verdict(self) -> HackingVerdict:
        """By the rewards in their shares, and the oracle's alignment."""
        proxy_gain = (1 - self.share) * self.gain("follow") + self.share * self.gain("keep")
        before, after = float(np.mean(self.base.diversity)), float(np.mean(self.now.diversity))
        return hacking_verdict(interval(proxy_gain), interval(self.gain("oracle")), before, after)

    @property
    def lost(self) -> int | None:
        """The first probe at which following or keeping has fallen by LOST since the first; None where none has."""
        first = self.probes[0]

        def fell(probe: EditProbe) -> bool:
            return max(first.following - probe.following, first.keeping - probe.keeping) >= LOST

        return next((probe.step for probe in self.probes if fell(probe)), None)


Shared = tuple[dict[str, Judge], Baseline, Edited]


class Pareto(Experiment[ParetoRecipe]):
    name, recipe_kind, row_kinds, counted = "pareto", ParetoRecipe, ParetoRun | JudgeTest, ParetoRun

    def checkpoints(self) -> list[str]:
        recipe = self.recipe
        given = {seed: f"{folder}/{reward}/judge/reward" for seed, folder in recipe.judges.items() for reward in VOTES}
        return [recipe.generator, *judge_checkpoints(recipe.judge, given, recipe.seeds)]

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an unfinished table lacks whole seeds. Judges are tested where they are trained."""
        cells = []
        for seed in self.recipe.seeds:
            if seed not in self.recipe.judges:
                cells += [Cell(JudgeTest, {"seed": seed, "judge": reward}) for reward in VOTES]
            cells += [Cell(ParetoRun, {"seed": seed, "share": share}) for share in self.recipe.shares]
        return cells

    def prepare(self, group: int) -> Shared:
        recipe, evaluation = self.recipe, self.recipe.eval
        if group not in recipe.judges:
            self.train_judges(group)
        folder = Path(recipe.judges.get(group, self.seed_folder(group)))
        judges = {reward: load_reward(str(folder / reward / "judge" / "reward")) for reward in VOTES}
        baseline = baseline_of(recipe.load_generator(), group, evaluation.prompts, evaluation.samples, recipe.task())
        return judges, baseline, edited(judges, baseline, baseline.pictures, baseline.scores)

    def train_judges(self, seed: int) -> None:
        """Both judges of a seed, each once, from votes on the same edits."""
        recipe, pools = self.recipe, dict[str, list[Pool]]()
        for reward in VOTES:
            folder, task = self.seed_folder(seed) / reward, recipe.task(reward)
            if (folder / "judge" / "reward").exists():
                continue
            pools = pools or task.pools(recipe.load_generator(), seed)
            for name, pairs in task.preferences(pools, seed).items():
                write_preferences(pairs, folder / "preferences" / f"{name}.jsonl")
            train(recipe.judge, PreferenceSet(folder / "preferences" / "train.jsonl"), folder / "judge", seed)
            remove_checkpoints(folder / "judge")

    def measure(self, cell: Cell, shared: Shared) -> ParetoRun | JudgeTest:
        if cell.kind is JudgeTest:
            judge, folder = shared[0][cell.key["judge"]], self.seed_folder(cell.key["seed"])
            sets = {
                votes: PreferenceSet(folder / reward / "preferences" / "id.jsonl") for reward, votes in VOTES.items()
            }
            right = {votes: by_prompt(judge, list(pairs)) for votes, pairs in sets.items()}
            return JudgeTest.model_validate(cell.key | right)
        (judges, baseline, base), recipe, share = shared, self.recipe, cell.key["share"]
        folder, began = self.seed_folder(baseline.seed) / f"share-{share:g}", time.monotonic()
        generator, config = recipe.load_generator(), recipe.align.with_probes(recipe.eval.probes)
        torch.manual_seed(baseline.seed)
        run = prepare_alignment(
            config,
            generator,
            {"follow": (judges["follow"], 1 - share), "keep": (judges["keep"], share)},
            training_prompts(config, baseline.seed, recipe.task()),
            references_folder=folder / "references",
            seed=baseline.seed,
        )

        def probe() -> dict[str, float]:
            prompts, count = baseline.prompts[: recipe.eval.probe_prompts], recipe.eval.probe_samples
            _, scores = sampled(generator, prompts, count, baseline.seed, stream=STREAM, task=recipe.task())
            names = {"oracle": "alignment"} | {part: part for part in recipe.task().parts}
            return {name: float(np.mean(means_of(scores, score))) for name, score in names.items()}

        align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"), probe=probe)
        pictures, scores = sampled(
            generator,
            baseline.prompts,
            baseline.pictures.shape[1],
            baseline.seed,
            stream=STREAM,
            title="samples",
            task=recipe.task(),
        )
        logged = read_metrics(folder)
        steps = [row for row in logged if row["kind"] == "step"]
        remove_checkpoints(folder)
        return ParetoRun(
            **cell.key,
            seconds=time.monotonic() - began,
            now=edited(judges, baseline, pictures, scores),
            base=base,
            cosine=float(np.mean([row["rewards_cosine"] for row in steps])),
            source_distance=[row["source_distance"] for row in steps],
            probes=[
                EditProbe(**{name: row[name] for name in EditProbe.model_fields})
                for row in logged
                if row["kind"] == "probe"
            ],
            alarms=[
                AlarmRecord(step=row["step"], name=row["name"], stop=bool(row["stop"])) for row in read_alarms(folder)
            ],
        )

    # -- the tables ----------------------------------------------------------------------------------------------------

    def lines(self) -> list[Group[ParetoRun]]:
        rows = {share: self.rows.of(ParetoRun, share=share) for share in sorted(self.recipe.shares)}
        return [Group(f"{share:g}", of, []) for share, of in rows.items() if of]

    def report(self) -> Report:
        lines = self.lines()
        best = dict(zip([line.name for line in lines], front([_means(line) for line in lines]), strict=True))

        def over(figure: Callable[[ParetoRun], Any]) -> Callable[[Group[ParetoRun]], Any]:
            return lambda group: over_seeds(figure(row) for row in group.rows)

        columns: list[Column[Group[ParetoRun]]] = [
            Column("share of keep", lambda group: float(group.name), lambda share: f"{share:g}", "share"),
            Column("seeds", lambda group: group.seeds, listed),
            Column("follow, P(yes)", over(lambda row: row.now.follow), _probability, "follow"),
            Column("keep, P(yes)", over(lambda row: row.now.keep), _probability, "keep"),
            Column("on the front", lambda group: best[group.name], lambda is_on: "yes" if is_on else "", "front"),
            Column("following", over(lambda row: row.gain("following")), gained),
            Column("keeping", over(lambda row: row.gain("keeping")), gained),
            Column("alignment", over(lambda row: row.gain("oracle")), gained),
            Column("distance", lambda group: _ratio(group.rows, "distance"), percent),
            Column("diversity", lambda group: _ratio(group.rows, "diversity"), percent),
            Column("cosine", lambda group: float(np.mean([r.cosine for r in group.rows])), lambda x: number(x, 1, 2)),
            Column("alarms", lambda group: [bool(row.alarms) for row in group.rows], lambda r: f"{sum(r)} of {len(r)}"),
            Column(
                "hacked", lambda group: [row.verdict.hacked for row in group.rows], lambda r: f"{sum(r)} of {len(r)}"
            ),
        ]
        base = [row.base for row in {row.seed: row for row in self.rows.of(ParetoRun)}.values()]
        parts = ("following", "keeping", "oracle")
        before = (
            ", ".join(points(share_over_seeds(getattr(own, name) for own in base)) for name in parts) if base else ""
        )
        text = (
            "An editor is aligned by two judges, of following and of keeping, whose weights add up to 1. P(yes): of "
            "its samples against the base's of other noises, by each judge. On the front: no other line has more of "
            "both. Following, keeping, alignment: the oracle's, gains over the base from the same noises, in points "
            f"(base: {before}). Distance: of a sample from its source, diversity: of two samples, % of the base's. "
            "Cosine: between the two judges' advantages, the mean over the steps. Alarms, hacked: runs in which one "
            f"rang, and which are called hacked. {OVER_SEEDS}; of one seed they are over its prompts.\n\n"
            "![What is followed against what is kept](pareto.svg)\n\n"
        )
        text += f"{table(columns, lines)}\n{self.judges()}\n{self.runs()}"
        chart = svg("pareto", (10, 4.2), self.draw)
        return Report(text, {"table": results(columns, lines)}, {"pareto.svg": chart})

    def judges(self) -> str:
        """How often each judge orders held-out pairs as the oracle does, by following and by keeping."""
        rows = []
        for reward in VOTES:
            if tests := self.rows.of(JudgeTest, judge=reward):
                figures = (share_over_seeds(getattr(test, votes) for test in tests) for votes in VOTES.values())
                rows.append([f"{reward}: its pairs in order", *map(points, figures)])
        return markdown_table(["judge, % of held-out pairs", "by following", "by keeping"], rows) if rows else ""

    def runs(self) -> str:
        """Each run: when the oracle saw following or keeping fall, when alarms rang, the distance from the source."""
        rows = []
        for run in sorted(self.rows.of(ParetoRun), key=lambda row: (row.share, row.seed)):
            quarter = max(1, len(run.source_distance) // 4)
            start, end = (
                float(np.mean(part)) for part in (run.source_distance[:quarter], run.source_distance[-quarter:])
            )
            rows.append(
                [
                    f"{run.share:g}",
                    str(run.seed),
                    *(number(float(np.mean(run.gain(name))), sign="+") for name in ("following", "keeping")),
                    "" if run.lost is None else str(run.lost),
                    ", ".join(f"{alarm.name} at {alarm.step}" for alarm in run.alarms),
                    f"{number(start, 1, 3)} to {number(end, 1, 3)}",
                    "yes" if run.verdict.hacked else "undecided" if run.verdict.undecided else "",
                ]
            )
        heads = ["share of keep", "seed", "following", "keeping", "fell by 10 points at", "alarms"]
        return markdown_table([*heads, "distance from the source, first to last quarter", "hacked"], rows)

    def draw(self, figure: Figure) -> None:
        """Follow over keep, by the judges and by the oracle: a line through the means of the shares."""
        lines = self.lines()
        sides = (
            ("By the judges, P(yes)", lambda row, name: float(np.mean(getattr(row.now, name)))),
            ("By the oracle, points of 100", lambda row, name: 100 * float(np.mean(getattr(row.now, VOTES[name])))),
        )
        for axes, (title, of_row) in zip(figure.subplots(1, 2), sides, strict=True):
            means = [
                [float(np.mean([of_row(r, name) for r in line.rows])) for name in ("keep", "follow")] for line in lines
            ]
            axes.plot(*np.array(means).reshape(-1, 2).T, color=PALETTE[0], marker="o", markersize=5)
            for line, (x, y) in zip(lines, means, strict=True):
                for row in line.rows:
                    axes.scatter(of_row(row, "keep"), of_row(row, "follow"), color=PALETTE[0], s=10, alpha=0.4)
                axes.annotate(line.name, (x, y), (5, 5), textcoords="offset points")
            axes.set_title(title)
            axes.set_xlabel("keep; at each point its share")
            axes.set_ylabel("follow")


def edited(judges: dict[str, Judge], baseline: Baseline, pictures: Tensor, scores: Scores) -> Edited:
    """The figures of an editor's samples [P, N, 1, C, H, W]."""
    asked = {
        name: proxy(judge, baseline.prompts, {"now": pictures}, baseline.pictures) for name, judge in judges.items()
    }
    return Edited(
        follow=asked["follow"]["now"].tolist(),
        keep=asked["keep"]["now"].tolist(),
        following=means_of(scores, "following"),
        keeping=means_of(scores, "keeping"),
        oracle=means_of(scores),
        diversity=diversity(pictures).tolist(),
        distance=_from_sources(baseline.prompts, pictures),
    )


def _from_sources(prompts: Sequence[Prompt], pictures: Tensor) -> list[float]:
    return [
        float(source_distances(group, [prompt.image] * len(group)).mean())
        for prompt, group in zip(prompts, pictures, strict=True)
    ]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points are on the Pareto front: no other has as much of both and more of one."""
    return [
        not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        for x, y in points
    ]  # fmt: skip


def _means(line: Group[ParetoRun]) -> tuple[float, float]:
    follow, keep = ([np.mean(getattr(row.now, name)) for row in line.rows] for name in VOTES)
    return float(np.mean(follow)), float(np.mean(keep))


def _ratio(rows: Sequence[ParetoRun], name: str) -> float:
    """A figure of the samples as a share of the base's."""
    return float(np.mean([np.mean(getattr(row.now, name)) / np.mean(getattr(row.base, name)) for row in rows]))


def _probability(figure: Any) -> str:
    return figure_text(figure, 1, 3)


EXPERIMENT = Pareto
