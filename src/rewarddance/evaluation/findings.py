"""What an evaluation finds: the records of evaluation.json. Where a figure cannot be had, a sentence says why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, PlainSerializer

from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

Figure = Annotated[Interval, PlainSerializer(lambda figure: figure._asdict())]
Sentence = str
"""Why there is no figure."""
FILE = "evaluation.json"


class JudgeFacts(BaseModel):
    """Who was examined. orders: "both" where each question is asked in both orders and averaged by the judge itself."""

    name: str
    kind: str
    instruction: str | None = None
    instruction_version: int | None = None
    orders: str = "forward"
    base: str | None = None

    @property
    def alone(self) -> bool:
        """Does it give each picture a score of its own?"""
        return self.kind != "pairwise"


class WithTiesFindings(BaseModel):
    """Accuracy where "equal" is an answer too: the judge's below `threshold` (see `agreement_with_ties`)."""

    accuracy: Figure
    threshold: float


class BinFindings(BaseModel):
    """One bin of the reliability plot: the mean P(yes) said, and the share of votes for yes."""

    low: float
    high: float
    said: float
    votes: Figure


class TemperatureFindings(BaseModel):
    """The temperature fitted on one half of the prompts, and what it does to the other half's pairs (n of `gain`).

    gain: nll_before - nll_after.
    """

    value: float
    nll_before: float
    nll_after: float
    gain: Figure
    ece_before: float
    ece_after: float


class CalibrationFindings(BaseModel):
    """Of all pairs in both orders. nll: nats a question; least_nll: the votes' own entropy, which no judge can beat."""

    ece: float
    nll: float
    least_nll: float
    bins: list[BinFindings]
    temperature: TemperatureFindings | Sentence


class OrderFindings(BaseModel):
    """One order against the other. one_order: accuracy of a question asked once. pull: mean of both orders' margins."""

    consistent: Figure
    yes_twice: Figure
    no_twice: Figure
    pull: Figure
    one_order: Figure | Sentence


class TransitivityFindings(BaseModel):
    """The share of triples of one prompt's pictures that are cyclic; n of `cyclic` counts prompts."""

    cyclic: Figure
    triples: int


class LookFindings(BaseModel):
    """One look. more, less: how far the margin moves, in logits, when the candidate has more or less of it by `amount`.

    turned: the share of answers that either change turns to the other. beyond_votes: the correlation of margin and
    difference in this look over the test pairs, beyond the votes.
    """

    amount: float
    more: Figure
    less: Figure
    turned: Figure
    beyond_votes: Figure | Sentence


class LengthFindings(BaseModel):
    """Prompts of few, middling and many words: [fewest words, most words] and accuracy there; and whether the level of
    its answers follows the number of words (rank correlation over prompts)."""

    thirds: list[tuple[int, int, Figure]] | Sentence
    level: Figure | Sentence


class BiasFindings(BaseModel):
    """spread: the standard deviation of the probed margins, to hold the moves against; probed: how many pairs."""

    probed: int
    spread: float
    looks: dict[str, LookFindings]
    length: LengthFindings


class SetFindings(BaseModel):
    """One test set. pairs: those judged; failed: how many could not be, which are in no figure. accuracy: on pairs with
    an order. by_source, by_criterion: the same, apart; empty without names.
    """

    file: str
    failed: int
    pairs: int
    prompts: int
    ties: int
    accuracy: Figure | Sentence
    with_ties: WithTiesFindings | Sentence
    by_source: dict[str, Figure]
    by_criterion: dict[str, Figure]
    calibration: CalibrationFindings
    order: OrderFindings | Sentence
    transitivity: TransitivityFindings | Sentence
    bias: BiasFindings


class Evaluation(BaseModel):
    """evaluation.json. seed: of which prompts are in which half, and which are probed."""

    judge: JudgeFacts
    tests: dict[str, SetFindings]
    seed: int
    machine: str
    version: str
    seconds: float


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    path = folder / FILE
    write_text_atomically(path, evaluation.model_dump_json(indent=2) + "\n")
    return path


def read_evaluation(path: Path) -> Evaluation:
    """Raises InputError naming the file and the first figure that is missing or wrong in it."""
    return parse_file(path, Evaluation.model_validate_json, "Evaluate the judge again.")


def had(value: Any) -> bool:
    """Is it a figure, and not the sentence that says why there is none?"""
    return not isinstance(value, str)
