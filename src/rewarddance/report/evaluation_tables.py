"""An evaluation's figures as tables and sentences, which both its page and the model card show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rewarddance.evaluation.consistency import CHANCE
from rewarddance.evaluation.examine import NONE_PROBED
from rewarddance.evaluation.findings import Evaluation, Sentence, SetFindings, StressFigures
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import Cell, FigureCell, Table, figure_text, number
from rewarddance.report.stress_tables import Stressed, labelled, stress_facts, stress_findings, stress_table

Tests = Mapping[str, SetFindings]
DOMAINS = {"id": "in domain", "ood": "out of domain"}
"""What two names of test sets stand for, wherever this project makes them."""


def set_title(name: str) -> str:
    """A test set's name, with what it stands for where that is known."""
    return f"{name} ({DOMAINS[name]})" if name in DOMAINS else name


def evaluation_tables(tests: Tests) -> dict[str, Table]:
    """All tables by name, a row for each test set or more."""

    def by_test(heads: tuple[str, ...], cells: Callable[[SetFindings], list[Cell]]) -> Table:
        return Table(heads, [[set_title(name), *cells(test)] for name, test in tests.items()])

    calibration = ("ECE", "NLL", "Least NLL", "Temperature", "Gain in NLL", "ECE, other half", "ECE after")
    return {
        "accuracy": by_test(("Accuracy", "With ties", "Pairs", "Ties", "Prompts"), _accuracy),
        "by_source": _accuracy_by(tests, "by_source"),
        "by_criterion": _accuracy_by(tests, "by_criterion"),
        "calibration": by_test(calibration, _calibration),
        "reliability": _reliability(tests),
        "order": by_test(("Agree", "Yes to both", "No to both", "Pull", "Accuracy of one"), _order),
        "transitivity": by_test(("Cyclic", "Triples", "Prompts"), _transitivity),
        "image_stats": _image_stats(tests),
        "length": _length(tests),
        "stress": stress_table(_stressed(tests)),
    }


def evaluation_context(evaluation: Evaluation | None) -> dict[str, Any]:
    """What the templates of the page and of the card share."""
    tests = evaluation.tests if evaluation else {}
    return {
        "evaluation": evaluation,
        "set_title": set_title,
        "tables": evaluation_tables(tests),
        "limits": limits_of(evaluation) if evaluation else [],
        "margin_spreads": margin_spreads(tests),
        "chance": CHANCE,
        "disturbances": labelled(),
        "stress_facts": stress_facts(_stressed(tests)),
    }


def margin_spreads(tests: Tests) -> str:
    """What the changes of the margin in the table of image statistics are to be compared with."""
    spreads = (
        f"{number(test.bias.spread, 1, 2)} on {set_title(name)} ({test.bias.probed:,})" for name, test in tests.items()
    )
    return f"Standard deviation of the margins of the probed pairs: {', '.join(spreads)}."


def limits_of(evaluation: Evaluation) -> list[str]:
    """A sentence for each fault that its interval bears out, test set by test set; the last one stands everywhere."""
    limits = []
    for name, test in evaluation.tests.items():
        on, accuracy, fitted = f"On {set_title(name)}", test.accuracy, test.calibration.temperature
        if test.failed:
            limits.append(f"{on} some pairs could not be judged and are in no figure: {test.failed}.")
        if not isinstance(accuracy, str) and accuracy.low <= 0.5:
            verdict = "it is wrong more often than right" if accuracy.high < 0.5 else "it is not told apart from chance"
            limits.append(f"{on} {verdict}: {figure_text(accuracy)}.")
        if not isinstance(test.order, str) and test.order.consistent.high < 0.9:
            share = number(1 - test.order.consistent.mean, digits=0)
            advice = 'ask it both ways (`load_reward(..., orders="both")`)'
            limits.append(f"{on} it contradicts itself on {share} of 100 pairs when they change places: {advice}.")
        if not isinstance(fitted, str) and fitted.gain.low > 0:
            fault = "too bold" if fitted.value > 1 else "too timid"
            limits.append(f"{on} its P(yes) is {fault}: to read it as a share, divide margins by {fitted.value:.2f}.")
        correlations = {stat: bias.beyond_votes for stat, bias in test.bias.image_stats.items()}
        likes = [
            f"{'more' if beyond.mean > 0 else 'less'} {stat} ({figure_text(beyond, 1, 2, '+')})"
            for stat, beyond in correlations.items()
            if not isinstance(beyond, str) and (beyond.low > 0 or beyond.high < 0)
        ]
        if likes:
            limits.append(f"{on} it likes, beyond what the votes do, {', '.join(likes)}.")
        if isinstance(test.stress, StressFigures):
            limits += [f"{on} {finding}" for finding in stress_findings(test.stress)]
    if any(isinstance(test.stress, StressFigures) for test in evaluation.tests.values()):
        return [*limits, "Whether an optimiser finds what wins under stress is not measured here."]
    return [*limits, "What an optimiser would find against it (reward hacking) is not measured here."]


def _stressed(tests: Tests) -> Stressed:
    return {set_title(name): test.stress for name, test in tests.items() if test.stress is not None}


def _cell(value: Interval | Sentence, *form: Any) -> Cell:
    return value if isinstance(value, str) else FigureCell(value, *form)


LOGITS = 1, 2, "+"


def _accuracy(test: SetFindings) -> list[Cell]:
    ties = test.with_ties if isinstance(test.with_ties, str) else test.with_ties.accuracy
    return [_cell(test.accuracy), _cell(ties), *(f"{count:,}" for count in (test.pairs, test.ties, test.prompts))]


def _accuracy_by(tests: Tests, key: str) -> Table:
    """Accuracy by source (key "by_source") or by criterion: a row for each, those with most pairs first."""
    figures: list[dict[str, Interval]] = [getattr(test, key) for test in tests.values()]
    count = {name: sum(of[name].n for of in figures if name in of) for by_name in figures for name in by_name}
    rows = [
        [name or "none named", *(_cell(of[name]) if name in of else "" for of in figures), f"{count[name]:,}"]
        for name in sorted(count, key=lambda name: -count[name])
    ]
    return Table((*map(set_title, tests), "Pairs"), rows)


def _calibration(test: SetFindings) -> list[Cell]:
    figures, fitted = test.calibration, test.calibration.temperature
    cells: list[Cell] = [number(figures.ece), number(figures.nll, 1, 3), number(figures.least_nll, 1, 3)]
    if isinstance(fitted, str):
        return [*cells, fitted, "", "", ""]
    gain = FigureCell(fitted.gain, 1, 3, "+")
    return [*cells, number(fitted.value, 1, 2), gain, number(fitted.ece_before), number(fitted.ece_after)]


def _reliability(tests: Tests) -> Table:
    rows = [
        [set_title(name), f"{b.low:.1f} to {b.high:.1f}", number(b.p_yes), FigureCell(b.votes), f"{b.votes.n:,}"]
        for name, test in tests.items()
        for b in test.calibration.bins
    ]
    return Table(("P(yes)", "Mean P(yes)", "Votes for yes", "Questions"), rows)


def _order(test: SetFindings) -> list[Cell]:
    order = test.order
    if isinstance(order, str):
        return [order]
    shares = [FigureCell(share) for share in (order.consistent, order.yes_twice, order.no_twice)]
    return [*shares, FigureCell(order.pull, *LOGITS), _cell(order.one_order)]


def _transitivity(test: SetFindings) -> list[Cell]:
    cycles = test.transitivity
    if isinstance(cycles, str):
        return [cycles]
    return [FigureCell(cycles.cyclic), f"{cycles.triples:,}", f"{cycles.cyclic.n:,}"]


def _image_stats(tests: Tests) -> Table:
    rows = []
    for name, test in tests.items():
        if not test.bias.image_stats:
            rows.append([set_title(name), NONE_PROBED, "", "", ""])
        for i, (stat, bias) in enumerate(test.bias.image_stats.items()):
            amount = f"{bias.amount:g}" if stat == "brightness" else f"{100 * bias.amount:g} %"
            moves = [FigureCell(bias.more, *LOGITS), FigureCell(bias.less, *LOGITS), FigureCell(bias.flipped)]
            rows.append(["" if i else set_title(name), f"{stat} ±{amount}", *moves, _cell(bias.beyond_votes, *LOGITS)])
    return Table(("Statistic", "More of it", "Less of it", "Answers flipped", "Beyond the votes"), rows)


def _length(tests: Tests) -> Table:
    rows = []
    for name, test in tests.items():
        thirds, level = test.bias.length.thirds, _cell(test.bias.length.level, *LOGITS)
        if isinstance(thirds, str):
            rows.append([set_title(name), thirds, "", level])
            continue
        for i, (low, high, accuracy) in enumerate(thirds):
            words = f"{low} to {high}" if low < high else f"{low}"
            rows.append(["" if i else set_title(name), words, FigureCell(accuracy), "" if i else level])
    return Table(("Words", "Accuracy", "Level follows length"), rows)
