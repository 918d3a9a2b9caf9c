"""What `rewarddance train` does: train a judge on a preferences file and examine it on test sets."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from rewarddance.data.faults import FaultyRow, skipped
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import agreement
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.jobs.evaluate import document, training_facts
from rewarddance.jobs.preflight import FAULTY, check_pairs
from rewarddance.protocols import RewardModel
from rewarddance.reward.identity import words_digest
from rewarddance.reward.judge import Judge
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import check_training, train_judge
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import check_replaceable, read_run_json, writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, Seed, keep_recipe
from rewarddance.runtime.lock import locked
from rewarddance.runtime.process_group import init_process_group, is_main_process, main_process_first
from rewarddance.runtime.tracking import Metrics, console
from rewarddance.types import Preference


class TrainRun(Recipe):
    """`rewarddance train`: preferences is a JSONL file; tests are further ones, by name; exam: how the trained judge is
    examined on them, for its model card; skip_faulty: leave out pairs that cannot be used, and list them in
    faulty.jsonl."""

    preferences: Path
    tests: dict[str, Path] = Field(default_factory=dict)
    output: Path
    seed: Seed = 0
    judge: JudgeRecipe = JudgeRecipe()
    exam: ExamRecipe = ExamRecipe()
    skip_faulty: bool = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _is_examined(self) -> TrainRun:
        if not self.tests and self.exam != ExamRecipe():
            raise ValueError("exam is of the tests, and there are none (tests): leave it out")
        return self

    @model_validator(mode="after")
    def _can_choose(self) -> TrainRun:
        figures = [f"accuracy_{name}" for name in self.tests]
        if self.judge.keep_best and self.judge.keep_best not in figures:
            raise ValueError(
                f"judge.keep_best is {self.judge.keep_best!r}, and tests give {', '.join(figures) or 'none'}"
            )
        return self


def run_training(recipe: TrainRun) -> dict[str, Any]:
    """Train, examine on every test set, and say where the reward is, with its model card. An interrupted run goes on
    where it stopped. Of several processes all train, the first one examines, and the others return nothing."""
    with ExitStack() as held:  # the lock, until all is written
        with init_process_group():
            with main_process_first():
                faults: list[FaultyRow] = []
                training = PreferenceSet(recipe.preferences, for_training=True, faults=faults)
                tests = {name: PreferenceSet(path, faults=faults) for name, path in recipe.tests.items()}
                for pairs in tests.values():
                    _refuse_ties_alone(pairs)
                check_training(recipe.judge, bool(tests))
                folder = writable_folder(recipe.output)
                check_replaceable(folder / "reward")
                held.enter_context(locked(folder))
                has_begun = _has_begun(folder)
                keep_recipe(recipe, folder / "config.yaml", binding=has_begun, free=("output", "preferences"))
                _keep_digests(recipe, folder / "preferences.json", binding=has_begun)

            def watch(judge: RewardModel) -> dict[str, float]:
                return {f"accuracy_{name}": streamed_accuracy(judge, pairs) for name, pairs in tests.items()}

            def preflight(judge: Judge) -> None:
                sets = [*tests.values()]  # which are read at every checkpoint
                check_pairs([training, *sets], judge, faults, skip=recipe.skip_faulty, folder=folder, in_full=sets)
                _keep_count(len(training), folder / "preferences.json", binding=has_begun)
                if is_main_process() and not has_begun:
                    _say_what_is_shared(training, tests)

            metrics, evaluate = Metrics(folder / "metrics.jsonl"), watch if tests else None
            judge = train_judge(recipe.judge, training, folder, metrics, recipe.seed, evaluate, preflight=preflight)
            if not is_main_process():  # asked while there is a group: without one, each process is the first
                return {}
        facts = training_facts(recipe.judge, recipe.preferences, len(training), recipe.seed)
        examined = recipe.tests if _at_hand(judge) else {}
        written = document(judge, folder / "reward", facts, examined, recipe.exam, sets=tests)
        return {"reward": str(folder / "reward"), **skipped(folder / FAULTY), **written}


def _has_begun(folder: Path) -> bool:
    """Was a step taken here? A run that ended before, at a misspelt base say, binds nobody to its recipe."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "reward")) or any(folder.glob("checkpoint-*"))


def _keep_digests(recipe: TrainRun, path: Path, binding: bool) -> None:
    """Write down which preferences a run learns from and in what words it asks, or raise InputError where it began with
    others: places in the file say which pair comes when, so a run that went on would be neither one nor the other."""
    with recipe.preferences.open("rb") as file:
        digests = {"blake2b": hashlib.file_digest(file, "blake2b").hexdigest()}
    digests["words"] = words_digest(recipe.judge.model_dump())
    kept = read_run_json(path) if binding and path.exists() else {}
    named = {"blake2b": str(recipe.preferences), "words": f"the instruction {recipe.judge.instruction} or its criteria"}
    for key, what in named.items():
        if kept and kept.get(key) != digests[key]:
            raise InputError(
                f"{what} has changed since the run in {path.parent} began.",
                "Choose another output, or give what the run began with.",
            )
    if is_main_process():
        write_text_atomically(path, json.dumps(kept | digests) + "\n")


def _say_what_is_shared(training: PreferenceSet, tests: Mapping[str, PreferenceSet]) -> None:
    """Say of each test set how many of its pairs have a picture that is trained on: they prove little."""
    trained = {path for row in map(training.row, range(len(training))) for path in (row.media_a, row.media_b)}
    for name, pairs in tests.items():
        rows = map(pairs.row, range(len(pairs)))
        if shared := sum(not trained.isdisjoint((row.media_a, row.media_b)) for row in rows):
            console.print(f"{shared} of {len(pairs)} pairs of the test set {name} have a picture that is trained on")


def _keep_count(pairs: int, path: Path, binding: bool) -> None:
    """Write down how many pairs a run learns from, or raise InputError where it began with others: rows that are left
    out since would shift which pair comes when."""
    kept = read_run_json(path)
    if binding and kept.get("pairs", pairs) != pairs:
        raise InputError(
            f"the run in {path.parent} began with {kept['pairs']:,} usable pairs, and now there are {pairs:,}.",
            "Restore the files that were there, or choose another output.",
        )
    if is_main_process():
        write_text_atomically(path, json.dumps(kept | {"pairs": pairs}) + "\n")


def _refuse_ties_alone(pairs: PreferenceSet) -> None:
    """Raises InputError where a test set has no order to be right about: before the training, not at a checkpoint."""
    if all(pairs.row(i).share == 0.5 for i in range(len(pairs))):
        raise InputError(
            f"none of the {len(pairs)} pairs has an order in {pairs.path}.", "Give pairs whose share is not 0.5."
        )


def streamed_accuracy(judge: RewardModel, pairs: Sequence[Preference], at_once: int = 128) -> float:
    """Mean agreement on a set, not all ties, of which `at_once` pairs are in memory."""
    starts = range(0, len(pairs), at_once)
    parts = [agreement(judge, [pairs[i] for i in range(low, min(low + at_once, len(pairs)))]) for low in starts]
    return float(np.concatenate(parts).mean())


def _at_hand(judge: Judge) -> bool:
    """Puts a judge that was trained in pieces on the GPU, if one is enough for it."""
    if judge.model.device.type == process_group.device().type:
        return True
    gc.collect()  # what was trained, and holds the GPU
    torch.cuda.empty_cache()
    needed, (free, _) = sum(w.nbytes for w in judge.model.parameters()), torch.cuda.mem_get_info()
    if free < 1.3 * needed:
        console.print("One GPU is too small to examine the judge; `rewarddance evaluate` does it where there is room.")
        return False
    judge.model.to(process_group.device())
    return True
