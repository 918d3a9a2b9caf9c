"""`rewarddance evaluate`: a judge examined on test sets, as JSON and a page; and the card beside a trained reward."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.data.faults import FaultyRow, skipped
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.evaluation.answers import Pairs
from rewarddance.evaluation.examine import Stress, examine
from rewarddance.evaluation.findings import FILE, Evaluation, JudgeFacts
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.generators.decoder import load_decoder
from rewarddance.jobs.preflight import FAULTY, check_decoder, check_pairs
from rewarddance.jobs.recipes import EvaluateRun
from rewarddance.protocols import RewardModel
from rewarddance.report.evaluation_page import write_evaluation_page
from rewarddance.report.model_card import TrainingFacts, check_card, read_training, write_card, write_training
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.judge import CONFIG_FILE, USED_BY, Judge, RewardConfig
from rewarddance.reward.led import LedJudge, Load, led
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.remote.addresses import is_address
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import keep_recipe, save_recipe
from rewarddance.runtime.devices import find_device
from rewarddance.runtime.lock import locked
from rewarddance.runtime.process_group import init_process_group
from rewarddance.runtime.tracking import machine

CONFIG, FAILED = "evaluation.yaml", "evaluation.failed.jsonl"


def run_evaluation(run: EvaluateRun) -> dict[str, Any] | None:
    """Examine a judge; returns where the figures are, the accuracies, and how many pairs could not be judged.

    With `judge_sharded` all processes call this alike; the first one examines, and all others return None. Pairs that
    cannot be judged go with the reason to evaluation.failed.jsonl. With `card` the model card goes into the reward's
    folder. Raises InputError before anything is asked where a file cannot be used, or another run is at work in the
    folder.
    """
    if not run.judge_sharded:
        return _evaluated(run, load_reward)
    with init_process_group():
        return led(functools.partial(_evaluated, run))


def _evaluated(run: EvaluateRun, load: Load) -> dict[str, Any]:
    """`run_evaluation` in one process, or in the first of several. load: what loads the judge."""
    faults: list[FaultyRow] = []
    sets = {name: PreferenceSet(path, faults=faults) for name, path in run.tests.items()}
    folder = None if is_factory(run.judge) or is_address(run.judge) else find_checkpoint(run.judge)
    if run.card:
        _check_trained(run, folder)
    device = find_device(run.device)
    output = run.output or default_output(run.judge, folder)
    with claimed(output, run):
        judge = load(run.judge, device, run.dtype, **run.changes)
        check_pairs(sets.values(), judge, faults, skip=run.skip_faulty, folder=output)
        facts = judge_facts(judge, run.judge, folder)
        examined = examine_sets(run, judge, facts, sets)
        card = _card(judge, facts, folder, examined.evaluation) if run.card and folder else {}
        result = write_evaluation(examined, output) | card
    return result | skipped(output / FAULTY)


@contextmanager
def claimed(output: Path, run: EvaluateRun) -> Iterator[None]:
    """Within the block the folder is this evaluation's. Raises InputError where it holds another one's figures, and
    where another run is at work in it."""
    with locked(writable_folder(output)):
        keep_recipe(run, output / CONFIG, binding=(output / FILE).exists())  # where nothing was made it binds nobody
        yield


class Examined(NamedTuple):
    """An evaluation, and what could not be judged: test set, pair, reason and remedy of each.

    The pair is its number, or None where no pair of a test set could be judged, or its stress not be measured.
    """

    evaluation: Evaluation
    failures: list[dict[str, Any]]


def examine_sets(run: EvaluateRun, judge: RewardModel, facts: JudgeFacts, sets: Mapping[str, Pairs]) -> Examined:
    """Examine a judge on each of the sets, which have the names of the run's tests.

    A set of which no pair can be judged is among the failures. Raises InputError where that is so of all sets and,
    before anything is asked, for a decoder that cannot be used.
    """
    start, tests, failures = time.monotonic(), {}, []
    stress = _read_stress(run, judge, sets) if run.stress else None
    for name, pairs in sets.items():
        file = run.tests[name].name
        try:
            tests[name], failed = examine(judge, facts, pairs, run.exam, name=name, file=file, stress=stress)
        except InputError as error:
            if not tests and name == [*sets][-1]:
                raise
            failures.append({"test": name, "pair": None, "reason": error.what, "remedy": error.remedy})
            continue
        failures += [{"test": name, **failure._asdict()} for failure in failed]
        if isinstance(tests[name].stress, str):
            failures.append({"test": name, "pair": None, "reason": tests[name].stress, "remedy": ""})
    evaluation = Evaluation(
        judge=facts,
        tests=tests,
        seed=run.exam.seed,
        machine=machine(),
        version=version("rewarddance"),
        seconds=round(time.monotonic() - start, 1),
    )
    return Examined(evaluation, failures)


def _read_stress(run: EvaluateRun, judge: RewardModel, sets: Mapping[str, Pairs]) -> Stress:
    """How the run stresses a judge, its decoder loaded and known to draw the pictures of all sets."""
    name = run.stress_options.decoder
    if name is None:
        return Stress(run.stress_options)
    if getattr(judge, "differentiable", None) is False:
        raise InputError(
            f"a latent is moved along the reward's gradient, and {judge!r} gives none.",
            "Leave out stress_options.decoder.",
        )
    decoder = load_decoder(name, find_device(run.device))
    check_decoder(decoder, sets.values())
    return Stress(run.stress_options, decoder)


def write_evaluation(examined: Examined, output: Path) -> dict[str, Any]:
    """Write evaluation.json, its page, and the failures if there are any; returns where they are, and the accuracies.

    The run's recipe is in the folder already.
    """
    evaluation, failures = examined
    write_text_atomically(output / FILE, evaluation.model_dump_json(indent=2) + "\n")
    page = write_evaluation_page(evaluation, output, (output / CONFIG).read_text(encoding="utf-8"))
    result: dict[str, Any] = {"evaluation": str(output / FILE), "page": str(page)}
    for name, test in evaluation.tests.items():
        result[f"accuracy_{name}"] = test.accuracy if isinstance(test.accuracy, str) else test.accuracy.as_json()
    result["failed"] = len(failures)
    (output / FAILED).unlink(missing_ok=True)
    if failures:
        write_text_atomically(output / FAILED, "".join(json.dumps(row) + "\n" for row in failures))
        result["failures"] = str(output / FAILED)
    return result


def _card(judge: RewardModel, facts: JudgeFacts, folder: Path, evaluation: Evaluation | None) -> dict[str, str]:
    """Write the model card into the reward's folder."""
    assert isinstance(judge, Judge | LedJudge)
    return {"card": str(write_card(facts, folder, version("rewarddance"), evaluation, question_of(judge.config)))}


def training_facts(recipe: JudgeRecipe, data: Path, pairs: int, seed: int) -> TrainingFacts:
    """What the card says of a training: on which file, and the recipe's keys as they were given."""
    given = {"base": recipe.base} | recipe.model_dump(mode="json", exclude_unset=True)
    return TrainingFacts(data=data.name, pairs=pairs, seed=seed, recipe=given)


def document(
    judge: Judge,
    folder: Path,
    training: TrainingFacts,
    tests: Mapping[str, Path],
    exam: ExamRecipe,
    sets: Mapping[str, Pairs] | None = None,
) -> dict[str, Any]:
    """Write down how the reward in `folder` was trained, examine it where there are tests, and write its card.

    All into that folder, so that it goes wherever the weights go. sets: of the tests, where they are open. Returns what
    it or `run_evaluation` wrote where.
    """
    write_training(training, folder)
    facts = judge_facts(judge, str(folder), folder)
    if not tests:
        return _card(judge, facts, folder, None)
    run = EvaluateRun(judge=str(folder), tests=dict(tests), output=folder, exam=exam)
    save_recipe(run, folder / CONFIG)
    sets = sets or {name: PreferenceSet(path) for name, path in tests.items()}
    examined = examine_sets(run, judge, facts, sets)
    return write_evaluation(examined, folder) | _card(judge, facts, folder, examined.evaluation)


def judge_facts(judge: RewardModel, name: str, folder: Path | None) -> JudgeFacts:
    """Who is examined, from its config and what its folder says of its training; of a function, its name alone.

    Of a judge at an address its config says what is asked here; what it was trained with, nobody does.
    """
    asked = getattr(judge, "config", None)
    if folder is None and asked is not None and not isinstance(judge, Judge | LedJudge):
        options = {key: value for key in ("instruction", "orders") if (value := getattr(asked, key, None)) is not None}
        return JudgeFacts(name=name, kind=asked.kind, **options)
    if folder is None or not isinstance(judge, Judge | LedJudge):
        return JudgeFacts(name=name.rpartition(":")[2], kind="function")
    config, training = judge.config, read_training(folder)
    instructed = config.kind in USED_BY["instruction"]
    return JudgeFacts(
        name=name_of(folder),
        kind=config.kind,
        instruction=load_instruction(config.instruction).name if instructed else None,
        instruction_version=config.instruction_version if instructed else None,
        orders=config.orders,
        base=training.recipe.get("base") if training else None,
    )


def name_of(folder: Path) -> str:
    """The run's name where a reward stands in runs/NAME/reward or runs/NAME/judge/reward, else the folder's own."""
    parts = list(folder.resolve().parts)
    while len(parts) > 2 and parts[-1] in ("reward", "judge"):
        parts.pop()
    return parts[-1]


def default_output(judge: str, folder: Path | None) -> Path:
    if is_address(judge):
        return Path("evaluation-" + re.sub(r"[^A-Za-z0-9.-]+", "-", judge.partition("://")[2]).strip("-"))
    if folder is None:
        return Path(f"evaluation-{judge.rpartition(':')[2]}")
    return folder.parent / "evaluation" if (folder / CONFIG_FILE).is_file() else Path(f"evaluation-{name_of(folder)}")


def question_of(config: RewardConfig) -> str:
    """The question as it stands in the template, pictures in square brackets; "" where nothing is asked in words."""
    if config.kind not in USED_BY["instruction"]:
        return ""
    instruction = load_instruction(config.instruction)
    question = instruction.question if config.kind == "pairwise" else instruction.pointwise_question
    return "".join(f"[{part}]\n" if isinstance(part, Picture) else part for part in question("{prompt}")).strip()


def _check_trained(run: EvaluateRun, folder: Path | None) -> None:
    if folder is None or not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{run.judge!r} is no trained reward, so there is no place for its card.", "Leave out --card.")
    if run.changes:
        raise InputError(
            f"a card says how a judge is by itself, not with another {next(iter(run.changes))}.",
            "Leave out --card, or the option.",
        )
    check_card(folder)
