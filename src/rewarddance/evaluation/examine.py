"""A judge examined on a test set: everything that evaluation.json says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewarddance.errors import RewardDanceError
from rewarddance.evaluation.agreement import agreement_with_ties, agrees
from rewarddance.evaluation.answers import (
    Answers,
    Candidates,
    Failure,
    Group,
    Pairs,
    ask,
    group_pictures,
    groups_of,
    of_most_prompts,
)
from rewarddance.evaluation.bias import PROBE_AMOUNTS, correlation_beyond, rank_correlation
from rewarddance.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    calibration_error,
    entropy,
    fit_temperature,
    nll,
    reliability,
)
from rewarddance.evaluation.consistency import cyclic_triples, same_answer_twice, same_in_both_orders
from rewarddance.evaluation.findings import (
    BiasFindings,
    CalibrationFindings,
    JudgeFacts,
    LengthFindings,
    OrderFindings,
    Sentence,
    SetFindings,
    StatFindings,
    StressFigures,
    TemperatureFindings,
    TransitivityFindings,
    WithTiesFindings,
)
from rewarddance.evaluation.recipe import ExamRecipe, StressRecipe
from rewarddance.evaluation.statistics import (
    Interval,
    by_category,
    interval,
    interval_of_sums,
    numbered,
    with_wilson,
)
from rewarddance.evaluation.stress import stress as stress_reward
from rewarddance.generators.decoder import Decoder
from rewarddance.protocols import RewardModel
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.tracking import progress_bar


class Stress(NamedTuple):
    """How a judge is stressed, with the decoder that the recipe names."""

    recipe: StressRecipe
    decoder: Decoder | None = None


NONE_PROBED = "None of the pairs that were to be changed can be judged."
_LEAST_CORRELATED = 4
"""Prompts: of two a rank correlation is always 1 or -1."""
OWN_SCORES = "It gives each picture a score of its own"


def examine(
    judge: RewardModel,
    facts: JudgeFacts,
    pairs: Pairs,
    recipe: ExamRecipe,
    *,
    name: str,
    file: str = "",
    stress: Stress | None = None,
) -> tuple[SetFindings, list[Failure]]:
    """Ask about the test set once in batches, compare some prompts' pictures, and measure; failed pairs stand apart.

    name: of the test set, for the bars. stress: also find out what the judge pays for pictures that are no better.
    Raises InputError where no pair can be judged.
    """
    rng = np.random.default_rng(recipe.seed)
    probed = rng.permutation(len(pairs))[: recipe.probes].tolist()
    with progress_bar(f"pairs of {name}", len(pairs)) as bar:
        answers, failed = ask(judge, pairs, recipe.batch_size, probed, bar.advance)
    half = rng.permutation(answers.units.max() + 1)[answers.units] % 2 == 0
    groups = groups_of(answers, recipe.groups, recipe.pictures, rng) if judge.needs_reference else []
    ordered = answers.share != 0.5
    right, units = agrees(answers.margin[ordered], answers.share[ordered]), answers.units[ordered]

    def accuracy_by(names: Sequence[str]) -> dict[str, Interval]:
        named = [name for name, keep in zip(names, ordered, strict=True) if keep]
        return by_category(right, named, units, share=True) if any(named) else {}

    findings = SetFindings(
        file=file,
        failed=len(failed),
        pairs=len(answers.share),
        prompts=int(answers.units.max()) + 1,
        ties=int((~ordered).sum()),
        accuracy=interval(right, units=units, share=True) if len(right) else "All pairs are ties: none has an order.",
        with_ties=_with_ties(answers, half),
        by_source=accuracy_by(answers.sources),
        by_criterion=accuracy_by(answers.criteria),
        calibration=_calibration(answers, half),
        order=_order(judge, facts, answers),
        transitivity=_transitivity(judge, pairs, answers, groups, name),
        bias=_bias(judge, facts, answers),
        stress=None if stress is None else _stress(judge, pairs, answers, stress, recipe.seed, name),
    )
    return findings, failed


def _with_ties(answers: Answers, half: np.ndarray) -> WithTiesFindings | Sentence:
    tied = answers.share == 0.5
    if not tied.any():
        return "No pair is a tie."
    if not (tied & half).any() or not (tied & ~half).any():
        return "The ties are of one prompt, so no threshold can be found on other prompts than it is used on."
    right, threshold = agreement_with_ties(answers.margin, answers.share, half)
    return WithTiesFindings(accuracy=interval(right, units=answers.units, share=True), threshold=threshold)


def _calibration(answers: Answers, half: np.ndarray) -> CalibrationFindings:
    def both_orders(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Margins, shares and units of the chosen pairs' questions."""
        share = answers.share[chosen]
        margin = np.concatenate([answers.forward[chosen], answers.backward[chosen]])
        return margin, np.concatenate([share, 1 - share]), np.tile(answers.units[chosen], 2)

    margin, share, units = both_orders(np.ones_like(half))
    return CalibrationFindings(
        ece=calibration_error(margin, share),
        nll=float(nll(margin, share).mean()),
        least_nll=float(entropy(share).mean()),
        bins=reliability(margin, share, units),
        temperature=_temperature(both_orders(half), both_orders(~half)),
    )


def _temperature(fitted: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...]) -> TemperatureFindings | Sentence:
    if not (len(fitted[0]) and len(held_out[0])):
        return "There is one prompt, so no temperature can be fitted on other prompts than it is measured on."
    value = fit_temperature(*fitted[:2])
    if value == HOTTEST:
        return "No temperature helps: the margins do not go with the votes, and flat answers would be best."
    if value == COLDEST:
        return "No temperature is cold enough: its answers on one half are all right, so that bolder is always better."
    margin, share, units = held_out
    before, after = nll(margin, share), nll(margin / value, share)
    return TemperatureFindings(
        value=value,
        nll_before=float(before.mean()),
        nll_after=float(after.mean()),
        gain=interval(before - after, units=units)._replace(n=len(margin) // 2),
        ece_before=calibration_error(margin, share),
        ece_after=calibration_error(margin / value, share),
    )


def _order(judge: RewardModel, facts: JudgeFacts, answers: Answers) -> OrderFindings | Sentence:
    if not judge.needs_reference:
        return f"{OWN_SCORES}, so no place can be liked: both orders agree by construction."
    if facts.orders == "both":
        return "It asks both orders itself and averages, so both agree by construction (ask it with orders 'forward')."
    forward, backward, ordered = answers.forward, answers.backward, answers.share != 0.5
    share = answers.share[ordered]
    once = (agrees(forward[ordered], share) + agrees(backward[ordered], 1 - share)) / 2
    return OrderFindings(
        consistent=interval(same_in_both_orders(forward, backward), units=answers.units, share=True),
        yes_twice=interval(same_answer_twice(forward, backward, 1), units=answers.units, share=True),
        no_twice=interval(same_answer_twice(forward, backward, -1), units=answers.units, share=True),
        pull=interval((forward + backward) / 2, units=answers.units),
        one_order=interval(once, units=answers.units[ordered], share=True) if ordered.any() else "All pairs are ties.",
    )


def _transitivity(
    judge: RewardModel, pairs: Pairs, answers: Answers, groups: Sequence[Group], name: str
) -> TransitivityFindings | Sentence:
    """The figures, or what went wrong: hours of examination are not lost over it."""
    if not judge.needs_reference:
        return f"{OWN_SCORES}, so its order has no cycles by construction."
    if not groups:
        return "No prompt has three different pictures."
    counts, prompts = [], []
    with progress_bar(f"triples of {name}", len(groups)) as bar:
        for group in groups:
            pictures, prompt = group_pictures(pairs, answers, group)
            try:
                (ranking,) = tournament(judge, [prompt], [pictures])
            except RewardDanceError as error:
                return f"It could not be measured: {error}"
            counts.append(cyclic_triples(ranking.margins))
            prompts.append(prompt.text)
            bar.advance()
    sums = np.array(counts, dtype=np.float64)
    share = interval_of_sums(sums, lambda total: total[:, 0] / total[:, 1], numbered(prompts))
    triples = int(sums[:, 1].sum())
    return TransitivityFindings(cyclic=with_wilson(share, triples).cut(0.0, 1.0), triples=triples)


def _bias(judge: RewardModel, facts: JudgeFacts, answers: Answers) -> BiasFindings:
    units, before = answers.units[answers.probed], answers.forward[answers.probed]
    findings = {}
    for i, (name, amount) in enumerate(PROBE_AMOUNTS.items() if len(before) else ()):
        after, difference = answers.perturbed[:, i], answers.image_stats[:, 1, i] - answers.image_stats[:, 0, i]
        beyond = correlation_beyond(answers.margin, difference, answers.share, answers.units)
        findings[name] = StatFindings(
            amount=amount,
            more=interval(after[:, 0] - before, units=units),
            less=interval(after[:, 1] - before, units=units),
            flipped=interval(((after > 0) != (before > 0)[:, None]).any(1), units=units, share=True),
            beyond_votes="It does not vary beyond the votes." if beyond is None else beyond,
        )
    words = np.array([len(prompt.split()) for prompt in answers.prompts])
    length = LengthFindings(thirds=_thirds(answers, words), level=_level(judge, facts, answers, words))
    return BiasFindings(
        probed=len(before), spread=float(before.std()) if len(before) else 0.0, image_stats=findings, length=length
    )


def _thirds(answers: Answers, words: np.ndarray) -> list[tuple[int, int, Interval]] | Sentence:
    """Accuracy of prompts with few, middling and many words, each with its fewest and most words."""
    ordered = answers.share != 0.5
    right, words = agrees(answers.margin[ordered], answers.share[ordered]), words[ordered]
    lengths = np.unique(words)
    if len(lengths) < 2:
        return "All prompts have the same number of words."
    edges = np.unique(np.quantile(words, [0, 1 / 3, 2 / 3], method="lower"))
    if len(lengths) <= 3 or len(edges) == 1:  # prompts of one length stay together
        edges = lengths[:3]
    part = np.searchsorted(edges, words, side="right")
    members = [part == k for k in np.unique(part)]
    units = answers.units[ordered]
    return [
        (int(words[rows].min()), int(words[rows].max()), interval(right[rows], units=units[rows], share=True))
        for rows in members
    ]


def _level(judge: RewardModel, facts: JudgeFacts, answers: Answers, words: np.ndarray) -> Interval | Sentence:
    """Does the level of the probed pairs' answers follow the number of words? Correlated over prompts."""
    if judge.needs_reference and facts.orders == "both":
        return "It asks both orders itself: its answers are level by construction."
    if not len(answers.probed):
        return NONE_PROBED
    _, first, place = np.unique(answers.units[answers.probed], return_index=True, return_inverse=True)
    level = np.bincount(place, answers.level) / np.bincount(place)
    follows = rank_correlation(words[answers.probed][first], level)
    if follows is None:
        return "Its prompts are all of one length, or its answers all at one level."
    return follows if len(first) >= _LEAST_CORRELATED else f"{len(first)} prompts are too few to tell."


def _stress(
    judge: RewardModel, pairs: Pairs, answers: Answers, stress: Stress, seed: int, name: str
) -> StressFigures | Sentence:
    """The figures, or what went wrong: hours of examination are not lost over it."""
    chosen = of_most_prompts(answers, stress.recipe.questions, np.random.default_rng(seed))
    options = stress.recipe.model_dump(include={"steps", "batch_size"})
    with progress_bar(f"stress on {name}", len(chosen)) as bar:
        try:
            candidates = Candidates(pairs, chosen)
            return stress_reward(judge, candidates, **options, decoder=stress.decoder, seed=seed, tick=bar.advance)
        except RewardDanceError as error:
            return f"It could not be measured: {error}"
