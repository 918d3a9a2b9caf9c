"""The table of search methods: how good a winner each finds in equal seconds, the judge's time included.

A cell is one method with one judge at one budget under one seed. Beside the table stand the curves of oracle and proxy
as N grows, and how often a knockout's winner is among the tournament's best. A finished cell is written down at once
and not done again.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from experiments.search_figures import BASE, PICTURES
from experiments.search_table import Cell, JudgeRow, Meeting, Pool, Rows, means, write_tables
from rewarddance.data.media import write_picture
from rewarddance.data.preferences import PreferenceSet
from rewarddance.evaluation.agreement import agreement
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, gather_preferences
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import knockout, tournament
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, keep_recipe, parse_recipe
from rewarddance.runtime.tracking import Metrics, console, progress_bar
from rewarddance.search.batch import noise_seed
from rewarddance.search.budget import Spent
from rewarddance.search.recipe import Budget, JudgingName
from rewarddance.search.run import Search, read_method
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Question, Verdict

CONFIG = "config.yaml"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


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
        own = self.at.get(multiple, {})
        return None if own is None else read_method(self.method, self.options | own)


class PoolRecipe(Recipe):
    """Pictures for the curves: `n` of each of the first `prompts`. meeting: how many of them meet in a tournament;
    draws: in how many orders the knockout among them is held.
    """

    prompts: int = Field(default=18, ge=1)
    n: int = Field(default=256, ge=2)
    meeting: int = Field(default=16, ge=3)
    draws: int = Field(default=20, ge=1)


class SearchingRecipe(Recipe):
    """Which methods are compared, and how.

    judges: strength -> kind -> what is different from `judge` in its training, or {reward: FOLDER} for one that is
    trained already. voters: who votes on a strength's training pairs, where not those of `preferences`. multiples:
    budgets, in times the seconds that one plain sample takes without a judge. base_samples: plain samples a prompt that
    the mean of one sample is taken from. prompts: held-out ones, the categories in turn. clock: seconds by the wall, or
    of the processor (on a machine that others use too). shown: prompts whose winners are drawn, at the middle budget
    with the last of the judges.
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe(reasons=True)
    judge: JudgeRecipe = JudgeRecipe()
    judges: dict[str, dict[str, dict[str, Any]]] = Field(min_length=1)
    voters: dict[str, AnnotatorRecipe] = Field(default_factory=dict)
    arms: dict[str, Arm] = Field(min_length=1)
    multiples: tuple[int, ...] = Field(default=(4, 16, 64), min_length=1)
    prompts: int = Field(default=36, ge=6)
    base_samples: int = Field(default=8, ge=1)
    pool: PoolRecipe = PoolRecipe()
    batch_size: int = Field(default=96, ge=1)
    prompts_at_once: int = Field(default=6, ge=1)
    clock: Literal["wall", "cpu"] = "wall"
    shown: int = Field(default=6, ge=1)

    @model_validator(mode="after")
    def _is_whole(self) -> SearchingRecipe:
        for strength, kinds in self.judges.items():
            if not re.fullmatch(r"\w[\w.-]*", strength):
                raise ValueError(f"{strength!r} is to be the name of a folder; use letters, digits, '-' and '_'")
            for name, arm in self.arms.items():
                if arm.judge not in kinds:
                    raise ValueError(f"the arm {name!r} asks a {arm.judge} judge, and {strength!r} has none")
            for kind in kinds:
                self.training(strength, kind)
        if unknown := sorted(set(self.voters) - set(self.judges)):
            raise ValueError(f"there are voters for {unknown[0]!r}, and no judges of that strength")
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
        own = self.judges[strength][kind]
        if set(own) == {"reward"}:
            return None
        return parse_recipe(JudgeRecipe, self.judge.model_dump() | own | {"kind": kind}, f"the judge {strength} {kind}")


class Seed(NamedTuple):
    """What a seed's cells share. unit: the seconds that one plain sample takes."""

    seed: int
    folder: Path
    generator: Generator
    prompts: list[str]
    unit: float


def compare_searches(recipe: SearchingRecipe, folder: Path) -> str:
    """Do what is left of the table; returns it as Markdown. It is written anew after every cell, with its figures.

    Raises InputError before anything is done where a checkpoint is missing, and where the folder holds a table that was
    begun under another recipe.
    """
    for name in (recipe.generator, recipe.judge.base, *_given(recipe)):
        find_checkpoint(name)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    rows = Rows(folder)
    grid = [(k, name, arm) for k in recipe.multiples for name, arm in recipe.arms.items() if arm.read(k) is not None]
    total = len(recipe.seeds) * (1 + len(recipe.judges) * len(grid))

    def written() -> str:
        return write_tables(rows, total, folder)

    for seed in recipe.seeds:
        own = _seed(recipe, seed, folder, rows)
        for strength in recipe.judges:
            judges = {kind: _judge(recipe, own, strength, kind, rows) for kind in recipe.judges[strength]}
            for multiple, name, arm in grid:
                if not rows.has(Cell, seed=seed, strength=strength, arm=name, multiple=multiple):
                    place = f"{len(rows.of(Cell)) + 1} of {total}"
                    console.print(f"{place}: seed {seed}, {strength}, {name}, {multiple} x")
                    rows.add(_cell(recipe, own, judges[arm.judge], strength, name, multiple))
                    written()
            _meetings(recipe, own, judges, strength, rows)
        _pooled(recipe, own, rows)
        written()
    return written()


def _given(recipe: SearchingRecipe) -> list[str]:
    return [own["reward"] for kinds in recipe.judges.values() for own in kinds.values() if "reward" in own]


# -- what a seed begins with -------------------------------------------------------------------------------------------


def _seed(recipe: SearchingRecipe, seed: int, folder: Path, rows: Rows) -> Seed:
    """A seed's generator and prompts, and what one plain sample takes and is worth, measured once."""
    generator = load_generator(recipe.generator, recipe.num_inference_steps, recipe.guidance_scale)
    prompts = [text for text, _ in prompt_set("held_out", recipe.prompts, seed)]
    base = rows.first(Cell, seed=seed, arm=BASE)
    if base is None:
        clock, count = CLOCKS[recipe.clock], recipe.base_samples
        seeds = [noise_seed(seed, place, k) for place in range(len(prompts)) for k in range(count)]
        texts = [text for text in prompts for _ in range(count)]
        sample(generator, texts[: recipe.batch_size], seeds[: recipe.batch_size], recipe.batch_size)  # warms up
        began = clock()
        pictures = sample(generator, texts, seeds, recipe.batch_size)
        unit = (clock() - began) / len(texts)
        oracle = np.reshape(_oracle(pictures, texts), (len(prompts), count)).mean(1).tolist()
        spent = Spent(generator.num_steps, 1, 0, unit, unit, 0.0)
        base = Cell(
            seed=seed, strength="", arm=BASE, multiple=1, budget=unit, oracle=oracle, rounds=0, **means([spent])
        )
        if seed == recipe.seeds[0]:
            _show(folder, BASE, pictures[::count][: recipe.shown])
            write_text_atomically(folder / PICTURES / "prompts.json", json.dumps(prompts[: recipe.shown]))
        rows.add(base)
    return Seed(seed, folder, generator, prompts, base.budget)


def _judge(recipe: SearchingRecipe, own: Seed, strength: str, kind: str, rows: Rows) -> Judge:
    """One judge, trained in the seed's folder where it is not given, and its accuracy on the seed's test pairs."""
    given, chosen = recipe.judges[strength][kind], recipe.training(strength, kind)
    voters = recipe.voters.get(strength)
    place = own.folder / f"seed{own.seed}" / (strength if voters else "")
    reward = own.folder / f"seed{own.seed}" / f"{strength}-{kind}" / "reward"
    known = rows.has(JudgeRow, seed=own.seed, strength=strength, kind=kind)
    if known:
        return load_reward(given["reward"] if chosen is None else str(reward))
    quickstart = QuickstartRecipe(
        seed=own.seed,
        generator=recipe.generator,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        preferences=recipe.preferences.model_copy(update={"annotators": voters} if voters else {}),
    )
    run = Run(writable_folder(place), quickstart)
    run.stage("preferences", lambda: gather_preferences(run))
    sets = {name: list(PreferenceSet(place / "preferences" / f"{name}.jsonl")) for name in ("id", "early", "ood")}
    if chosen is None:
        judge = load_reward(given["reward"])
    else:
        training = PreferenceSet(place / "preferences" / "train.jsonl")
        judge = train_judge(chosen, training, reward.parent, Metrics(reward.parent / "metrics.jsonl"), own.seed)
        for checkpoint in reward.parent.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    accuracy = {name: float(agreement(judge, pairs).mean()) for name, pairs in sets.items()}
    rows.add(JudgeRow(seed=own.seed, strength=strength, kind=kind, accuracy=accuracy))
    return judge


# -- the cells ---------------------------------------------------------------------------------------------------------


def _cell(recipe: SearchingRecipe, own: Seed, judge: RewardModel, strength: str, name: str, multiple: int) -> Cell:
    """Search for every prompt with one method; the oracle of the winners, and what a prompt took on average."""
    arm, budget = recipe.arms[name], multiple * own.unit
    options = {"judging": arm.judging, "seed": own.seed, "batch_size": recipe.batch_size, "runners_up": 0}
    chosen = arm.read(multiple)
    assert chosen is not None
    work = Search(
        own.generator,
        judge,
        chosen,
        Budget(seconds=budget),
        prompts_at_once=recipe.prompts_at_once,
        clock=CLOCKS[recipe.clock],
        **options,
    )
    found = []
    with progress_bar(f"{name}, {multiple} x", len(own.prompts)) as bar:
        for start in range(0, len(own.prompts), recipe.prompts_at_once):
            places = range(start, min(start + recipe.prompts_at_once, len(own.prompts)))
            found += work([own.prompts[place] for place in places], places)
            bar.advance(len(places))
    winners = torch.stack([one.winner.pixels for one in found]).cpu()
    oracle = _oracle(winners, own.prompts)
    if own.seed == recipe.seeds[0] and strength == [*recipe.judges][-1] and multiple == _middle(recipe):
        _show(own.folder, name, winners[: recipe.shown])
    spent, rounds = means([one.spent for one in found]), float(np.mean([one.rounds for one in found]))
    return Cell(
        seed=own.seed,
        strength=strength,
        arm=name,
        multiple=multiple,
        budget=budget,
        oracle=oracle,
        rounds=rounds,
        **spent,
    )


def _middle(recipe: SearchingRecipe) -> int:
    return sorted(recipe.multiples)[len(recipe.multiples) // 2]


def _oracle(pictures: Tensor, prompts: Sequence[str]) -> list[float]:
    return [score.alignment for score in judge_pixels(pictures, list(prompts))]


def _show(folder: Path, name: str, pictures: Tensor) -> None:
    for number, pixels in enumerate(pictures):
        write_picture(pixels, folder / PICTURES / name / f"{number}.png")


# -- as N grows, and knockouts -----------------------------------------------------------------------------------------


def _pictures(recipe: SearchingRecipe, own: Seed, n: int) -> list[Tensor]:
    """`n` plain samples of each of the pool's prompts, [n, T, C, H, W] each."""
    found = []
    prompts = own.prompts[: recipe.pool.prompts]
    with progress_bar("the pool's pictures", len(prompts)) as bar:
        for place, text in enumerate(prompts):
            seeds = [noise_seed(own.seed, place, number) for number in range(n)]
            found.append(sample(own.generator, [text] * n, seeds, recipe.batch_size))
            bar.advance()
    return found


def _pooled(recipe: SearchingRecipe, own: Seed, rows: Rows) -> None:
    """What the pointwise judges and the oracle say of the pool's pictures."""
    left = [
        strength
        for strength, kinds in recipe.judges.items()
        if "pointwise" in kinds and not rows.has(Pool, seed=own.seed, strength=strength)
    ]
    if not left:
        return
    pictures = _pictures(recipe, own, recipe.pool.n)
    oracle = [_oracle(group, [text] * len(group)) for group, text in zip(pictures, own.prompts, strict=False)]
    for strength in left:
        judge = _judge(recipe, own, strength, "pointwise", rows)
        proxy = [
            judge([Question(text, one) for one in group]).margin.tolist()
            for group, text in zip(pictures, own.prompts, strict=False)
        ]
        rows.add(Pool(seed=own.seed, strength=strength, oracle=oracle, proxy=proxy))


def _meetings(recipe: SearchingRecipe, own: Seed, judges: dict[str, Judge], strength: str, rows: Rows) -> None:
    """Tournaments by the pairwise judge, and where the winners of knockouts in random orders stand in them."""
    if "pairwise" not in judges or rows.has(Meeting, seed=own.seed, strength=strength):
        return
    groups = [list(group) for group in _pictures(recipe, own, recipe.pool.meeting)]
    texts = own.prompts[: len(groups)]
    places = []
    for place, (text, group) in enumerate(zip(texts, groups, strict=True)):
        (full,) = tournament(judges["pairwise"], [text], [group])
        rank = {int(number): at for at, number in enumerate(full.order)}
        rng = np.random.default_rng([own.seed, 21, place])
        places.append([rank[winner(full.margins, rng.permutation(len(group)))] for _ in range(recipe.pool.draws)])
    rows.add(Meeting(seed=own.seed, strength=strength, n=recipe.pool.meeting, places=places))


def winner(margins: Tensor, order: np.ndarray) -> int:
    """Who wins a knockout in this order, by the margins [N, N] of a tournament that was held."""
    numbers = [torch.full((1, 1, 1, 1), float(number)) for number in order]

    def answers(questions: Sequence[Question]) -> Verdict:
        asked = [(int(q.candidate), int(q.reference)) for q in questions if q.reference is not None]
        return Verdict(torch.stack([margins[c, r] for c, r in asked]) if asked else torch.zeros(0))

    (found,) = knockout(answers, [""], [numbers])
    return int(order[int(found.order[0])])
