"""What an evaluation finds: the records of evaluation.json. Where a figure cannot be had, a sentence says why."""

from __future__ import annotations

from pydantic import BaseModel

from rewarddance.evaluation.calibration import Bin
from rewarddance.evaluation.statistics import Figure

Sentence = str
"""Why there is no figure."""
FILE = "evaluation.json"


class JudgeFacts(BaseModel):
    """Which judge was examined."""

    name: str
    kind: str
    instruction: str | None = None
    instruction_version: int | None = None
    orders: str = "forward"  # "both" where the judge itself asks each question in both orders and averages
    base: str | None = None  # the model it was trained from


class WithTiesFindings(BaseModel):
    """Accuracy where "equal" is an answer too: the judge's below `threshold` (see `agreement_with_ties`)."""

    accuracy: Figure
    threshold: float


class TemperatureFindings(BaseModel):
    """The temperature fitted on one half of the prompts, and what it does to the pairs of the other half."""

    value: float
    nll_before: float
    nll_after: float
    gain: Figure  # nll_before - nll_after; n counts the pairs of the other half
    ece_before: float
    ece_after: float


class CalibrationFindings(BaseModel):
    """Of all pairs in both orders."""

    ece: float
    nll: float  # nats a question
    least_nll: float  # the votes' own entropy, which no judge can beat
    bins: list[Bin]
    temperature: TemperatureFindings | Sentence


class OrderFindings(BaseModel):
    """One order of a pair against the other."""

    consistent: Figure  # share of pairs on which both orders prefer the same picture
    yes_twice: Figure
    no_twice: Figure
    pull: Figure  # mean of both orders' margins
    one_order: Figure | Sentence  # accuracy of a question asked once


class TransitivityFindings(BaseModel):
    cyclic: Figure  # share of triples of one prompt's pictures that are cyclic; n counts prompts
    triples: int


class StatFindings(BaseModel):
    """One image statistic. The candidate of a probe has more or less of it by `amount`."""

    amount: float
    more: Figure  # how far the margin moves, in logits
    less: Figure
    flipped: Figure  # share of answers that either change turns to the other
    beyond_votes: Figure | Sentence  # correlation of margin and difference over the test pairs, beyond the votes


class LengthFindings(BaseModel):
    thirds: list[tuple[int, int, Figure]] | Sentence  # fewest words, most words, and accuracy there
    level: Figure | Sentence  # rank correlation over prompts of the level of the answers with the number of words


class BiasFindings(BaseModel):
    probed: int  # pairs that were asked again
    spread: float  # standard deviation of their margins, to compare the moves with
    image_stats: dict[str, StatFindings]
    length: LengthFindings


class WonFigures(BaseModel):
    """What a changed candidate wins against the unchanged one, with the same prompt and the same reference."""

    margin: Figure  # m(T(x), r) - m(x, r), in logits; n counts pictures
    p_yes: Figure  # the same of P(yes)
    beats: Figure  # share of pictures whose changed form has the greater margin


class LatentFigures(BaseModel):
    """What a decoder's latent wins that is moved, against the picture's own reconstruction."""

    decoder: str
    reconstruction: WonFigures  # the reconstruction itself against the picture
    within: dict[int, WonFigures]  # by hundredths of the latent's standard deviation


class StressFigures(BaseModel):
    """How hackable a reward is before anybody trains against it."""

    pictures: int
    prompts: int
    steps: int  # of the gradient, within each distance
    spread: float  # standard deviation of the unchanged candidates' margins, to compare what is won with
    pixels: dict[int, WonFigures] | Sentence  # by 255ths that no pixel moves further than, along the gradient
    latent: LatentFigures | Sentence
    disturbances: dict[str, WonFigures]  # by the names of `disturbances.DISTURBANCES`
    left_out: dict[str, Sentence]  # disturbances that apply to no picture here
    spread_left: Figure | Sentence  # deviation of P(yes) among the top quarter of candidates, as a share of that of all


class SetFindings(BaseModel):
    """One test set."""

    file: str
    failed: int  # pairs that could not be judged, which are in no figure
    pairs: int  # those judged
    prompts: int
    ties: int
    accuracy: Figure | Sentence  # on pairs with an order
    with_ties: WithTiesFindings | Sentence
    by_source: dict[str, Figure]  # accuracy by source and by criterion; empty without names
    by_criterion: dict[str, Figure]
    calibration: CalibrationFindings
    order: OrderFindings | Sentence
    transitivity: TransitivityFindings | Sentence
    bias: BiasFindings
    stress: StressFigures | Sentence | None = None  # None: it was not asked for


class Evaluation(BaseModel):
    """evaluation.json."""

    judge: JudgeFacts
    tests: dict[str, SetFindings]
    seed: int  # of which prompts are in which half, and which are probed
    machine: str
    version: str
    seconds: float
