"""The model card of a trained reward: README.md beside its weights, with front matter as the model hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from rewarddance.errors import InputError
from rewarddance.evaluation.consistency import CHANCE
from rewarddance.evaluation.findings import Evaluation, JudgeFacts, SetFindings
from rewarddance.report import evaluation_tables as tables
from rewarddance.report.evaluation_tables import title
from rewarddance.report.formatting import number
from rewarddance.report.limits import limits_of
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

CARD, TRAINING = "README.md", "training.json"
_MARK = "<!-- Written by rewarddance; `rewarddance evaluate --card` writes it anew. -->"
_PIPELINES = {"clip": "zero-shot-image-classification"}


class TrainingFacts(BaseModel):
    """training.json beside a reward's weights: what it was trained on and how. recipe: as it was given."""

    data: str
    pairs: int
    seed: int
    recipe: dict[str, Any] = Field(default_factory=dict)


def write_training(facts: TrainingFacts, folder: Path) -> None:
    write_text_atomically(folder / TRAINING, facts.model_dump_json(indent=2) + "\n")


def read_training(folder: Path) -> TrainingFacts | None:
    """What is known of a reward's training; None where its folder says nothing. Raises InputError for a broken file."""
    path = folder / TRAINING
    if not path.is_file():
        return None
    return parse_file(path, TrainingFacts.model_validate_json, "Restore it, or remove it.")


def write_card(
    facts: JudgeFacts, folder: Path, version: str, evaluation: Evaluation | None = None, question: str = ""
) -> Path:
    """Write README.md into a reward's folder. question: what the judge is asked, where it is asked in words.

    Raises InputError where a README.md stands there that was not written here.
    """
    check_card(folder)
    path = folder / CARD
    write_text_atomically(path, model_card(facts, read_training(folder), evaluation, version, question))
    return path


def check_card(folder: Path) -> None:
    """Raises InputError where a README.md stands in the folder that was not written here."""
    path = folder / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} was written by somebody else.", "Move it away, or leave out --card.")


def model_card(
    facts: JudgeFacts,
    training: TrainingFacts | None,
    evaluation: Evaluation | None,
    version: str,
    question: str = "",
) -> str:
    """The card as Markdown with front matter. Without an evaluation it says that the reward was not tested."""
    front = yaml.safe_dump(_front_matter(facts, evaluation), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", _MARK, f"# {facts.name}", _about(facts, version), _use(facts)]
    if question:
        parts.append(f"## What it is asked\n\n```\n{question}\n```")
    parts.append(_training(facts, training))
    parts += (
        _results(evaluation) if evaluation else ["## How good it is\n\nIt was not tested: no test sets were given."]
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: JudgeFacts, evaluation: Evaluation | None) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "rewarddance",
        "pipeline_tag": _PIPELINES.get(facts.kind, "image-text-to-text"),
        "tags": ["reward-model", "preference", facts.kind, "text-to-image"],
    }
    if facts.base and re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base) and not Path(facts.base).exists():
        front["base_model"] = facts.base
    results = [found for name, one in (evaluation.tests if evaluation else {}).items() if (found := _result(name, one))]
    return front | ({"model-index": [{"name": facts.name, "results": results}]} if results else {})


def _result(name: str, one: SetFindings) -> dict[str, Any] | None:
    """One test set as the hub's model-index has it."""
    if isinstance(one.accuracy, str):
        return None
    metrics = [{"type": "accuracy", "name": "agreement with most votes", "value": round(one.accuracy.mean, 4)}]
    metrics.append({"type": "ece", "name": "expected calibration error", "value": round(one.calibration.ece, 4)})
    return {
        "task": {"type": "preference-prediction", "name": "Preference prediction"},
        "dataset": {"name": title(name), "type": "preferences"},
        "metrics": metrics,
    }


def _about(facts: JudgeFacts, version: str) -> str:
    answers = {
        "pairwise": "is asked whether a candidate is better than a reference; the reward is P(yes)",
        "pointwise": "is asked whether a picture meets a high standard; the reward is P(yes)",
        "regressive": "gives each picture a score by a linear head",
        "clip": "scores a picture by its similarity to the prompt",
    }
    based = f"trained from `{facts.base}` with" if facts.base else "of"
    return f"A **{facts.kind}** reward model for pictures, {based} RewardDance {version}. It {answers[facts.kind]}."


def _use(facts: JudgeFacts) -> str:
    call = 'judge.score("a red circle", ["a.png", "b.png"])'
    if not facts.alone:
        call = 'judge.compare("a red circle", ["a.png", "b.png"], reference="c.png")'
    return (
        "## How to use it\n\n```python\nfrom rewarddance import load_reward\n\n"
        f'judge = load_reward("path/to/this/folder")\nverdict = {call}\n'
        "print(verdict.probability, verdict.margin)\n```\n\n"
        "It orders pictures for one prompt: to pick the best of several, to align a generator, to compare generators. "
        "What it says of pictures unlike those it was tested on is not known."
    )


def _training(facts: JudgeFacts, training: TrainingFacts | None) -> str:
    if training is None:
        return "## Training\n\nIts folder does not say what it was trained on."
    recipe = yaml.safe_dump(training.recipe, sort_keys=False).strip()
    told = f"{training.pairs:,} pairs of `{training.data}`, seed {training.seed}"
    return f"## Training\n\n{told}.\n\n```yaml\n{recipe}\n```"


# -- what was measured -------------------------------------------------------------------------------------------------


def _results(found: Evaluation) -> list[str]:
    tests = found.tests
    sources, criteria = (tables.apart(tests, key) for key in ("by_source", "by_criterion"))
    limits = "\n".join(f"- {line}" for line in limits_of(found))
    bins = tables.as_markdown(tables.reliability(tests))
    return [
        "## How good it is",
        "In points of 100, with 95 % intervals by bootstrap over prompts. Accuracy: how often it prefers the picture "
        'that most votes prefer, both orders asked; 50 is chance. With ties: "equal" is an answer too.',
        tables.as_markdown(tables.accuracy(tests)),
        *([f"By source:\n\n{tables.as_markdown(sources)}"] if sources.rows else []),
        *([f"By criterion:\n\n{tables.as_markdown(criteria)}"] if criteria.rows else []),
        f"## Limits\n\n{limits}",
        "## Calibration",
        "The temperature is fitted on one half of the prompts; the gain in NLL (nats a question) and the ECE after it "
        "are measured on the other half. Least NLL: the entropy of the votes themselves.",
        tables.as_markdown(tables.calibration(tests)),
        f"<details><summary>Reliability, bin by bin</summary>\n\n{bins}\n\n</details>",
        "## Two orders of a pair",
        "Yes or no to both orders is for a place and not for a picture. Pull: the mean of both margins, in logits; "
        "above 0 it is for the candidate, whichever that is.",
        tables.as_markdown(tables.order(tests)),
        "## Circles of three",
        "The share of triples of one prompt's pictures where a is over b, b over c and c over a; a judge that tosses "
        f"coins has {number(CHANCE, digits=0)}.",
        tables.as_markdown(tables.circles(tests)),
        "## How pictures look",
        "How far the margin moves, in logits, when the candidate is changed by a small amount; how many answers either "
        "change turns; and the correlation of margin and look over the pairs, beyond the votes. "
        + tables.spreads(tests),
        tables.as_markdown(tables.looks(tests)),
        "## Length of the prompt",
        "Accuracy by the number of words, and the rank correlation of that number with the level of its answers.",
        tables.as_markdown(tables.length(tests)),
        f"Measured with RewardDance {found.version}, seed {found.seed}.",
    ]
