"""Learning from people who disagree: a judge that is taught the shares of votes against one taught hard majorities.

Several people vote on each pair; some of them do not look. The judges of a noise see the same pictures and votes, in
the same order and under the same seed: one learns each pair's share, ties too, another what most said, and nothing of
pairs without a majority. Where the voters are a crowd, whose members come again from pair to pair, a third learns the
shares with each vote combine by how often its voter seems to be right (data/votes.py). All are tested on the oracle's
own order. A finished cell is written down and not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from experiments.judges import Job as Cell
from experiments.judges import by_prompt, time_left, trained
from experiments.judges_table import SETS, Row, as_line, common, entries, gains, read_rows
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.data.votes import weigh
from rewarddance.evaluation.statistics import Interval
from rewarddance.generators.pipelines import load_generator
from rewarddance.report.formatting import figure_text, number
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, keep_recipe
from rewarddance.runtime.tracking import console
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.types import Preference

CONFIG, RESULTS, TABLE, VOTES = "config.yaml", "results.jsonl", "disagreement.md", "votes.json"
LABELS = ("majority", "shares", "combine")
TESTS = ("id", "ood")


class DisagreementRecipe(Recipe):
    """What is compared, and how.

    seeds: each has pictures, votes, test prompts and training of its own. noise: shares of votes that are wrong because
    somebody did not look; who does not look is right half of the time, so twice as many do not. preferences: how many
    pairs, and in `annotators` how those see who do look; its `careless` gives way to the noise. With a `crowd` there
    it is people and not votes that are careless, and votes are combine, too. judge: how all are trained.
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    noise: tuple[float, ...] = Field(default=(0.1, 0.2, 0.3), min_length=1)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe(annotators=AnnotatorRecipe(votes=5))
    judge: JudgeRecipe = JudgeRecipe()

    @field_validator("noise")
    @classmethod
    def _is_a_share(cls, noise: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= one <= 0.5 for one in noise):
            raise ValueError("noise lies in 0 to 0.5: at 0.5 nobody looks")
        return noise

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds of labels that are compared, the first being what the others are compared with."""
        return LABELS if self.preferences.annotators.crowd else LABELS[:2]

    def voted(self, noise: float) -> PreferenceRecipe:
        """The preferences where so many votes are wrong for want of looking."""
        own = self.preferences.annotators.model_copy(update={"careless": 2 * noise})
        return self.preferences.model_copy(update={"annotators": own})


class Votes(NamedTuple):
    """A seed's training pairs, their shares of votes at each noise, plain and combine, the oracle's order of each pair
    (0, 1, or 0.5 where it sees no difference), and the test sets."""

    pairs: list[Preference]
    shares: dict[str, list[float]]
    combine: dict[str, list[float]]
    order: list[float]
    tests: dict[str, list[Preference]]


def compare_labels(recipe: DisagreementRecipe, folder: Path) -> str:
    """Do what is left; returns the table as Markdown, which is written anew after every cell.

    Raises InputError before anything is trained where a checkpoint is missing, and where the folder holds a comparison
    that was begun under another recipe.
    """
    for name in (recipe.generator, recipe.judge.base):
        find_checkpoint(name)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    todo = cells(recipe)
    rows = read_rows(folder / RESULTS)
    done = {(row.seed, row.cell) for row in rows}
    left = [cell for cell in todo if (cell.seed, cell.cell) not in done]
    for seed in recipe.seeds:
        own = [cell for cell in left if cell.seed == seed]
        votes = gather(recipe, seed, folder / f"seed{seed}") if own else None
        for cell in own:
            place = f"{len(rows) + 1} of {len(todo)}: seed {seed}, {cell.cell}"
            console.print(f"{place}{time_left(rows, left)}", soft_wrap=True)
            assert votes is not None
            cell_folder = folder / f"seed{seed}" / cell.cell
            rows.append(measured(recipe, cell, votes, cell_folder))
            left.remove(cell)
            write_text_atomically(folder / RESULTS, "".join(map(as_line, rows)))
            for checkpoint in cell_folder.glob("checkpoint-*"):  # it is done: the reward stays
                shutil.rmtree(checkpoint)
            write_table(recipe, rows, folder)
    return write_table(recipe, rows, folder)


def cells(recipe: DisagreementRecipe) -> list[Cell]:
    """All cells, seed by seed, those that are compared one after the other."""
    size = Path(recipe.judge.base).name
    names = [cell_name(labels, noise) for noise in recipe.noise for labels in recipe.labels]
    return [Cell(seed, size, name, recipe.judge.base) for seed in recipe.seeds for name in names]


def cell_name(labels: str, noise: float) -> str:
    return f"{labels}-{noise:g}"


def gather(recipe: DisagreementRecipe, seed: int, folder: Path) -> Votes:
    """A seed's pictures, and the votes on them at each noise; made once, then read.

    Who votes changes no draw but the votes, so that all noises have the same pairs.
    """
    path = folder / VOTES
    if not path.exists():
        own = recipe.preferences
        shutil.rmtree(folder / "preferences", ignore_errors=True)
        generator = load_generator(recipe.generator, recipe.num_inference_steps, recipe.guidance_scale)
        counts = {"train": own.train_prompts, "held_out": own.id_prompts, "unseen": own.ood_prompts}
        pools = {split: generate(generator, split, n, own.samples, seed) for split, n in counts.items()}
        for name, split in zip(TESTS, ("held_out", "unseen"), strict=True):
            pairs = pair_up(pools[split], split, own.test_pairs, own, seed, exact=True)
            write_preferences(pairs, folder / "preferences" / f"{name}.jsonl")
        exact = own.annotators.model_copy(update={"noise": 0.0, "careless": 0.0, "tie_within": 1e-9})
        voted = {f"{noise:g}": recipe.voted(noise) for noise in recipe.noise}
        voted["order"] = own.model_copy(update={"annotators": exact})
        shares: dict[str, list[float]] = {}
        combine: dict[str, list[float]] = {}
        for name, who in voted.items():
            rows = pair_up(pools["train"], "train", own.pairs, who, seed, exact=False, early="some")
            each = own.annotators.votes if own.annotators.crowd else 1  # a crowd's votes stand one by one
            pairs, votes = rows[::each], np.array([row.share for row in rows]).reshape(-1, each)
            shares[name] = votes.mean(axis=1).tolist()
            if own.annotators.crowd and name != "order":
                people = np.array([int(row.annotator) for row in rows])
                combine[name] = weigh(np.repeat(np.arange(len(pairs)), each), people, votes.ravel()).share.tolist()
        write_preferences([replace(pair, annotator="") for pair in pairs], folder / "preferences" / "train.jsonl")
        text = json.dumps({"shares": shares, "combine": combine})
        write_text_atomically(path, text + "\n")  # last: without it all is made anew
    told = json.loads(path.read_text(encoding="utf-8"))
    sets = {name: list(PreferenceSet(folder / "preferences" / f"{name}.jsonl")) for name in ("train", *TESTS)}
    order = told["shares"].pop("order")
    return Votes(sets.pop("train"), told["shares"], told["combine"], order, sets)


def labelled(pairs: Sequence[Preference], shares: Sequence[float], labels: str) -> list[Preference]:
    """The pairs as they are learned: with their shares of votes, or those that have a majority with it as 0 or 1."""
    if labels != "majority":
        return [replace(pair, share=share) for pair, share in zip(pairs, shares, strict=True)]
    return [replace(pair, share=float(share > 0.5)) for pair, share in zip(pairs, shares, strict=True) if share != 0.5]


def measured(recipe: DisagreementRecipe, cell: Cell, votes: Votes, folder: Path) -> Row:
    """Train one judge and ask it about the test sets."""
    began = time.monotonic()
    labels, noise = cell.cell.split("-")
    shares = votes.combine if labels == "combine" else votes.shares
    pairs = labelled(votes.pairs, shares[noise], labels)
    judge, seconds = trained(recipe.judge, pairs, folder, cell.seed)
    return Row(
        seed=cell.seed,
        size=cell.size,
        cell=cell.cell,
        parameters=sum(weight.numel() for weight in judge.model.parameters()),
        pairs=len(pairs),
        accuracy={name: by_prompt(judge, own) for name, own in votes.tests.items()},
        untrained=None,
        training_seconds=round(seconds, 1),
        seconds=round(time.monotonic() - began, 1),
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def write_table(recipe: DisagreementRecipe, rows: Sequence[Row], folder: Path) -> str:
    """Write disagreement.md and results.json from the cells so far; returns the Markdown."""
    wrong = {noise: wrong_labels(folder, recipe.seeds, noise) for noise in recipe.noise}
    text = markdown(recipe, rows, wrong)
    write_text_atomically(folder / TABLE, text)
    write_text_atomically(folder / "results.json", json.dumps(results(recipe, rows, wrong), indent=2) + "\n")
    return text


def wrong_labels(folder: Path, seeds: Sequence[int], noise: float) -> dict[str, float]:
    """The share of "majority" and, where there are any, of "combine" labels whose side is not the oracle's, among those
    that have a side; over the seeds that have voted."""
    found: dict[str, list[bool]] = {}
    for path in (folder / f"seed{seed}" / VOTES for seed in seeds):
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            right = np.sign(np.array(told["shares"]["order"]) - 0.5)
            for name, labels in (("majority", told["shares"]), ("combine", told["combine"])):
                if own := labels.get(f"{noise:g}"):
                    side = np.sign(np.round(np.array(own) - 0.5, 9))
                    found.setdefault(name, []).extend((side != right)[(side != 0) & (right != 0)].tolist())
    return {name: float(np.mean(own)) for name, own in found.items()}


def figures(recipe: DisagreementRecipe, rows: Sequence[Row]) -> dict[float, dict[str, dict[str, Interval]]]:
    """For each noise, the accuracy of each kind of label and the gain of the others over majorities, by test set."""
    found = {}
    for noise in recipe.noise:
        own = {name: [row for row in rows if row.cell == cell_name(name, noise)] for name in recipe.labels}
        found[noise] = {name: entries(one)[0].accuracy if one else {} for name, one in own.items()}
        for name in recipe.labels[1:]:
            both = own["majority"], own[name]
            found[noise][gain_of(name)] = gains(*both) if common(*both) else {}
    return found


def gain_of(labels: str) -> str:
    """What the gain over majorities is called: "gain" where there is one only."""
    return "gain" if labels == "shares" else f"gain of {labels}"


def results(recipe: DisagreementRecipe, rows: Sequence[Row], wrong: dict[float, dict[str, float]]) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json."""
    table = [
        {"noise": noise, "wrong": wrong[noise]}
        | {name: {test: one._asdict() for test, one in by_test.items()} for name, by_test in own.items()}
        for noise, own in figures(recipe, rows).items()
    ]
    return {"cells": len(cells(recipe)), "done": len(rows), "table": table}


def markdown(recipe: DisagreementRecipe, rows: Sequence[Row], wrong: dict[float, dict[str, float]]) -> str:
    """The table with what its figures are; a line says so where cells are missing."""
    total, who = len(cells(recipe)), recipe.preferences.annotators
    lines = [f"Unfinished: {len(rows)} of {total} cells.\n"] if len(rows) < total else []
    voters = f"{who.votes} of a crowd of {who.crowd}" if who.crowd else f"{who.votes} people"
    noise = "somebody never looks" if who.crowd else "somebody did not look"
    combine = (
        " Weighed: each vote by how often its voter seems to be right, which follows from the votes alone."
        if who.crowd
        else ""
    )
    lines.append(
        f"{voters} vote on each pair. Noise: the share of votes that are wrong because {noise}, "
        "besides what those who look see wrongly. Wrong: the share of labels on the side that the oracle does not "
        "prefer, of majorities" + (" and combine" if who.crowd else "") + f".{combine} Accuracy: "
        "% of a prompt's test pairs that are ordered as the oracle orders them, both orders asked. Gain: over "
        "hard majorities, in points, paired prompt by prompt. Means over seeds with 95 % t intervals, "
        f"never narrower than over prompts; seeds: {', '.join(map(str, sorted({row.seed for row in rows})))}.\n"
    )
    columns = ["majority"]
    for name in recipe.labels[1:]:
        columns += [name, gain_of(name)]
    heads = ["noise", "wrong", *(f"{SETS[test]}: {what}" for test in TESTS for what in columns)]
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for noise, own in figures(recipe, rows).items():
        line = [f"{number(noise, digits=0)} %", ", ".join(f"{number(share)} %" for share in wrong[noise].values())]
        for test in TESTS:
            line += [
                figure_text(own[name][test], sign="+" if "gain" in name else "") if test in own[name] else ""
                for name in columns
            ]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) + "\n"
