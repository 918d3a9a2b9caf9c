"""Search methods: how good a winner each finds in equal seconds, the judge's time included.

A cell is one method with one judge at one budget under one seed. Beside the table stand the curves of oracle and proxy
as N grows, and how often a knockout's winner is among the tournament's best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from experiments.aligned_runs import CLOCKS, ClockName
from experiments.grid import Cell, Experiment, GridRecipe, Report, check_folder_names, remove_checkpoints
from experiments.search_table import BASE, PICTURES, JudgeAccuracy, Meeting, Pool, SearchRun, search_report
from experiments.trained_judges import seed_preferences
from rewarddance.data.media import write_picture
from rewarddance.evaluation.agreement import agreement
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import knockout, tournament
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.runtime.tracking import Metrics, progress_bar
from rewarddance.search.batch import noise_seed
from rewarddance.search.budget import Spent
from rewarddance.search.recipe import Budget, JudgingName
from rewarddance.search.run import Search, read_method
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Question, Verdict


class Arm(Recipe):
    """One row of the table: a method with its options, and the kind of judge it asks.

    at: other options, by budget; null for one that is too small for the method.
    """

    method: str
    judge: str = "pointwise"
    judging: JudgingName | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    at: dict[int, dict[str, Any] | None] = Field(default_factory=dict)

    def read(self, multiple: int) -> Recipe | None:
        options = self.at.get(multiple, {})
        return None if options is None else read_method(self.method, self.options | options)


class PoolRecipe(Recipe):
    """Pictures for the curves.

    prompts, n: the first of the prompts, and pictures of each.
    meeting: how many of them meet in a tournament.
    draws: in how many orders the knockout among them is held.
    """

    prompts: int = Field(default=18, ge=1)
    n: int = Field(default=256, ge=2)
    meeting: int = Field(default=16, ge=3)
    draws: int = Field(default=20, ge=1)


class SearchRecipe(GridRecipe):
    """Which methods are compared, and how.

    judges: strength -> kind -> what is different from `judge` in its training, or {reward: FOLDER} for one that is
        trained already.
    annotators: who votes on a strength's training pairs, where not those of `preferences`.
    multiples: budgets, in times the seconds that one plain sample takes without a judge.
    prompts: held-out ones, the categories in turn.
    base_samples: plain samples a prompt that the mean of one sample is taken from.
    clock: seconds by the wall, or of the processor (on a machine that others use too).
    gallery_prompts: prompts whose winners are drawn, at the middle budget with the last of the judges.
    """

    preferences: PreferenceRecipe = PreferenceRecipe(reasons=True)
    judges: dict[str, dict[str, dict[str, Any]]] = Field(min_length=1)
    annotators: dict[str, AnnotatorRecipe] = Field(default_factory=dict)
    arms: dict[str, Arm] = Field(min_length=1)
    multiples: tuple[int, ...] = Field(default=(4, 16, 64), min_length=1)
    prompts: int = Field(default=36, ge=6)
    base_samples: int = Field(default=8, ge=1)
    pool: PoolRecipe = PoolRecipe()
    batch_size: int = Field(default=96, ge=1)
    prompts_at_once: int = Field(default=6, ge=1)
    clock: ClockName = "wall"
    gallery_prompts: int = Field(default=6, ge=1)

    @model_validator(mode="after")
    def _is_whole(self) -> SearchRecipe:
        check_folder_names(self.judges)
        for strength, kinds in self.judges.items():
            for name, arm in self.arms.items():
                if arm.judge not in kinds:
                    raise ValueError(f"the arm {name!r} asks a {arm.judge} judge, and {strength!r} has none")
            for kind in kinds:
                self.training(strength, kind)
        if unknown := sorted(set(self.annotators) - set(self.judges)):
            raise ValueError(f"there are annotators for {unknown[0]!r}, and no judges of that strength")
        if BASE in self.arms:
            raise ValueError(f"{BASE!r} is the name of the samples that all arms are compared with")
        if self.pool.meeting > self.pool.n:
            raise ValueError(f"of {self.pool.n} pictures in the pool, {self.pool.meeting} cannot meet")
        for arm in self.arms.values():
            for multiple in self.multiples:
                arm.read(multiple)
        return self

    def training(self, strength: str, kind: str) -> JudgeRecipe | None:
        """How a judge is trained; None where its folder is given. Raises InputError naming the key that is wrong."""
        options = self.judges[strength][kind]
        if set(options) == {"reward"}:
            return None
        content = self.judge.model_dump() | options | {"kind": kind}
        return parse_recipe(JudgeRecipe, content, f"the judge {strength} {kind}")


@dataclass
class Seed:
    """What a seed's cells share. judges: by strength and kind, those that were asked; pool: its pictures once drawn."""

    seed: int
    generator: Generator
    prompts: list[str]
    judges: dict[str, dict[str, Judge]] = field(default_factory=dict)
    pool: list[Tensor] = field(default_factory=list)


class SearchMethods(Experiment[SearchRecipe]):
    name, recipe_kind, counted = "search", SearchRecipe, SearchRun
    row_kinds = SearchRun | JudgeAccuracy | Pool | Meeting

    def checkpoints(self) -> list[str]:
        given = [
            judge["reward"] for kinds in self.recipe.judges.values() for judge in kinds.values() if "reward" in judge
        ]
        return [self.recipe.generator, self.recipe.judge.base, *given]

    def cells(self) -> list[Cell]:
        recipe, cells = self.recipe, []
        for seed in recipe.seeds:
            cells.append(Cell(SearchRun, {"seed": seed, "strength": "", "arm": BASE, "multiple": 1}))
            for strength, kinds in recipe.judges.items():
                key = {"seed": seed, "strength": strength}
                for multiple in recipe.multiples:
                    names = [name for name, arm in recipe.arms.items() if arm.read(multiple) is not None]
                    cells += [Cell(SearchRun, {**key, "arm": name, "multiple": multiple}) for name in names]
                cells += [Cell(Meeting, key)] if "pairwise" in kinds else []
            strengths = [strength for strength, kinds in recipe.judges.items() if "pointwise" in kinds]
            cells += [Cell(Pool, {"seed": seed, "strength": strength}) for strength in strengths]
        return cells

    def prepare(self, group: int) -> Seed:
        prompts = [text for text, _ in prompt_set("held_out", self.recipe.prompts, group)]
        return Seed(group, self.recipe.load_generator(), prompts)

    def measure(self, cell: Cell, shared: Seed) -> SearchRun | Meeting | Pool:
        if cell.key.get("arm") == BASE:
            return self.sample(cell, shared)
        judges = self.judges(shared, cell.key["strength"])
        measures = {SearchRun: self.search, Meeting: self.meet, Pool: self.fill_pool}
        return measures[cell.kind](cell, shared, judges)

    def report(self) -> Report:
        return search_report(self.rows, self.folder)

    # -- judges --------------------------------------------------------------------------------------------------------

    def judges(self, shared: Seed, strength: str) -> dict[str, Judge]:
        """A strength's judges by kind."""
        if strength not in shared.judges:
            kinds = self.recipe.judges[strength]
            shared.judges[strength] = {kind: self.judge(shared.seed, strength, kind) for kind in kinds}
        return shared.judges[strength]

    def judge(self, seed: int, strength: str, kind: str) -> Judge:
        """A judge, trained in the seed's folder where it is not given; its accuracy on the seed's pairs is a row."""
        options, recipe = self.recipe.judges[strength][kind], self.recipe.training(strength, kind)
        folder = self.seed_folder(seed) / f"{strength}-{kind}"
        if not self.rows.of(JudgeAccuracy, seed=seed, strength=strength, kind=kind):
            annotators = self.recipe.annotators.get(strength)
            preferences = self.recipe.preferences.model_copy(update={"annotators": annotators} if annotators else {})
            quickstart = self.recipe.quickstart(seed, preferences=preferences, judge=JudgeRecipe())
            sets = seed_preferences(quickstart, self.seed_folder(seed) / (strength if annotators else ""))
            if recipe is None:
                judge = load_reward(options["reward"])
            else:
                judge = train_judge(recipe, sets["train"], folder, Metrics(folder / "metrics.jsonl"), seed)
                remove_checkpoints(folder)
            tests = {name: list(pairs) for name, pairs in sets.items() if name != "train"}
            accuracy = {name: float(agreement(judge, pairs).mean()) for name, pairs in tests.items()}
            self.rows.add(JudgeAccuracy(seed=seed, strength=strength, kind=kind, accuracy=accuracy))
            return judge
        return load_reward(options["reward"] if recipe is None else str(folder / "reward"))

    # -- the cells -----------------------------------------------------------------------------------------------------

    def sample(self, cell: Cell, shared: Seed) -> SearchRun:
        """The seconds of one plain sample, and what it is worth."""
        recipe, clock, count = self.recipe, CLOCKS[self.recipe.clock], self.recipe.base_samples
        generator, prompts, batch_size = shared.generator, shared.prompts, recipe.batch_size
        seeds = [noise_seed(shared.seed, place, k) for place in range(len(prompts)) for k in range(count)]
        texts = [text for text in prompts for _ in range(count)]
        sample(generator, texts[:batch_size], seeds[:batch_size], batch_size)  # warms up
        began = clock()
        pictures = sample(generator, texts, seeds, batch_size)
        seconds = (clock() - began) / len(texts)
        oracle = np.reshape(_oracle(pictures, texts), (len(prompts), count)).mean(1).tolist()
        if shared.seed == recipe.seeds[0]:
            self.show(BASE, pictures[::count])
            shown = prompts[: recipe.gallery_prompts]
            write_text_atomically(self.folder / PICTURES / "prompts.json", json.dumps(shown))
        spent = Spent(generator.num_steps, 1, 0, seconds, seconds, 0.0)
        return SearchRun(**cell.key, budget=seconds, oracle=oracle, rounds=0, **_means([spent]))

    def search(self, cell: Cell, shared: Seed, judges: dict[str, Judge]) -> SearchRun:
        """Search for every prompt with one method; the oracle of the winners, and what a prompt took on average."""
        recipe, name, multiple = self.recipe, cell.key["arm"], cell.key["multiple"]
        base = self.rows.first(SearchRun, seed=shared.seed, arm=BASE)
        arm, method = recipe.arms[name], recipe.arms[name].read(multiple)
        assert base is not None and method is not None
        budget = multiple * base.budget
        search = Search(
            shared.generator,
            judges[arm.judge],
            method,
            Budget(seconds=budget),
            judging=arm.judging,
            seed=shared.seed,
            batch_size=recipe.batch_size,
            prompts_at_once=recipe.prompts_at_once,
            runners_up=0,
            clock=CLOCKS[recipe.clock],
        )
        results = []
        with progress_bar(f"{name}, {multiple} x", len(shared.prompts)) as bar:
            for start in range(0, len(shared.prompts), recipe.prompts_at_once):
                places = range(start, min(start + recipe.prompts_at_once, len(shared.prompts)))
                results += search([shared.prompts[place] for place in places], places)
                bar.advance(len(places))
        winners = torch.stack([result.winner.pixels for result in results]).cpu()
        middle = sorted(recipe.multiples)[len(recipe.multiples) // 2]
        if (shared.seed, cell.key["strength"], multiple) == (recipe.seeds[0], [*recipe.judges][-1], middle):
            self.show(name, winners)
        rounds, spent = float(np.mean([result.rounds for result in results])), _means([r.spent for r in results])
        oracle = _oracle(winners, shared.prompts)
        return SearchRun(**cell.key, budget=budget, oracle=oracle, rounds=rounds, **spent)

    def show(self, name: str, pictures: Tensor) -> None:
        """Write the gallery's pictures of an arm."""
        for number, pixels in enumerate(pictures[: self.recipe.gallery_prompts]):
            write_picture(pixels, self.folder / PICTURES / name / f"{number}.png")

    def pictures(self, shared: Seed, n: int) -> list[Tensor]:
        """`n` plain samples of each of the pool's prompts, [n, T, C, H, W] each."""
        groups, prompts = [], shared.prompts[: self.recipe.pool.prompts]
        with progress_bar("the pool's pictures", len(prompts)) as bar:
            for place, text in enumerate(prompts):
                seeds = [noise_seed(shared.seed, place, number) for number in range(n)]
                groups.append(sample(shared.generator, [text] * n, seeds, self.recipe.batch_size))
                bar.advance()
        return groups

    def fill_pool(self, cell: Cell, shared: Seed, judges: dict[str, Judge]) -> Pool:
        """What the pointwise judge and the oracle say of the pool's pictures."""
        shared.pool = shared.pool or self.pictures(shared, self.recipe.pool.n)
        groups = list(zip(shared.pool, shared.prompts, strict=False))
        oracle = [_oracle(group, [text] * len(group)) for group, text in groups]
        questions = [[Question(text, picture) for picture in group] for group, text in groups]
        return Pool(
            **cell.key, oracle=oracle, proxy=[judges["pointwise"](asked).margin.tolist() for asked in questions]
        )

    def meet(self, cell: Cell, shared: Seed, judges: dict[str, Judge]) -> Meeting:
        """Tournaments by the pairwise judge, and where the winners of knockouts in random orders stand in them."""
        pool, places = self.recipe.pool, []
        for place, group in enumerate(self.pictures(shared, pool.meeting)):
            (ranking,) = tournament(judges["pairwise"], [shared.prompts[place]], [list(group)])
            rank = {int(number): at for at, number in enumerate(ranking.order)}
            rng = np.random.default_rng([shared.seed, 21, place])
            places.append([rank[winner(ranking.margins, rng.permutation(len(group)))] for _ in range(pool.draws)])
        return Meeting(**cell.key, n=pool.meeting, places=places)


class HeldTournament:
    """Answers with the margins [N, N] of a tournament that was held, about pictures that hold their numbers."""

    needs_reference = True

    def __init__(self, margins: Tensor) -> None:
        self.margins = margins

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        pairs = [(int(q.candidate), int(q.reference)) for q in questions if q.reference is not None]
        return Verdict(torch.stack([self.margins[c, r] for c, r in pairs]) if pairs else torch.zeros(0))


def winner(margins: Tensor, order: np.ndarray) -> int:
    """Who wins a knockout in this order, by the margins [N, N] of a tournament that was held."""
    numbers = [torch.full((1, 1, 1, 1), float(number)) for number in order]
    (ranking,) = knockout(HeldTournament(margins), ["any"], [numbers])
    return int(order[int(ranking.order[0])])


def _oracle(pictures: Tensor, prompts: Sequence[str]) -> list[float]:
    return [score.alignment for score in judge_pixels(pictures, list(prompts))]


def _means(spent: Sequence[Spent]) -> dict[str, Any]:
    """What prompts took, on average, by the names of `SearchRun`."""
    return {name: float(np.mean([getattr(prompt, name) for prompt in spent])) for name in Spent._fields}


EXPERIMENT = SearchMethods
