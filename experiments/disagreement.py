"""Learning from annotators who disagree: a judge that is taught shares of votes against one taught hard majorities.

Several annotators vote on each pair; some of them do not look. The judges of a noise see the same pictures and votes,
in the same order and under the same seed: one learns each pair's share, ties too, another what most said, and nothing
of pairs without a majority. Where the voters are a crowd, whose members come again from pair to pair, a third learns
the shares with each vote weighted by how often its voter seems to be right (data/votes.py). All are tested on the
oracle's own order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field, field_validator

from experiments.grid import Cell, Experiment, GridRecipe, Report, remove_checkpoints
from experiments.judges import measure_judge
from experiments.judges_table import SETS, JudgeRun, gains, judges_of
from experiments.tables import OVER_SEEDS, gained, markdown_table, plain, points
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.data.votes import weigh
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import number
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.types import Preference

VOTES = "votes.json"
LABELS = ("majority", "shares", "weighted")
TESTS = ("id", "ood")


class DisagreementRecipe(GridRecipe):
    """What is compared, and how.

    noise: shares of votes that are wrong because an annotator did not look; who does not look is right half of the
        time, so twice as many do not.
    preferences: how many pairs, and in `annotators` how those see who do look; its `careless` gives way to the noise.
        With a `crowd` there it is annotators and not votes that are careless, and votes are weighted, too.
    """

    noise: tuple[float, ...] = Field(default=(0.1, 0.2, 0.3), min_length=1)
    preferences: PreferenceRecipe = PreferenceRecipe(annotators=AnnotatorRecipe(votes=5))

    @field_validator("noise")
    @classmethod
    def _are_shares(cls, noise: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= share <= 0.5 for share in noise):
            raise ValueError("noise lies in 0 to 0.5: at 0.5 nobody looks")
        return noise

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds of labels that are compared, the first being what the others are compared with."""
        return LABELS if self.preferences.annotators.crowd else LABELS[:2]

    def voted(self, noise: float) -> PreferenceRecipe:
        """The preferences where so many votes are wrong for want of looking."""
        annotators = self.preferences.annotators.model_copy(update={"careless": 2 * noise})
        return self.preferences.model_copy(update={"annotators": annotators})


class Votes(NamedTuple):
    """A seed's training pairs and the votes on them.

    shares, weighted: each pair's share of votes at each noise, plain and weighted.
    order: the oracle's order of each pair: 0, 1, or 0.5 where it sees no difference.
    tests: the test sets.
    """

    pairs: list[Preference]
    shares: dict[str, list[float]]
    weighted: dict[str, list[float]]
    order: list[float]
    tests: dict[str, list[Preference]]


class Disagreement(Experiment[DisagreementRecipe]):
    name, recipe_kind, row_kinds, counted = "disagreement", DisagreementRecipe, JudgeRun, JudgeRun

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, self.recipe.judge.base]

    def cells(self) -> list[Cell]:
        """Seed by seed, those that are compared one after the other."""
        size = Path(self.recipe.judge.base).name
        names = [cell_name(labels, noise) for noise in self.recipe.noise for labels in self.recipe.labels]
        seeds = self.recipe.seeds
        return [Cell(JudgeRun, {"seed": seed, "size": size, "cell": name}) for seed in seeds for name in names]

    def prepare(self, group: int) -> Votes:
        return gather(self.recipe, group, self.seed_folder(group))

    def measure(self, cell: Cell, shared: Votes) -> JudgeRun:
        """Train one judge and ask it about the test sets."""
        labels, noise = cell.key["cell"].split("-")
        shares = shared.weighted if labels == "weighted" else shared.shares
        sets = {"train": labelled(shared.pairs, shares[noise], labels), **shared.tests}
        folder = self.seed_folder(cell.key["seed"]) / cell.key["cell"]
        row = measure_judge(cell, self.recipe.judge, sets, folder, zero_shot=False)
        remove_checkpoints(folder)
        return row

    def report(self) -> Report:
        wrong = {noise: wrong_labels(self.folder, self.recipe.seeds, noise) for noise in self.recipe.noise}
        rows = self.rows.of(JudgeRun)
        by_noise = figures(self.recipe, rows)
        lines = [{"noise": noise, "wrong": wrong[noise], **plain(line)} for noise, line in by_noise.items()]
        return Report(markdown(self.recipe, rows, wrong), {"table": lines}, {})


def cell_name(labels: str, noise: float) -> str:
    return f"{labels}-{noise:g}"


def gather(recipe: DisagreementRecipe, seed: int, folder: Path) -> Votes:
    """A seed's pictures, and the votes on them at each noise; made once, then read.

    Who votes changes no draw but the votes, so that all noises have the same pairs.
    """
    if not (folder / VOTES).exists():
        _vote(recipe, seed, folder)
    votes = json.loads((folder / VOTES).read_text(encoding="utf-8"))
    sets = {name: list(PreferenceSet(folder / "preferences" / f"{name}.jsonl")) for name in ("train", *TESTS)}
    order = votes["shares"].pop("order")
    return Votes(sets.pop("train"), votes["shares"], votes["weighted"], order, sets)


def _vote(recipe: DisagreementRecipe, seed: int, folder: Path) -> None:
    preferences = recipe.preferences
    shutil.rmtree(folder / "preferences", ignore_errors=True)
    generator = recipe.load_generator()
    counts = {"train": preferences.train_prompts, "held_out": preferences.id_prompts, "unseen": preferences.ood_prompts}
    pools = {split: generate(generator, split, n, preferences.samples, seed) for split, n in counts.items()}
    for name, split in zip(TESTS, ("held_out", "unseen"), strict=True):
        pairs = pair_up(pools[split], split, preferences.test_pairs, preferences, seed, exact=True)
        write_preferences(pairs, folder / "preferences" / f"{name}.jsonl")
    exact = preferences.annotators.model_copy(update={"noise": 0.0, "careless": 0.0, "tie_within": 1e-9})
    voted = {f"{noise:g}": recipe.voted(noise) for noise in recipe.noise}
    voted["order"] = preferences.model_copy(update={"annotators": exact})
    shares: dict[str, list[float]] = {}
    weighted: dict[str, list[float]] = {}
    for name, voters in voted.items():
        rows = pair_up(pools["train"], "train", preferences.pairs, voters, seed, exact=False, early="some")
        each = preferences.annotators.votes if preferences.annotators.crowd else 1  # a crowd's votes stand one by one
        pairs, votes = rows[::each], np.array([row.share for row in rows]).reshape(-1, each)
        shares[name] = votes.mean(axis=1).tolist()
        if preferences.annotators.crowd and name != "order":
            annotators = np.array([int(row.annotator) for row in rows])
            weighted[name] = weigh(np.repeat(np.arange(len(pairs)), each), annotators, votes.ravel()).share.tolist()
    write_preferences([replace(pair, annotator="") for pair in pairs], folder / "preferences" / "train.jsonl")
    text = json.dumps({"shares": shares, "weighted": weighted})
    write_text_atomically(folder / VOTES, text + "\n")  # last: without it all is made anew


def labelled(pairs: Sequence[Preference], shares: Sequence[float], labels: str) -> list[Preference]:
    """The pairs as they are learned: with their shares of votes, or those that have a majority with it as 0 or 1."""
    if labels != "majority":
        return [replace(pair, share=share) for pair, share in zip(pairs, shares, strict=True)]
    return [replace(pair, share=float(share > 0.5)) for pair, share in zip(pairs, shares, strict=True) if share != 0.5]


# -- the table ---------------------------------------------------------------------------------------------------------


def wrong_labels(folder: Path, seeds: Sequence[int], noise: float) -> dict[str, float]:
    """The share of labels whose side is not the oracle's, among those that have a side; over the seeds that have voted.

    Of "majority" and, where there are any, of "weighted" labels.
    """
    wrong: dict[str, list[bool]] = {}
    for path in (folder / f"seed{seed}" / VOTES for seed in seeds):
        if path.exists():
            votes = json.loads(path.read_text(encoding="utf-8"))
            right = np.sign(np.array(votes["shares"]["order"]) - 0.5)
            for name, labels in (("majority", votes["shares"]), ("weighted", votes["weighted"])):
                if shares := labels.get(f"{noise:g}"):
                    side = np.sign(np.round(np.array(shares) - 0.5, 9))
                    wrong.setdefault(name, []).extend((side != right)[(side != 0) & (right != 0)].tolist())
    return {name: float(np.mean(are_wrong)) for name, are_wrong in wrong.items()}


def figures(recipe: DisagreementRecipe, rows: Sequence[JudgeRun]) -> dict[float, dict[str, dict[str, Interval]]]:
    """For each noise, the accuracy of each kind of label and the gain of the others over majorities, by test set."""
    by_noise = {}
    for noise in recipe.noise:
        runs = {name: [row for row in rows if row.cell == cell_name(name, noise)] for name in recipe.labels}
        by_noise[noise] = {name: judges_of(judge)[0].accuracy if judge else {} for name, judge in runs.items()}
        for name in recipe.labels[1:]:
            by_noise[noise][gain_of(name)] = gains(runs["majority"], runs[name])
    return by_noise


def gain_of(labels: str) -> str:
    """What the gain over majorities is called: "gain" where there is one only."""
    return "gain" if labels == "shares" else f"gain of {labels}"


def markdown(recipe: DisagreementRecipe, rows: Sequence[JudgeRun], wrong: dict[float, dict[str, float]]) -> str:
    """The table with what its figures are."""
    annotators, weighted = recipe.preferences.annotators, ""
    voters, noise_of = f"{annotators.votes} people", "somebody did not look"
    if annotators.crowd:
        voters, noise_of = f"{annotators.votes} of a crowd of {annotators.crowd}", "somebody never looks"
        weighted = " Weighted: each vote by how often its voter seems to be right, which follows from the votes alone."
    text = (
        f"{voters} vote on each pair. Noise: the share of votes that are wrong because {noise_of}, "
        "besides what those who look see wrongly. Wrong: the share of labels on the side that the oracle does not "
        f"prefer, of majorities{' and weighted' if annotators.crowd else ''}.{weighted} Accuracy: "
        "% of a prompt's test pairs that are ordered as the oracle orders them, both orders asked. Gain: over "
        f"hard majorities, in points, paired prompt by prompt. {OVER_SEEDS}; seeds: "
        f"{', '.join(map(str, sorted({row.seed for row in rows})))}.\n\n"
    )
    columns = ["majority", *(column for name in recipe.labels[1:] for column in (name, gain_of(name)))]
    lines = []
    for noise, by_column in figures(recipe, rows).items():
        line = [f"{number(noise, digits=0)} %", ", ".join(f"{number(share)} %" for share in wrong[noise].values())]
        for test in TESTS:
            line += [(gained if "gain" in name else points)(by_column[name].get(test)) for name in columns]
        lines.append(line)
    heads = ["noise", "wrong", *(f"{SETS[test]}: {column}" for test in TESTS for column in columns)]
    return text + markdown_table(heads, lines)


EXPERIMENT = Disagreement
