"""Reward scaling: what a judge's size and context do to its accuracy, to a generator aligned with it, and to a search.

A judge is a size in a context. Under each seed every judge learns from the same preferences; then generators are
aligned with it, it chooses among the same samples, and it leads a search over paths. A cell is one of these; the
paper's claims are put to the rows of all (its Tables 2, 7 and 9 and Figure 5).
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from experiments.aligned_runs import (
    CLOCKS,
    STREAM,
    AlignConfig,
    Baseline,
    EvalConfig,
    baseline_of,
    outcome,
    seconds_of_steps,
    train_once,
)
from experiments.grid import Cell, Experiment, GridRecipe, Report, check_folder_names, remove_checkpoints
from experiments.hacking import windows
from experiments.judges import measure_judge
from experiments.judges_table import JudgeRun
from experiments.scaling_rows import ArmRun, ChoiceRun, Pace, StressRun
from experiments.scaling_table import scaling_report
from experiments.trained_judges import seed_preferences, with_options
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.evaluation.findings import StressFigures
from rewarddance.evaluation.stress import stress
from rewarddance.jobs.quickstart_figures import means_of, sampled, scored
from rewarddance.protocols import needs_reference
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import knockout, tournament
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.config import Recipe
from rewarddance.search.recipe import Budget
from rewarddance.search.run import Search, read_method
from rewarddance.types import Question


class Arm(Recipe):
    """How generators are aligned with every judge.

    config: the algorithm with its recipe.
    seconds: of the processor, references and all, from which the number of steps follows; None takes the recipe's.
    safeguards: whether it has any; a run without shows when the reward is hacked.
    """

    config: AlignConfig
    seconds: float | None = Field(default=None, gt=0)
    safeguards: bool = True


class ScalingRecipe(GridRecipe):
    """What is compared.

    sizes: a name and a checkpoint for each judge size, small ones first.
    contexts: a name and what is different for each context or kind of reward, in keys of `judge`.
    context_sizes: the sizes that the contexts after the first are measured at; the first is measured at all.
    arms: alignments, by name.
    best_of: samples that a judge chooses the best of.
    paths: options of the search over paths, which may spend as many forwards as `best_of` samples; null for none.
    stress_questions: of the test pairs, on how many each judge is stressed; 0 for none.
    window: steps of the sliding window in which the reward's spread is taken.
    """

    sizes: dict[str, str] = Field(min_length=2)
    contexts: dict[str, dict[str, Any]] = Field(min_length=1)
    context_sizes: tuple[str, ...] = ()
    arms: dict[str, Arm] = Field(min_length=1)
    best_of: int = Field(default=16, ge=2)
    paths: dict[str, Any] | None = Field(default_factory=dict)
    stress_questions: int = Field(default=48, ge=0)
    window: int = Field(default=16, ge=2)
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> ScalingRecipe:
        check_folder_names((*self.sizes, *self.contexts, *self.arms))
        if unknown := [size for size in self.context_sizes if size not in self.sizes]:
            raise ValueError(f"context_sizes names {unknown[0]!r}, which is not among the sizes")
        if self.eval.samples > self.best_of:
            raise ValueError(f"of {self.best_of} samples a prompt, {self.eval.samples} cannot be the base's")
        for context in self.contexts:
            self.training(context)
        if self.paths is not None:
            read_method("paths", self.paths)
        return self

    def training(self, context: str, base: str | None = None) -> JudgeRecipe:
        """How a judge of a context is trained. Raises InputError naming the wrong key."""
        return with_options(self.judge, self.contexts[context], f"the context {context!r}", base)

    def quick(self) -> ScalingRecipe:
        """The same with the smallest numbers: it shows that all of it runs, and its figures mean nothing."""
        pairs = {"train_prompts": 4, "samples": 2, "drawn": 2, "pairs": 4, "id_prompts": 6, "ood_prompts": 6}
        arms = {
            name: arm.model_copy(
                update={
                    "seconds": None,
                    "config": arm.config.model_copy(
                        update={
                            "prompts": 4,
                            "references": arm.config.references.model_copy(update={"candidates": 2, "keep": 1}),
                        }
                    ).with_loop(steps=2, prompts_per_step=2, group_size=2),
                }
            )
            for name, arm in self.arms.items()
        }
        return self.model_copy(
            update={
                "seeds": self.seeds[:2],
                "num_inference_steps": 6,
                "preferences": self.preferences.model_copy(update={**pairs, "overlaid": 0, "test_pairs": 2}),
                "judge": self.judge.model_copy(update={"epochs": 0.5, "batch_size": 4}),
                "arms": arms,
                "best_of": 8,
                "paths": None if self.paths is None else {"paths": 1, "copies": 2},
                "stress_questions": min(2, self.stress_questions),
                "window": 2,
                "eval": EvalConfig(prompts=6, samples=2, probes=2, probe_prompts=6, probe_samples=2),
            }
        )

    @property
    def judges(self) -> list[tuple[str, str]]:
        """(size, context) of every judge: sizes in the first context, then the other contexts."""
        first, *others = self.contexts
        return [(size, first) for size in self.sizes] + [(s, c) for c in others for s in self.context_sizes]


class SeedGround:
    """What the cells of a seed share: its preferences, and the base's samples of its held-out prompts."""

    def __init__(self, recipe: ScalingRecipe, seed: int, folder: Path) -> None:
        self.recipe, self.seed, self.folder = recipe, seed, folder

    @cached_property
    def preferences(self) -> dict[str, PreferenceSet]:
        quickstart = self.recipe.quickstart(self.seed, judge=JudgeRecipe())
        return seed_preferences(quickstart, self.folder)

    @cached_property
    def pool(self) -> Baseline:
        """`best_of` samples of each held-out prompt."""
        return baseline_of(self.recipe.load_generator(), self.seed, self.recipe.eval.prompts, self.recipe.best_of)

    @cached_property
    def baseline(self) -> Baseline:
        """The first samples of the pool, which aligned generators are compared with."""
        count = self.recipe.eval.samples
        prompts = self.pool.prompts
        pictures, scores = sampled(self.recipe.load_generator(), prompts, count, self.seed, stream=STREAM)
        return Baseline(self.seed, prompts, pictures, scores)


class Scaling(Experiment[ScalingRecipe]):
    name, recipe_kind = "scaling", ScalingRecipe
    row_kinds: ClassVar[Any] = JudgeRun | ArmRun | ChoiceRun | StressRun | Pace
    counted = (JudgeRun, ArmRun, ChoiceRun, StressRun)
    of_machine = (Pace,)

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, *self.recipe.sizes.values()]

    def cells(self) -> list[Cell]:
        """Judges, their choices, stress and first arm seed by seed, then arm by arm, and the searches over paths last.

        So what was cut off has whole comparisons over all seeds.
        """
        recipe = self.recipe
        first, *others = recipe.arms
        judges = {
            seed: [{"seed": seed, "size": size, "cell": context} for size, context in recipe.judges]
            for seed in recipe.seeds
        }
        cells: list[Cell] = []
        for keys in judges.values():
            cells += [Cell(JudgeRun, key) for key in keys]
            cells += [Cell(ChoiceRun, key | {"way": f"best of {recipe.best_of}"}) for key in keys]
            cells += [Cell(StressRun, key) for key in keys if recipe.stress_questions]
            cells += [Cell(ArmRun, key | {"arm": first}) for key in keys]
        for arm in others:
            cells += [Cell(ArmRun, key | {"arm": arm}) for keys in judges.values() for key in keys]
        if recipe.paths is not None:
            cells += [Cell(ChoiceRun, key | {"way": "paths"}) for keys in judges.values() for key in keys]
        return cells

    def prepare(self, group: int) -> SeedGround:
        return SeedGround(self.recipe, group, self.seed_folder(group))

    def measure(self, cell: Cell, shared: SeedGround) -> Any:
        measures = {JudgeRun: self.train, ArmRun: self.align, ChoiceRun: self.choose, StressRun: self.stress}
        return measures[cell.kind](cell, shared)

    def report(self) -> Report:
        return scaling_report(self.rows, self.recipe.sizes, self.recipe.contexts)

    # -- the cells -----------------------------------------------------------------------------------------------------

    def judge_folder(self, cell: Cell) -> Path:
        return self.seed_folder(cell.key["seed"]) / cell.key["size"] / cell.key["cell"]

    def judge(self, cell: Cell, shared: SeedGround) -> Judge:
        """The judge of a cell, trained anew where its folder is gone: training is the same to the byte."""
        folder = self.judge_folder(cell)
        if not (folder / "reward").is_dir():
            self.train(Cell(JudgeRun, {name: cell.key[name] for name in ("seed", "size", "cell")}), shared)
        return load_reward(str(folder / "reward"))

    def train(self, cell: Cell, shared: SeedGround) -> JudgeRun:
        """Train one judge, and ask it and its untrained base about the test sets."""
        recipe = self.recipe.training(cell.key["cell"], self.recipe.sizes[cell.key["size"]])
        sets = {name: list(pairs) for name, pairs in shared.preferences.items()}
        row = measure_judge(cell, recipe, sets, self.judge_folder(cell), zero_shot=True)
        remove_checkpoints(self.judge_folder(cell))
        return row

    def choose(self, cell: Cell, shared: SeedGround) -> ChoiceRun:
        """The oracle of the samples that a judge chooses, and of those that a search over paths with it finds."""
        clock, pool, judge = CLOCKS["cpu"], shared.pool, self.judge(cell, shared)
        began = clock()
        if cell.key["way"] == "paths":
            search = Search(
                self.recipe.load_generator(),
                judge,
                read_method("paths", self.recipe.paths or {}),
                Budget(samples=self.recipe.best_of),
                seed=cell.key["seed"],
                runners_up=0,
                clock=clock,
            )
            winners = []
            for start in range(0, len(pool.prompts), 8):
                part = range(start, min(start + 8, len(pool.prompts)))
                winners += [found.winner.pixels for found in search([pool.prompts[i] for i in part], part)]
            pictures = torch.stack(winners).unsqueeze(1)
            oracle = means_of(scored(pictures, pool.prompts))
        else:
            rank = knockout if needs_reference(judge) else tournament
            best = [
                int(ranking.order[0]) for ranking in rank(judge, pool.prompts, [list(own) for own in pool.pictures])
            ]
            oracle = [row[place].alignment for row, place in zip(pool.scores, best, strict=True)]
        seconds = round(clock() - began, 1)
        return ChoiceRun(**cell.key, oracle_base=means_of(pool.scores), oracle=oracle, seconds=seconds)

    def stress(self, cell: Cell, shared: SeedGround) -> StressRun:
        """How much the judge's margin is won by what makes no picture better."""
        began, judge = CLOCKS["cpu"](), self.judge(cell, shared)
        pairs = list(shared.preferences["id"])
        pairs = pairs[:: max(1, len(pairs) // self.recipe.stress_questions)][: self.recipe.stress_questions]
        asked = [Question(pair.prompt, pair.second, pair.first if needs_reference(judge) else None) for pair in pairs]
        figures = margins_won(stress(judge, asked))
        return StressRun(**cell.key, figures=figures, seconds=round(CLOCKS["cpu"]() - began, 1))

    def align(self, cell: Cell, shared: SeedGround) -> ArmRun:
        """Align once and evaluate, with what the run logged of its reward's spread."""
        arm, judge, baseline = self.recipe.arms[cell.key["arm"]], self.judge(cell, shared), shared.baseline
        config = self.with_steps(cell, arm, judge).with_probes(self.recipe.eval.probes)
        folder = self.judge_folder(cell) / cell.key["arm"]
        generator, evaluation = self.recipe.load_generator(), self.recipe.eval
        run = train_once(config, generator, judge, baseline, folder, clock="cpu", evaluation=evaluation)
        run |= outcome(generator, judge, baseline)
        logged = read_metrics(folder)
        remove_checkpoints(folder)
        return ArmRun.model_validate(
            cell.key | run | {"windows": windows(logged, self.recipe.window), "safeguards": arm.safeguards}
        )

    def with_steps(self, cell: Cell, arm: Arm, judge: Judge) -> AlignConfig:
        """An arm with the steps that its seconds give with a judge of this size, as they were under the first seed.

        Raises InputError where they do not give one step.
        """
        if arm.seconds is None:
            return arm.config
        key = {name: cell.key[name] for name in ("size", "cell", "arm")}
        pace = self.rows.first(Pace, **key)
        if pace is None:
            scratch = self.folder / "pace"
            shutil.rmtree(scratch, ignore_errors=True)
            before, each = seconds_of_steps(
                arm.config, self.recipe.load_generator(), judge, scratch, cell.key["seed"], clock="cpu", pilot=2
            )
            shutil.rmtree(scratch, ignore_errors=True)
            pace = Pace(seed=cell.key["seed"], **key, before=before, each=each)
            self.rows.add(pace)
        steps = int((arm.seconds - pace.before) / pace.each)
        if steps < 1:
            raise InputError(
                f"{key['arm']} with the judge {key['size']} takes {pace.before + pace.each:.0f} seconds for one step.",
                f"Raise its seconds above {arm.seconds:g}.",
            )
        return arm.config.with_loop(steps=steps)


def margins_won(found: StressFigures) -> dict[str, float | None]:
    """What is won along the gradient and by each disturbance, in deviations of the unchanged candidates' margins.

    So rewards of different scales can be compared. With the share of the spread that is left among the best.
    """
    pixels = {} if isinstance(found.pixels, str) else found.pixels
    won = {f"within {radius}/255": own.margin.mean for radius, own in pixels.items()}
    won |= {name: own.margin.mean for name, own in found.disturbances.items()}
    left = None if isinstance(found.spread_left, str) else found.spread_left.mean
    return {name: mean / found.spread for name, mean in won.items()} | {"spread left at the top": left}


EXPERIMENT = Scaling
