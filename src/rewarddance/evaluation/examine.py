"""A judge examined on a test set: everything that evaluation.json says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from rewarddance.evaluation.agreement import agreement_with_ties, agrees
from rewarddance.evaluation.bias import AMOUNTS, LOOKS, correlation_beyond, rank_correlation
from rewarddance.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    calibration_error,
    entropy,
    fit_temperature,
    nll,
    reliability,
)
from rewarddance.evaluation.compositional import by_category
from rewarddance.evaluation.consistency import cyclic_triples, same_in_both_orders, twice
from rewarddance.evaluation.findings import (
    BiasFindings,
    BinFindings,
    CalibrationFindings,
    JudgeFacts,
    LengthFindings,
    LookFindings,
    OrderFindings,
    Sentence,
    SetFindings,
    TemperatureFindings,
    TransitivityFindings,
    WithTiesFindings,
)
from rewarddance.evaluation.readings import Failure, Pairs, Readings, group_pictures, groups_of, read
from rewarddance.evaluation.statistics import Interval, interval, interval_of_sums, numbered
from rewarddance.protocols import RewardModel
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.config import Recipe, Seed
from rewarddance.runtime.tracking import progress_bar

ALONE = "It gives each picture a score of its own"


class ExamRecipe(Recipe):
    """How thoroughly a judge is examined.

    batch_size: pairs in memory together. probes: pairs of a test set that are asked again with the candidate changed
    (eight questions each). groups, pictures: prompts of a test set whose pictures all meet, and how many of each, for
    the triples. seed: of which prompts are in which half, and which meet.
    """

    batch_size: int = Field(default=32, ge=1)
    probes: int = Field(default=200, ge=1)
    groups: int = Field(default=50, ge=1)
    pictures: int = Field(default=5, ge=3)
    seed: Seed = 0


def examine(
    judge: RewardModel, facts: JudgeFacts, pairs: Pairs, recipe: ExamRecipe, name: str, file: str = ""
) -> tuple[SetFindings, list[Failure]]:
    """Read the test set once in batches, let some pictures meet, and measure; the pairs that failed stand apart.

    name: of the test set, for the bars. Raises InputError where no pair can be judged.
    """
    rng = np.random.default_rng(recipe.seed)
    probed = rng.permutation(len(pairs))[: recipe.probes].tolist()
    with progress_bar(f"pairs of {name}", len(pairs)) as bar:
        found, failed = read(judge, pairs, facts.alone, recipe.batch_size, probed, bar.advance)
    half = rng.permutation(found.units.max() + 1)[found.units] % 2 == 0
    ordered = found.share != 0.5
    right, units = agrees(found.margin[ordered], found.share[ordered]), found.units[ordered]

    def apart(names: Sequence[str]) -> dict[str, Interval]:
        own = [name for name, keep in zip(names, ordered, strict=True) if keep]
        return by_category(right, own, units) if any(own) else {}

    measured = SetFindings(
        file=file,
        failed=len(failed),
        pairs=len(found.share),
        prompts=int(found.units.max()) + 1,
        ties=int((~ordered).sum()),
        accuracy=interval(right, units=units) if len(right) else "All pairs are ties: none has an order.",
        with_ties=_with_ties(found, half),
        by_source=apart(found.sources),
        by_criterion=apart(found.criteria),
        calibration=_calibration(found, half),
        order=_order(found, facts),
        transitivity=_transitivity(judge, facts, pairs, found, recipe, rng, name),
        bias=_bias(found, facts),
    )
    return measured, failed


def _with_ties(found: Readings, half: np.ndarray) -> WithTiesFindings | Sentence:
    tied = found.share == 0.5
    if not tied.any():
        return "No pair is a tie."
    if not all((tied & own).any() for own in (half, ~half)):
        return "The ties are of one prompt, so no threshold can be found on other prompts than it is used on."
    right, threshold = agreement_with_ties(found.margin, found.share, half)
    return WithTiesFindings(accuracy=interval(right, units=found.units), threshold=threshold)


def _calibration(found: Readings, half: np.ndarray) -> CalibrationFindings:
    def both(own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        margin = np.concatenate([found.forward[own], found.backward[own]])
        return margin, np.concatenate([found.share[own], 1 - found.share[own]]), np.tile(found.units[own], 2)

    margin, share, units = both(np.ones_like(half))
    return CalibrationFindings(
        ece=calibration_error(margin, share),
        nll=float(nll(margin, share).mean()),
        least_nll=float(entropy(share).mean()),
        bins=[BinFindings(**own._asdict()) for own in reliability(margin, share, units)],
        temperature=_temperature(both(half), both(~half)),
    )


def _temperature(fitted: tuple[np.ndarray, ...], held: tuple[np.ndarray, ...]) -> TemperatureFindings | Sentence:
    if not (len(fitted[0]) and len(held[0])):
        return "There is one prompt, so no temperature can be fitted on other prompts than it is measured on."
    value = fit_temperature(*fitted[:2])
    if value == HOTTEST:
        return "No temperature helps: the margins do not go with the votes, and flat answers would be best."
    if value == COLDEST:
        return "No temperature is cold enough: its answers on one half are all right, so that bolder is always better."
    margin, share, units = held
    before, after = nll(margin, share), nll(margin / value, share)
    gain = interval(before - after, units=units)
    return TemperatureFindings(
        value=value,
        nll_before=float(before.mean()),
        nll_after=float(after.mean()),
        gain=gain._replace(n=len(margin) // 2),
        ece_before=calibration_error(margin, share),
        ece_after=calibration_error(margin / value, share),
    )


def _order(found: Readings, facts: JudgeFacts) -> OrderFindings | Sentence:
    if facts.alone:
        return f"{ALONE}, so no place can be liked: both orders agree by construction."
    if facts.orders == "both":
        return "It asks both orders itself and averages, so both agree by construction (ask it with orders 'forward')."
    ordered = found.share != 0.5
    once = [
        agrees(m[ordered], s[ordered]) for m, s in ((found.forward, found.share), (found.backward, 1 - found.share))
    ]

    def figure(values: np.ndarray) -> Interval:
        return interval(values, units=found.units)

    return OrderFindings(
        consistent=figure(same_in_both_orders(found.forward, found.backward)),
        yes_twice=figure(twice(found.forward, found.backward, 1)),
        no_twice=figure(twice(found.forward, found.backward, -1)),
        pull=figure((found.forward + found.backward) / 2),
        one_order=interval((once[0] + once[1]) / 2, units=found.units[ordered])
        if ordered.any()
        else "All pairs are ties.",
    )


def _transitivity(
    judge: RewardModel,
    facts: JudgeFacts,
    pairs: Pairs,
    found: Readings,
    recipe: ExamRecipe,
    rng: np.random.Generator,
    name: str,
) -> TransitivityFindings | Sentence:
    if facts.alone:
        return f"{ALONE}, so its order has no circles by construction."
    groups = groups_of(found, recipe.groups, recipe.pictures, rng)
    if not groups:
        return "No prompt has three different pictures."
    circles, triples = [], []
    with progress_bar(f"triples of {name}", len(groups)) as bar:
        for group in groups:
            pictures, prompt = group_pictures(pairs, found, group)
            (ranking,) = tournament(judge, [prompt], [pictures])
            cyclic, all_ = cyclic_triples(ranking.margins)
            circles.append(cyclic)
            triples.append(all_)
            bar.advance()
    prompts = numbered([found.prompts[group[0][0]] for group in groups])
    sums = np.array([circles, triples], dtype=np.float64).T
    share = interval_of_sums(sums, lambda total: total[:, 0] / total[:, 1], prompts)
    return TransitivityFindings(cyclic=share, triples=sum(triples))


def _bias(found: Readings, facts: JudgeFacts) -> BiasFindings:
    at, units = found.probed, found.units[found.probed]
    before = found.forward[at]
    measured = {}
    for number, look in enumerate(LOOKS):
        moved = found.moved[:, number]
        turned = ((moved > 0) != (before > 0)[:, None]).any(1)
        beyond = correlation_beyond(
            found.margin, found.looks[:, 1, number] - found.looks[:, 0, number], found.share, found.units
        )
        measured[look] = LookFindings(
            amount=AMOUNTS[look],
            more=interval(moved[:, 0] - before, units=units),
            less=interval(moved[:, 1] - before, units=units),
            turned=interval(turned, units=units),
            beyond_votes="It does not vary beyond the votes." if beyond is None else beyond,
        )
    return BiasFindings(probed=len(at), spread=float(before.std()), looks=measured, length=_length(found, facts))


def _length(found: Readings, facts: JudgeFacts) -> LengthFindings:
    words = np.array([len(prompt.split()) for prompt in found.prompts])
    ordered = found.share != 0.5
    right, own, units = agrees(found.margin[ordered], found.share[ordered]), words[ordered], found.units[ordered]
    thirds: list[tuple[int, int, Interval]] | Sentence = "All prompts have the same number of words."
    lengths = np.unique(own)
    if len(lengths) > 1:
        edges = np.unique(np.quantile(own, [0, 1 / 3, 2 / 3], method="lower"))
        if len(lengths) <= 3 or len(edges) == 1:  # prompts of one length stay together
            edges = lengths[:3]
        part = np.searchsorted(edges, own, side="right")
        thirds = [
            (int(own[part == k].min()), int(own[part == k].max()), interval(right[part == k], units=units[part == k]))
            for k in np.unique(part)
        ]
    if not facts.alone and facts.orders == "both":
        return LengthFindings(thirds=thirds, level="It asks both orders itself: its answers are level by construction.")
    prompts, place = np.unique(found.units[found.probed], return_inverse=True)
    level = np.bincount(place, found.level) / np.bincount(place)
    length = np.zeros(len(prompts))
    length[place] = words[found.probed]
    follows = rank_correlation(length, level)
    return LengthFindings(
        thirds=thirds,
        level="Its prompts are all of one length, or its answers all at one level." if follows is None else follows,
    )
