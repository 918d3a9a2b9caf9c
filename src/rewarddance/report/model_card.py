"""The model card of a trained reward: README.md beside its weights, with front matter as the model hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from rewarddance.errors import InputError
from rewarddance.evaluation.findings import Evaluation, JudgeFacts, SetFindings
from rewarddance.report.evaluation_tables import evaluation_context, set_title
from rewarddance.report.pages import write_page
from rewarddance.reward.families.chat_template import read_fixed
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

CARD, TRAINING = "README.md", "training.json"
_MARK = "Written by rewarddance; `rewarddance evaluate --card` writes it anew."
_PIPELINES = {"clip": "zero-shot-image-classification"}


class TrainingFacts(BaseModel):
    """training.json beside a reward's weights: what it was trained on, and the recipe as it was given."""

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


def check_card(folder: Path) -> None:
    """Raises InputError where a README.md stands in the folder that was not written here."""
    path = folder / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} was written by somebody else.", "Move it away, or leave out --card.")


def write_card(
    judge: JudgeFacts, folder: Path, version: str, evaluation: Evaluation | None = None, question: str = ""
) -> Path:
    """Write README.md into a reward's folder. Without an evaluation it says that the reward was not tested.

    question: what the judge is asked, where it is asked in words. Raises InputError where a README.md stands there that
    was not written here.
    """
    check_card(folder)
    training, tests = read_training(folder), evaluation.tests if evaluation else {}
    return write_page(
        "model_card.md",
        folder / CARD,
        front_matter=yaml.safe_dump(_front_matter(judge, tests), sort_keys=False, allow_unicode=True),
        mark=_MARK,
        judge=judge,
        version=version,
        question=question,
        fixed=read_fixed(folder),
        training=training,
        recipe=yaml.safe_dump(training.recipe, sort_keys=False).strip() if training else "",
        **evaluation_context(evaluation),
    )


def _front_matter(judge: JudgeFacts, tests: dict[str, SetFindings]) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "rewarddance",
        "pipeline_tag": _PIPELINES.get(judge.kind, "image-text-to-text"),
        "tags": ["reward-model", "preference", judge.kind, "text-to-image"],
    }
    if judge.base and re.fullmatch(r"[\w.-]+/[\w.-]+", judge.base) and not Path(judge.base).exists():
        front["base_model"] = judge.base
    results = [_result(name, test) for name, test in tests.items() if not isinstance(test.accuracy, str)]
    return front | ({"model-index": [{"name": judge.name, "results": results}]} if results else {})


def _result(name: str, test: SetFindings) -> dict[str, Any]:
    """One test set as the hub's model-index has it."""
    figures = {"accuracy": ("agreement with most votes", test.accuracy.mean)}  # type: ignore[union-attr]
    figures["ece"] = ("expected calibration error", test.calibration.ece)
    return {
        "task": {"type": "preference-prediction", "name": "Preference prediction"},
        "dataset": {"name": set_title(name), "type": "preferences"},
        "metrics": [{"type": key, "name": words, "value": round(value, 4)} for key, (words, value) in figures.items()],
    }
