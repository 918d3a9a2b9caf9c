"""Every way to align at equal seconds, by the oracle: which algorithm for which budget and which judge, over seeds.

A cell is one method with one judge and one budget under one seed; an unfinished one goes on from its last probe. The
seconds of a method's references and of its steps with a judge are measured once, and give the number of its steps. A
budget has a run of its own: the learning rate falls towards the end of a run, so that no point of a longer one is the
end of a shorter one. All methods have the same tuning: the learning rate, out of a few, on development seeds.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from experiments.algorithms_table import (
    AlgorithmRun,
    BrokenRun,
    Pace,
    TuningRun,
    algorithms_report,
    best_factors,
)
from experiments.aligned_runs import (
    AlignConfig,
    Baseline,
    ClockName,
    EvalConfig,
    baseline_of,
    outcome,
    seconds_of_steps,
    train_once,
)
from experiments.grid import Cell, Experiment, Report, Seeds, check_folder_names, remove_checkpoints
from experiments.judge_choices import JudgeAccuracy, JudgesRecipe, SeedJudges
from rewarddance.alignment.references import ReferenceRecipe
from rewarddance.alignment.safeguards import velocity_mse
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.protocols import RewardModel
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import console, peak_memory_gib
from rewarddance.types import Prompt


class TuningConfig(Recipe):
    """The same small effort for each method: a choice of its learning rate by the oracle, with the first judge.

    seeds: looked at for nothing else.
    seconds: of each run.
    factors: what the method's learning rate is multiplied with.
    prompts: held-out prompts of which the gain is taken.
    """

    seeds: Seeds
    seconds: float = Field(gt=0)
    factors: tuple[float, ...] = Field(default=(0.3, 1.0, 3.0), min_length=2)
    prompts: int = Field(default=60, ge=6)


class AlgorithmsRecipe(JudgesRecipe):
    """What is compared, and how.

    judges: what generators are aligned with; the first one is of the comparison that is done first.
    methods: by the names of their lines; all are compared with the first.
    seconds: budgets, references and all; a recipe's number of steps gives way to them. The middle one is done first.
    most_steps: that a run has, whatever its seconds.
    tuning: how learning rates are chosen; null takes those of the methods as they stand.
    pilot: steps from which the seconds of one are known.
    clock: seconds by the wall, or of the processor (on a machine that others use too).
    """

    methods: dict[str, AlignConfig] = Field(min_length=1)
    seconds: tuple[float, ...] = Field(min_length=1)
    most_steps: int | None = Field(default=None, ge=1)
    tuning: TuningConfig | None = None
    pilot: int = Field(default=2, ge=1)
    clock: ClockName = "cpu"
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> AlgorithmsRecipe:
        check_folder_names(self.methods)
        if list(self.seconds) != sorted(set(self.seconds)) or self.seconds[0] <= 0:
            raise ValueError("seconds must be rising budgets above 0")
        if self.tuning is not None and (shared := set(self.tuning.seeds) & set(self.seeds)):
            raise ValueError(f"seed {min(shared)} is both tuned on and reported")
        if self.tuning is not None and self.eval.probe_prompts > self.tuning.prompts:
            raise ValueError(f"of {self.tuning.prompts} prompts (tuning), {self.eval.probe_prompts} cannot be probed")
        return self

    @property
    def middle(self) -> float:
        return self.seconds[len(self.seconds) // 2]

    def quick(self) -> AlgorithmsRecipe:
        """The same with the smallest numbers: it shows that all of it runs, and its figures mean nothing."""
        pairs = {"train_prompts": 4, "samples": 2, "drawn": 2, "pairs": 4, "id_prompts": 6, "overlaid": 0}
        methods = {}
        for name, config in self.methods.items():
            bank = {"references": ReferenceRecipe(candidates=2, keep=1)} if config.asks_references else {}
            group = {} if config.algorithm == "dpo" else {"group_size": 2}
            short = config.model_copy(update={"prompts": 4, **bank})
            methods[name] = short.with_loop(prompts_per_step=2, **group)
        tuning = self.tuning
        if tuning is not None:
            tuning = tuning.model_copy(update={"seeds": tuning.seeds[:1], "factors": (0.5, 1.0), "prompts": 6})
        return self.model_copy(
            update={
                "seeds": self.seeds[:1],
                "num_inference_steps": 6,
                "preferences": self.preferences.model_copy(update={**pairs, "test_pairs": 2}),
                "judge": self.judge.model_copy(update={"epochs": 0.5, "batch_size": 4}),
                "judges": dict([*self.judges.items()][:2]),
                "methods": methods,
                "seconds": (600.0, 1200.0),
                "most_steps": 2,
                "tuning": tuning and tuning.model_copy(update={"seconds": 600.0}),
                "pilot": 1,
                "eval": EvalConfig(prompts=6, samples=2, probes=1, probe_prompts=6, probe_samples=2),
            }
        )


class SeedGround:
    """What the cells of a seed share: its judges and their votes, and the base's pictures of its held-out prompts."""

    def __init__(self, judges: SeedJudges, prompts: int) -> None:
        self.judges, self.prompts = judges, prompts
        self.loaded: dict[str, RewardModel] = {}

    @cached_property
    def baseline(self) -> Baseline:
        recipe, seed = self.judges.recipe, self.judges.seed
        assert isinstance(recipe, AlgorithmsRecipe)
        return baseline_of(recipe.load_generator(), seed, self.prompts, recipe.eval.samples)

    def judge(self, name: str) -> RewardModel:
        if name not in self.loaded:
            self.loaded = {name: self.judges.load(name)}
        return self.loaded[name]


class Algorithms(Experiment[AlgorithmsRecipe]):
    name, recipe_kind = "algorithms", AlgorithmsRecipe
    row_kinds: ClassVar[Any] = AlgorithmRun | TuningRun | BrokenRun | Pace | JudgeAccuracy
    counted = (AlgorithmRun, TuningRun, BrokenRun)
    of_machine = (Pace,)

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, *self.recipe.judge_checkpoints()]

    def cells(self) -> list[Cell]:
        """First the middle budget with the first judge, under the first seed method by method, each after its tuning.

        Then under the other seeds; then the other budgets, the other judges, and the rest. So what was cut off has
        whole comparisons. A method that asks no judge is not repeated with judges of the same votes.
        """
        recipe, cells = self.recipe, list[Cell]()
        first, *others = recipe.judges
        budgets = [own for own in recipe.seconds if own != recipe.middle]

        def key(seed: int, judge: str, method: str, seconds: float) -> dict[str, Any]:
            return {"seed": seed, "judge": judge, "method": method, "budget": seconds}

        def comparison(judge: str, seconds: float, seeds: Sequence[int]) -> list[Cell]:
            methods = [name for name in recipe.methods if not self.is_repeated(name, judge)]
            return [Cell(AlgorithmRun, key(seed, judge, name, seconds)) for seed in seeds for name in methods]

        for name in recipe.methods:
            if recipe.tuning is not None:
                pairs = [(seed, factor) for seed in recipe.tuning.seeds for factor in recipe.tuning.factors]
                cells += [Cell(TuningRun, {"seed": seed, "method": name, "factor": factor}) for seed, factor in pairs]
            cells.append(Cell(AlgorithmRun, key(recipe.seeds[0], first, name, recipe.middle)))
        cells += comparison(first, recipe.middle, recipe.seeds[1:])
        for seconds in budgets:
            cells += comparison(first, seconds, recipe.seeds)
        for seconds in (recipe.middle, *budgets):
            for judge in others:
                cells += comparison(judge, seconds, recipe.seeds)
        return cells

    def is_repeated(self, method: str, judge: str) -> bool:
        """Would the method do the same with this judge as with one before it?"""
        judges = [*self.recipe.judges]
        before = judges[: judges.index(judge)]
        votes = self.recipe.judges[judge].votes
        asks_none = self.recipe.methods[method].algorithm == "dpo"
        return asks_none and any(self.recipe.judges[name].votes == votes for name in before)

    def prepare(self, group: int) -> SeedGround:
        tuning, judges = self.recipe.tuning, SeedJudges(self.recipe, self.rows, self.seed_folder(group), group)
        is_tuned = tuning is not None and group in tuning.seeds
        return SeedGround(judges, tuning.prompts if tuning and is_tuned else self.recipe.eval.prompts)

    def is_done(self, cell: Cell) -> bool:
        return super().is_done(cell) or bool(self.rows.of(BrokenRun, **cell.key))

    def measure(self, cell: Cell, shared: SeedGround) -> AlgorithmRun | TuningRun | BrokenRun:
        """Align once and evaluate: the oracle, P(yes), diversity, the distance from the base, and memory.

        A run that breaks, as too high a learning rate may make it, is written down and ends nothing else.
        """
        try:
            return self.align(cell, shared)
        except RewardError as error:
            return BrokenRun(**cell.key, what=error.what)

    def align(self, cell: Cell, shared: SeedGround) -> AlgorithmRun | TuningRun:
        recipe, method = self.recipe, cell.key["method"]
        judge_name = cell.key.get("judge") or next(iter(recipe.judges))
        judge, baseline = shared.judge(judge_name), shared.baseline
        is_tuning = cell.kind is TuningRun
        factor = cell.key["factor"] if is_tuning else best_factors(self.rows).get(method, 1.0)
        budget = recipe.tuning.seconds if is_tuning and recipe.tuning else cell.key["budget"]
        config = recipe.methods[method]
        config = config.with_loop(learning_rate=factor * config.chosen.learning_rate)
        if config.algorithm == "dpo":
            config = config.with_loop(preferences=shared.judges.votes(judge_name))
        config = self.with_steps(config, method, judge_name, judge, baseline.seed, budget)
        place = f"tuning-{factor:g}" if is_tuning else f"{judge_name}-{budget:g}"
        folder = self.seed_folder(baseline.seed) / "runs" / method / place
        generator = recipe.load_generator()
        _forget_peak()
        # A run has references of its own, for they are in its seconds
        run = train_once(config, generator, judge, baseline, folder, clock=recipe.clock, evaluation=recipe.eval)
        memory = round(peak_memory_gib(), 3)
        found = run | outcome(generator, judge, baseline)
        remove_checkpoints(folder)
        found |= {"learning_rate": config.chosen.learning_rate, "memory": memory}
        found["distance"] = distance_from_base(generator, baseline.prompts[: recipe.eval.probe_prompts], baseline.seed)
        found["layouts"] = [prompt.metadata["layout"] for prompt in baseline.prompts]
        kind = TuningRun if is_tuning else AlgorithmRun
        return kind.model_validate(cell.key | found)

    def with_steps(
        self, config: AlignConfig, method: str, judge_name: str, judge: RewardModel, seed: int, seconds: float
    ) -> AlignConfig:
        """A method with the steps that the seconds give, as they were with this judge under the first seed.

        Raises InputError where the seconds do not even give its references and one step.
        """
        recipe = self.recipe
        pace = self.rows.first(Pace, method=method, judge=judge_name)
        if pace is None:
            console.print(f"the seconds of a step of {method} with the judge {judge_name}", soft_wrap=True)
            scratch = self.folder / "pace"
            shutil.rmtree(scratch, ignore_errors=True)
            before, each = seconds_of_steps(
                config, recipe.load_generator(), judge, scratch, seed, clock=recipe.clock, pilot=recipe.pilot
            )
            shutil.rmtree(scratch, ignore_errors=True)
            pace = Pace(seed=seed, method=method, judge=judge_name, before=before, each=each)
            self.rows.add(pace)
        steps = int((seconds - pace.before) / pace.each)
        if steps < 1:
            raise InputError(
                f"{method} takes {pace.before:.1f} seconds before its first step and {pace.each:.1f} for each, and may "
                f"take {seconds:g}.",
                "Raise seconds, or lower the method's references.candidates, prompts or prompts_per_step.",
            )
        return config.with_loop(steps=min(steps, recipe.most_steps or steps)).with_probes(recipe.eval.probes)

    def report(self) -> Report:
        return algorithms_report(self.rows, [*self.recipe.methods], [*self.recipe.judges])


def distance_from_base(generator: PipelineGenerator, prompts: Sequence[Prompt], seed: int) -> float:
    """Mean squared distance of the velocity from the base's, along the base's own way from noise to picture.

    The same measure for all algorithms: what they log of their distance is at other noise levels each.
    """
    total = 0.0
    with torch.no_grad():
        condition = generator.encode(prompts)
        x_t = generator.init_noise([1000 * seed + i for i in range(len(prompts))])
        for step in range(generator.num_steps):
            v = generator.predict(x_t, step, condition)
            with generator.as_before_training():
                v_base = generator.predict(x_t, step, condition)
            total += velocity_mse(v, v_base).item() / generator.num_steps
            x_t = generator.advance(x_t, v_base, step)
    return total


def _forget_peak() -> None:
    """Let the peak of memory begin anew, where the system can (Linux, glibc): what was freed is given back first."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


EXPERIMENT = Algorithms
