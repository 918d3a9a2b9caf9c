"""`rewarddance bench`: GenEval, GenEval 2 or TIFA on one's own pictures, or on those that a generator makes first.

A row a picture goes to results.jsonl, batch by batch, so that a run which was cut off goes on; the figures to
scores.json, and as tables to scores.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.data.faults import FaultyRow, settle, skipped
from rewarddance.data.journal import RowFile
from rewarddance.data.object_prompts import BenchPrompt, GenEvalRow, read_benchmark
from rewarddance.data.prompt_pictures import Shot, find_shots
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.evaluation.detectors import detector_facts
from rewarddance.evaluation.object_colours import CLIP
from rewarddance.evaluation.object_figures import Figures, benchmark_figures
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.bench_pictures import make_pictures, shots_of
from rewarddance.jobs.fleet import Fleet, absolute
from rewarddance.jobs.picture_scorer import PictureScorer
from rewarddance.jobs.preflight import FAULTY
from rewarddance.jobs.recipes import BenchRun
from rewarddance.protocols import RewardModel
from rewarddance.report.formatting import FigureCell, Table, as_markdown, code_text
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.identity import words_digest
from rewarddance.reward.remote.addresses import is_address
from rewarddance.runtime.checkpoint import (
    checkpoint_digest,
    find_checkpoint,
    writable_folder,
    write_text_atomically,
)
from rewarddance.runtime.config import check_kind, flatten, keep_recipe
from rewarddance.runtime.devices import digest_of, find_device
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import progress_bar

CONFIG, RESULTS, SCORES, TABLES = "config.yaml", "results.jsonl", "scores.json", "scores.md"
SAMPLES = 4
"""Pictures of a prompt that a generator makes unless it is told otherwise, as in GenEval."""


class RecordedBench(BenchRun):
    """A BenchRun with what its files held when it began, so that it is not gone on with when they have changed."""

    prompts_digest: str
    pictures_digest: str = ""
    judge_digest: str = ""
    generator_digest: str = ""
    detector_digest: str = ""
    colours_digest: str = ""


class BenchParts(NamedTuple):
    """Objects in the place of what a run names; None is loaded by its name."""

    generator: PipelineGenerator | None = None
    judge: RewardModel | None = None


def run_bench(run: BenchRun, parts: BenchParts | None = None) -> dict[str, Any]:
    """Score every picture; returns where the figures are, the overall ones, and how many pictures failed.

    A picture that cannot be scored goes with its reason to results.jsonl.failed.jsonl, and is in no figure. Raises
    InputError before anything is asked where files, pictures or options cannot be used: every prompt that has too few
    pictures is named.
    """
    parts = parts or BenchParts()
    if run.ray is not None and parts != BenchParts():
        raise InputError("workers of Ray load their models by name.", "Give names, or leave ray out.")
    fleet = None if run.ray is None else Fleet.join(run.ray, run.workers, run.device)
    run = run.model_copy(update={"device": fleet.device if fleet else find_device(run.device)})
    faults: list[FaultyRow] = []
    prompts = read_benchmark(run.benchmark, run.prompts, faults)
    run, prompts = _with_detector(run, prompts, faults)
    if run.generator is not None:
        run = run.model_copy(update={"samples": run.samples or SAMPLES})
    folder = writable_folder(run.output).resolve()
    with locked(folder):
        shots = [] if run.pictures is None else find_shots(run.pictures.resolve(), prompts, run.samples, faults)
        if run.generator is None or (faults and not run.skip_faulty):  # else when it has said what it cannot draw
            settle(faults, run.skip_faulty, folder / FAULTY, len(prompts if run.generator else shots))
        recorded = _recorded(run, shots, by_name=parts.judge is None)
        begun = (folder / f"{RESULTS}.progress.json").exists() or (folder / "pictures").exists()
        if begun:
            keep_recipe(recorded, folder / CONFIG)
        elif (folder / RESULTS).exists() and not (folder / CONFIG).exists():
            raise InputError(f"{folder} holds results that are not of a benchmark.", "Choose another output.")
        else:  # nothing was written under it yet, so it binds nobody
            check_kind(type(recorded), folder / CONFIG)
        results = RowFile(folder / RESULTS)
        if not results.progress.finished:
            # What is wrong with it is said before pictures are made.
            scorer = None if fleet else PictureScorer(run, parts.judge)
            keep_recipe(recorded, folder / CONFIG, binding=begun)
            if run.generator is not None:
                prompts = make_pictures(run, prompts, faults, folder, parts.generator)
                shots = shots_of(run, prompts, folder)
            _score(run, scorer or fleet, shots, results)
            results.finish()
        return _summary(run, folder, results) | skipped(folder / FAULTY)


def _score(run: BenchRun, scorer: PictureScorer | Fleet | None, shots: Sequence[Shot], results: RowFile) -> None:
    """Score the pictures that are left, batch by batch, here or by a fleet."""
    done = results.progress.read
    batches = [shots[start : start + run.batch_size] for start in range(done, len(shots), run.batch_size)]
    if isinstance(scorer, Fleet):
        work = functools.partial(PictureScorer, _everywhere(run))
        answers: Iterator[list[dict[str, Any] | RewardDanceError]] = scorer.in_order(work, batches)
    else:
        assert scorer is not None
        answers = map(scorer, batches)
    with progress_bar("looking at pictures", len(shots), done) as bar:
        for batch, outcomes in zip(batches, answers, strict=True):
            failed = [answer for answer in outcomes if isinstance(answer, RewardDanceError)]
            if results.progress.read == 0 and len(failed) == len(outcomes) and len({one.remedy for one in failed}) == 1:
                raise failed[0]  # it is not the pictures
            rows, failures = [], []
            for shot, answer in zip(batch, outcomes, strict=True):
                if isinstance(answer, RewardDanceError):
                    failures.append({"picture": str(shot.path), "reason": answer.what, "remedy": answer.remedy})
                else:
                    rows.append(answer)
            results.commit(rows, failures, len(batch))
            bar.advance(len(batch))


def _with_detector(
    run: BenchRun, prompts: Sequence[BenchPrompt], faults: list[FaultyRow]
) -> tuple[BenchRun, list[BenchPrompt]]:
    """The run with its detector's name and the rules in force, and the prompts whose classes the detector knows."""
    if run.benchmark != "geneval":
        return run, list(prompts)
    name = run.detector or "mask2former"
    facts = detector_facts(name)
    rules = facts.rules.model_copy(update=run.rules.model_dump(include=run.rules.model_fields_set))
    left = []
    for prompt in prompts:
        classes = prompt.asked.classes if isinstance(prompt.asked, GenEvalRow) else ()
        unknown = [one for one in classes if facts.classes is not None and one not in facts.classes]
        if unknown:
            what = f"the detector {name!r} does not know the class {unknown[0]!r}."
            faults.append(FaultyRow(prompt.where, what, "Choose one that takes any class: grounding-dino or owlv2."))
        else:
            left.append(prompt)
    return run.model_copy(update={"detector": name, "rules": rules}), left


def _recorded(run: BenchRun, shots: Sequence[Shot], by_name: bool) -> RecordedBench:
    seen = {
        "prompts": run.prompts.resolve(),
        "pictures": run.pictures and run.pictures.resolve(),
        "prompts_digest": digest_of([run.prompts]),
        "pictures_digest": digest_of({shot.path for shot in shots}) if run.pictures else "",
    }
    models = {"generator": run.generator, "detector": run.detector, "colours": run.colours}
    seen |= {f"{name}_digest": checkpoint_digest(model) for name, model in models.items() if model is not None}
    if run.judge is not None and by_name and not is_factory(run.judge) and not is_address(run.judge):
        seen["judge_digest"] = digest_of(find_checkpoint(run.judge).rglob("*")) + words_digest(run.model_dump())
    return RecordedBench.model_validate(run.model_dump() | seen)


def _everywhere(run: BenchRun) -> BenchRun:
    """The run with names that hold wherever a worker stands."""
    names = ("judge", "instruction", "criteria", "detector", "colours")
    return run.model_copy(update={name: absolute(getattr(run, name)) for name in names})


def _summary(run: BenchRun, folder: Path, results: RowFile) -> dict[str, Any]:
    """Write the figures, and say where they are."""
    with (folder / RESULTS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    done = results.progress
    found: dict[str, Any] = {"results": str(folder / RESULTS), "pictures": done.read, "failed": done.failed}
    if done.failed:
        found["failures"] = str(results.failures)
    if not rows:
        return found
    figures = benchmark_figures(run.benchmark, rows)
    facts = {
        "benchmark": run.benchmark,
        "prompts": len({row["number"] for row in rows}),
        "pictures": len(rows),
        "failed": done.failed,
        "by": {name: value for name, value in _by(run, rows).items() if value is not None},
    }
    tables = {name: {key: figure.as_json() for key, figure in table.items()} for name, table in figures.items()}
    write_text_atomically(folder / SCORES, json.dumps(facts | {"figures": tables}, indent=2) + "\n")
    write_text_atomically(folder / TABLES, _markdown(facts, figures))
    scores = {name: round(figure.mean, 4) for name, figure in figures["all"].items()}
    return found | {"scores": str(folder / SCORES), "tables": str(folder / TABLES), "figures": scores}


def _by(run: BenchRun, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the figures were made by; figures made by something else are other figures."""
    if run.benchmark == "geneval":
        return {
            "detector": run.detector,
            "rules": run.rules.model_dump(),
            "colours": run.colours or ("the detector" if is_factory(run.detector or "") else CLIP),
            "judge": run.judge,
        }
    return {"judge": run.judge, "answers": rows[0]["answers_by"]}


def _markdown(facts: dict[str, Any], figures: Figures) -> str:
    by = [f"- {name}: `{code_text(value)}`" for name, value in flatten(facts["by"]).items()]
    lines = [
        f"# {facts['benchmark']}",
        f"{facts['prompts']} prompts, {facts['pictures']} pictures, {facts['failed']} that could not be scored.",
        "\n".join(by),
        "Points of 100 with 95 % intervals over prompts, where it says so over seeds.",
    ]
    for name, table in figures.items():
        rows = [(key, FigureCell(figure), str(figure.n)) for key, figure in table.items()]
        lines += [f"By {name}:"] if name != "all" else []
        lines.append(as_markdown(Table(("points", "n"), rows)))
    return "\n\n".join(lines) + "\n"


def tables_of(result: dict[str, Any]) -> str:
    """The tables that a run has written, "" where it has none."""
    return Path(result["tables"]).read_text(encoding="utf-8") if "tables" in result else ""
