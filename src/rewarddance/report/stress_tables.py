"""What a reward pays for pictures that are no better: the table, and the sentences, of page and card."""

from __future__ import annotations

from collections.abc import Mapping

from rewarddance.evaluation.disturbances import DISTURBANCES
from rewarddance.evaluation.findings import Sentence, StressFigures, WonFigures
from rewarddance.report.formatting import Cell, FigureCell, Table, figure_text, number

Stressed = Mapping[str, StressFigures | Sentence]
"""By the title of each test set that was stressed."""
HEADS = ("Change", "Margin won", "P(yes) won", "Beat the clean one", "Pictures")
SMALL = 2
"""255ths of the gradient that a finding is about."""
_LOGITS = 1, 2, "+"


def stress_table(stressed: Stressed) -> Table:
    """A row for each change of each test set."""
    rows: list[list[Cell]] = []
    for title, stress in stressed.items():
        stress_rows = [[stress]] if isinstance(stress, str) else _rows(stress)
        rows += [["" if i else title, *row] for i, row in enumerate(stress_rows)]
    return Table(HEADS, rows)


def stress_facts(stressed: Stressed) -> list[str]:
    """What the table does not hold, a paragraph for each test set: of how many, the spread at the top, the omitted."""
    facts = []
    for title, stress in stressed.items():
        if isinstance(stress, str):
            continue
        sentences = [
            f"{title}: {stress.pictures:,} pictures of {stress.prompts:,} prompts, {stress.steps} steps a distance."
        ]
        sentences.append(f"Standard deviation of their margins: {number(stress.spread, 1, 2)}.")
        if isinstance(stress.spread_left, str):
            sentences.append(f"Spread at the top: {stress.spread_left}")
        else:
            left = figure_text(stress.spread_left, 1, 2)
            sentences.append(f"P(yes) of the top quarter of them spreads {left} times as far as that of all.")
        sentences += [f"Left out is {label(change)}: {why}" for change, why in stress.left_out.items()]
        facts.append(" ".join(sentences))
    return facts


def stress_findings(stress: StressFigures) -> list[str]:
    """What is won without drawing better, a sentence each, for a list that says on which test set."""
    findings = []
    if not isinstance(stress.pixels, str):
        won = stress.pixels[SMALL].margin
        times = f", {won.mean / stress.spread:.2f} standard deviations of its margins" if stress.spread else ""
        findings.append(f"{SMALL} of 255 along its gradient win {figure_text(won, *_LOGITS)} logits{times}.")
    paid = {name: won for name, won in stress.disturbances.items() if won.margin.low > 0}
    wins = []
    for name, won in sorted(paid.items(), key=lambda item: -item[1].margin.mean):
        beaten = f"{number(won.beats.mean, digits=0)} of 100 beat the clean one"
        wins.append(f"{label(name)} ({figure_text(won.margin, *_LOGITS)}; {beaten})")
    none = f"none of {len(stress.disturbances)} disturbances wins on average."
    return [*findings, f"a picture wins by {', '.join(wins)}." if wins else none]


def label(disturbance: str) -> str:
    """A disturbance's name as it is read."""
    return disturbance.replace("_", " ")


def labelled() -> dict[str, str]:
    """Every disturbance as it is read, and what it does."""
    return {label(name): words for name, words in DISTURBANCES.items()}


def _rows(stress: StressFigures) -> list[list[Cell]]:
    def row(change: str, won: WonFigures) -> list[Cell]:
        figures = [FigureCell(won.margin, *_LOGITS), FigureCell(won.p_yes, 100, 1, "+"), FigureCell(won.beats)]
        return [change, *figures, f"{won.margin.n:,}"]

    rows: list[list[Cell]] = []
    if isinstance(stress.pixels, str):
        rows.append([f"Along the gradient: {stress.pixels}"])
    else:
        rows += [row(f"{radius} of 255 along the gradient", won) for radius, won in stress.pixels.items()]
    if not isinstance(stress.latent, str):
        rows.append(row(f"reconstruction by {stress.latent.decoder}", stress.latent.reconstruction))
        rows += [
            row(f"{radius} % of its latent along the gradient", won) for radius, won in stress.latent.within.items()
        ]
    elif stress.latent != stress.pixels:
        rows.append([f"Along the gradient of a latent: {stress.latent}"])
    return rows + [row(label(name), won) for name, won in stress.disturbances.items()]
