"""The hierarchical reward: a tree of criteria, each leaf its own question, verdicts per node and one of the whole.

The leaves of a question differ in their last lines only (`CriteriaTree`), so a judge that shares prefixes computes
prompt and pictures once. Not in the paper; criteria of their own follow UnifiedReward-Flex (2602.02380).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.averages import mean_margin, mean_probability
from rewarddance.reward.instructions import Criterion, load_tree, nodes, split_tree
from rewarddance.reward.judge import Judge, LossNormalizer
from rewarddance.types import Preference, Question, Verdict

AVERAGES = {"margin": mean_margin, "probability": mean_probability}


class CriteriaReward(Judge):
    """A judge asked about each criterion of a tree: its verdict is the weighted mean over the tree.

    `load_reward(name, criteria="t2i")` gives one.

    judge: answers the leaves' questions; pairwise or pointwise, if the tree has that question.
    tree: by name, or a YAML file's path; `edit#keeping` is one criterion of it with all that is below.
    average: what is averaged at each node, with the weights of the nodes below it: "margin", so that one clear fault
    can outweigh much, or "probability", so that each criterion counts for its share at most.

    It is asked and differentiated, not trained. Raises InputError for a tree, a criterion or an average that there is
    not.
    """

    def __init__(self, judge: RewardModel, tree: str, average: str = "margin") -> None:
        self.judge, self.asked, (self.name, self.criterion) = judge, tree, split_tree(tree)
        self.tree = load_tree(self.name)
        if average not in AVERAGES:
            raise InputError(f"there is no average named {average!r}.", f"Say {' or '.join(AVERAGES)}.")
        self.leaves = list(load_tree(tree).leaves)
        known = dict(nodes(self.tree.criteria))
        self._below = known[self.criterion].criteria if self.criterion else self.tree.criteria
        self.average, self.needs_reference = average, needs_reference(judge)
        for name in ("model", "config", "vlm", "name_or_path", "together", "needs_all_processes"):
            if hasattr(judge, name):
                setattr(self, name, getattr(judge, name))

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """The verdict of the tree, or of its criterion, on each question [B], with a graph where the judge's has one.

        Raises InputError for a question that names an instruction: the tree asks its own.
        """
        return Verdict(self.margin(questions) if questions else torch.zeros(0))

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        return self._averaged(questions)[self.criterion]

    def explain(self, questions: Sequence[Question]) -> Verdict:
        raise InputError("a tree of criteria gives no reasons.", "Ask without criteria, or leave out explain.")

    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        raise InputError("a tree of criteria is asked, not trained.", "Train the judge itself, without criteria.")

    def save(self, folder: Path) -> None:
        self.judge.save(folder)  # type: ignore[attr-defined]

    def by_criterion(self, questions: Sequence[Question]) -> dict[str, Verdict]:
        """The verdicts [B] of every node that is asked, by its path: 'alignment', 'alignment/count', ..."""
        margins = self._averaged(questions) if questions else {}
        return {path: Verdict(margin) for path, margin in margins.items() if path}

    def _averaged(self, questions: Sequence[Question]) -> dict[str, Float[Tensor, " B"]]:
        leaves = self._leaf_margins(questions)
        return averaged(self._below, leaves, self.average, self.criterion) if self._below else leaves

    def _leaf_margins(self, questions: Sequence[Question]) -> dict[str, Float[Tensor, " B"]]:
        for number, question in enumerate(questions):
            if question.instruction is not None:
                raise InputError(
                    f"question {number} ({question.prompt.text!r}) names the instruction {question.instruction!r}, but "
                    "a tree of criteria asks its own.",
                    "Leave it out, or ask the judge itself.",
                )
        # All of one question's leaves in a row: what they share is then in one batch.
        leaf_questions = [
            replace(question, instruction=f"{self.name}#{leaf}") for question in questions for leaf in self.leaves
        ]
        margins = self.judge(leaf_questions).margin.view(len(questions), len(self.leaves))
        return dict(zip(self.leaves, margins.unbind(1), strict=True))


def averaged(
    criteria: dict[str, Criterion],
    leaves: dict[str, Float[Tensor, " B"]],
    average: str,
    above: str = "",
) -> dict[str, Float[Tensor, " B"]]:
    """Margins [B] of every node from those of the leaves, by path; `above`, the root, is '' of a whole tree.

    A node is the weighted mean of the nodes right below it, each of which is one already.
    """
    margins_of: dict[str, Tensor] = {}
    for name, node in criteria.items():
        path = f"{above}/{name}" if above else name
        margins_of |= averaged(node.criteria, leaves, average, path) if node.criteria else {path: leaves[path]}
    paths = [f"{above}/{name}" if above else name for name in criteria]
    margins = torch.stack([margins_of[path] for path in paths])
    weights = torch.tensor([node.weight for node in criteria.values()], device=margins.device)
    return {above: AVERAGES[average](margins, weights)} | margins_of
