"""Scores, searches, exams and references by two processes that hold a judge together: what one process writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from several import in_processes
from tiny import align_recipe, colour_preferences, command, generator_folder, judge_folder, pictures

from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.media import write_picture
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.jobs.evaluate import run_evaluation
from rewarddance.jobs.recipes import EvaluateRun, ScoreRun, SearchRun
from rewarddance.jobs.references import run_references
from rewarddance.jobs.score import run_scoring
from rewarddance.jobs.search import run_search


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def close(rows: list[dict], margin: str) -> list:
    """The rows, of which numbers are compared within rounding."""
    return [pytest.approx(row[margin], abs=1e-5) for row in rows]


@pytest.fixture
def table(tmp_path) -> Path:
    for i, pixels in enumerate(pictures(6)):
        write_picture(pixels, tmp_path / f"{i}.png")
    rows = [{"prompt": f"a red circle {i}", "candidate": f"{i}.png", "reference": "0.png"} for i in range(5)]
    rows.insert(2, {"prompt": "a <IMG_CONTEXT>", "candidate": "5.png", "reference": "0.png"})
    rows.append({"prompt": "two crosses", "candidates": ["1.png", "2.png", "3.png"]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in.jsonl"


def test_two_processes_score_as_one_does(table):
    def run(name: str, **changes) -> ScoreRun:
        given = {"input": table, "output": table.with_name(name), "judge": str(judge_folder()), "batch_size": 3}
        return ScoreRun(**given, device="cpu", skip_faulty=True, **changes)

    one = run_scoring(run("one.jsonl"))
    two, nothing = in_processes(2, lambda: run_scoring(run("two.jsonl", judge_sharded=True)))
    assert nothing is None and one is not None
    assert (two["scored"], two["failed"]) == (one["scored"], one["failed"]) == (6, 1)
    found, expected = rows_of(table.with_name("two.jsonl")), rows_of(table.with_name("one.jsonl"))
    assert [row["margin"] for row in found] == close(expected, "margin")
    assert [{**row, "margin": 0, "probability": 0} for row in found] == [
        {**row, "margin": 0, "probability": 0} for row in expected
    ]
    again, nothing = in_processes(2, lambda: run_scoring(run("two.jsonl", judge_sharded=True)))
    assert again == two and nothing is None, "what is done is not asked again"


def test_two_processes_search_as_one_does(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo crosses\n")

    def run(name: str, **changes) -> SearchRun:
        given = {"prompts": tmp_path / "prompts.txt", "generator": str(generator_folder()), "budget": "samples=3"}
        judges = {"judge": str(judge_folder()), "held_out": str(judge_folder())}
        return SearchRun(**given, **judges, output=tmp_path / name, device="cpu", num_inference_steps=3, **changes)

    one = run_search(run("one"))
    two, nothing = in_processes(2, lambda: run_search(run("two", judge_sharded=True)))
    assert nothing is None and one is not None
    assert two["held_out_prefers"] == one["held_out_prefers"]
    for found, expected in zip(*(rows_of(tmp_path / name / "results.jsonl") for name in ("two", "one")), strict=True):
        assert found["winner"]["picture"] == expected["winner"]["picture"]
        assert found["held_out"] == pytest.approx(expected["held_out"], abs=1e-5)
        assert [one["score"] for one in found["runners_up"]] == close(expected["runners_up"], "score")


def test_two_processes_evaluate_as_one_does(tmp_path):
    write_preferences(colour_preferences(4), tmp_path / "pairs.jsonl")

    def run(name: str, **changes) -> EvaluateRun:
        given = {"judge": str(judge_folder()), "tests": {"id": tmp_path / "pairs.jsonl"}, "output": tmp_path / name}
        return EvaluateRun(**given, device="cpu", exam=ExamRecipe(probes=2), **changes)

    def figures(name: str) -> dict:
        content = json.loads((tmp_path / name / "evaluation.json").read_text(encoding="utf-8"))
        return {key: content[key] for key in ("judge", "tests")}

    one = run_evaluation(run("one"))
    two, nothing = in_processes(2, lambda: run_evaluation(run("two", judge_sharded=True)))
    assert nothing is None and one is not None
    assert two["failed"] == one["failed"] == 0 and two["accuracy_id"] == one["accuracy_id"]
    assert figures("two")["judge"] == figures("one")["judge"]
    found, expected = (flat(figures(name)["tests"]) for name in ("two", "one"))
    assert len(found) > 20 and found == [pytest.approx(value, abs=1e-4) for value in expected]


def flat(content: object) -> list:
    """The numbers within, in order."""
    if isinstance(content, dict | list):
        return [one for value in (content.values() if isinstance(content, dict) else content) for one in flat(value)]
    return [content] if isinstance(content, int | float) else []


def test_two_processes_make_the_references_that_one_makes(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo crosses\na green square\n")
    content = yaml.safe_load(align_recipe(tmp_path).read_text())

    def run(name: str, **changes) -> AlignRun:
        return AlignRun.model_validate({**content, "output": tmp_path / name, **changes})

    one = run_references(run("one"))
    two, nothing = in_processes(2, lambda: run_references(run("two", judge_sharded=True)))
    assert nothing is None and one is not None and two["pictures"] == one["pictures"] > 0
    banks = [tmp_path / name / "references" for name in ("two", "one")]
    found, expected = (rows_of(bank / "references.jsonl") for bank in banks)
    assert found == expected
    for file in (file for row in expected for file in row["files"]):
        assert (banks[0] / file).read_bytes() == (banks[1] / file).read_bytes()
    with pytest.raises(InputError, match="a sharded judge needs several processes"):
        run_references(run("three", judge_sharded=True))


def test_an_error_of_the_first_process_ends_the_others_quietly(table):
    def work() -> str | None:
        try:
            run_scoring(ScoreRun(input=table, output=table.with_name("o.txt"), judge="none", judge_sharded=True))
        except InputError as error:
            return error.what

    said = in_processes(2, work)
    assert said == [f"the output {table.with_name('o.txt')} is no table.", None]


def test_one_process_or_ray_cannot_hold_a_judge_in_pieces(table):
    run = {"input": table, "output": table.with_name("o.jsonl"), "judge": str(judge_folder()), "judge_sharded": True}
    with pytest.raises(InputError, match="a sharded judge needs several processes"):
        run_scoring(ScoreRun(**run))
    done = command(
        "score", table, "--judge", judge_folder(), "--output", run["output"], "--judge-sharded", "--ray=local"
    )
    assert done.code == 2 and "leave one of them out" in done.err
