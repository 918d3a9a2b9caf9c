"""A search over a file: one row and its pictures a prompt, gone on with after any kill, failures beside it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator, command, generator_folder, judge_folder

from rewarddance.data.journal import RowFile
from rewarddance.data.media import read_picture
from rewarddance.errors import InputError, RewardError
from rewarddance.jobs.search import search_prompts
from rewarddance.search.judging import JUDGING
from rewarddance.search.over_paths import Paths
from rewarddance.search.recipe import Budget
from rewarddance.search.run import METHODS, Search, search
from rewarddance.types import Prompt

PROMPTS = [Prompt("abcde"[: 1 + number % 5], metadata={"id": number}) for number in range(200)]
AT_ONCE = 8


class Noting(Bright):
    """Notes in a file which prompts were judged, at once."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def __call__(self, questions):
        with self.log.open("a") as file:
            file.write(f"{len({question.prompt.text for question in questions})}\n")
        return super().__call__(questions)


def run(folder: Path, log: Path, prompts: Sequence[Prompt] = PROMPTS) -> None:
    torch.set_num_threads(1)
    results = RowFile(folder / "results.jsonl")
    if not results.progress.finished:
        work = Search(
            TinyGenerator(6),
            Noting(log),
            Paths(paths=1, copies=2),
            Budget(samples=9),
            batch_size=32,
            prompts_at_once=AT_ONCE,
        )
        search_prompts(work, prompts, AT_ONCE, folder, results)
        results.finish()


def lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in found:
        row["spent"] = {name: value for name, value in row["spent"].items() if "seconds" not in name}
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_search_killed_at_any_moment_loses_nothing_and_repeats_nothing(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    whole.mkdir()
    often.mkdir()
    run(whole, tmp_path / "whole.log")
    a_batch = lines(tmp_path / "whole.log") * AT_ONCE // len(PROMPTS)
    chance, kills, lost = random.Random(0), 0, 0
    while not (before := RowFile(often / "results.jsonl").progress).finished:
        log = tmp_path / f"often-{kills}.log"
        child = multiprocessing.get_context("fork").Process(target=run, args=(often, log))
        child.start()
        moment = chance.randrange(5 * a_batch)
        while child.is_alive() and lines(log) <= moment:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        done = (RowFile(often / "results.jsonl").progress.read - before.read) // AT_ONCE * a_batch
        # whole batches and at most one that was begun: none that was finished before
        assert done <= lines(log) <= done + a_batch
        lost += lines(log) - done
        kills += 1
    assert kills > 4 and lost > 0
    assert rows(often) == rows(whole)
    assert [row["number"] for row in rows(often)] == list(range(1, 201))
    assert content(often) == content(whole)
    assert len(content(whole)) == 4 * 200


def test_a_row_says_what_was_found_and_what_it_took(tmp_path):
    run(tmp_path, tmp_path / "log", PROMPTS[:8])
    row = rows(tmp_path)[6]
    assert (row["number"], row["prompt"], row["metadata"]) == (7, "ab", {"id": 6})
    assert row["judging"] == "alone" and row["spent"]["evaluations"] <= 54
    assert [one["picture"] for one in (row["winner"], *row["runners_up"], row["first"])] == [
        f"pictures/000007/{name}.png" for name in ("winner", "runner_up_1", "runner_up_2", "first")
    ]
    winner = read_picture(tmp_path / row["winner"]["picture"])
    assert winner.mean().item() == pytest.approx(row["winner"]["score"], abs=0.005)
    assert row["winner"]["score"] >= row["runners_up"][0]["score"] >= row["runners_up"][1]["score"]
    assert "noise" in row["winner"] and row["first"]["score"] is None


def test_a_prompt_that_cannot_be_judged_goes_beside_with_its_reason(tmp_path):
    class Refusing(Bright):
        def __call__(self, questions):
            if any(question.prompt.text == "no" for question in questions):
                raise RewardError("the judge gave no finite margin.", "Look at it.")
            return super().__call__(questions)

    texts = ["a", "no", "ab", "abc", "no"]
    prompts = [Prompt(text, where=f"line {n}") for n, text in enumerate(texts, start=1)]
    results = RowFile(tmp_path / "results.jsonl")
    work = Search(TinyGenerator(), Refusing(), METHODS["best_of_n"].options(), Budget(samples=3), prompts_at_once=4)
    search_prompts(work, prompts, 4, tmp_path, results)
    assert [row["number"] for row in rows(tmp_path)] == [1, 3, 4]
    failures = [json.loads(line) for line in results.failures.read_text().splitlines()]
    assert failures == [
        {
            "prompt_number": n,
            "where": f"line {n}",
            "reason": "the judge gave no finite margin.",
            "remedy": "Look at it.",
        }
        for n in (2, 5)
    ]
    alone = Search(TinyGenerator(), Bright(), METHODS["best_of_n"].options(), Budget(samples=3), prompts_at_once=4)
    (found,) = alone(["abc"], [3])
    assert rows(tmp_path)[2]["winner"]["noise"] == found.winner.origin["noise"]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path) -> list[str | Path]:
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue crosses\na green square\n")
    where = ["--generator", generator_folder(), "--judge", judge_folder(), "--output", tmp_path / "found"]
    return [
        "search",
        tmp_path / "prompts.txt",
        *where,
        "--num-inference-steps",
        "4",
        "--device",
        "cpu",
        "--prompts-at-once",
        "2",
    ]


def refused(done, what: str, remedy: str = "") -> None:
    assert done.code == 2 and what in done.err and remedy in done.err and "Traceback" not in done.err, done


def test_the_command_says_where_the_results_are_and_goes_on_when_given_again(arguments, tmp_path):
    first = command(*arguments, "--budget", "samples=3", "--runners-up", "1")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert result["prompts"] == 3 and result["failed"] == 0
    assert result["spent_a_prompt"]["evaluations"] == 12 and result["spent_a_prompt"]["questions"] == 4
    bytes_before = (tmp_path / "found" / "results.jsonl").read_bytes()
    again = command(*arguments, "--budget", "samples=3", "--runners-up", "1")
    assert json.loads(again.out) == result and (tmp_path / "found" / "results.jsonl").read_bytes() == bytes_before
    assert [row["judging"] for row in rows(tmp_path / "found")] == ["knockout"] * 3


def test_a_found_picture_that_is_gone_is_named_and_not_passed_over(arguments, tmp_path):
    assert command(*arguments, "--budget", "samples=2").code == 0
    gone = tmp_path / "found" / "pictures" / "000002" / "winner.png"
    gone.unlink()
    refused(command(*arguments, "--budget", "samples=2"), f"{gone}, found for prompt 2, is gone", "Restore it")
    refused(command("report", tmp_path / "found"), f"{gone} is missing", "Restore it")


def test_what_is_found_says_where_its_prompt_stands_whatever_was_left_out(arguments, tmp_path):
    arguments[1] = tmp_path / "prompts.jsonl"
    arguments[1].write_text('{"prompt": "a red circle"}\n{"promt": "a cross"}\n\n{"prompt": "a green square"}\n')
    done = command(*arguments, "--budget", "samples=2", "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["skipped"] == 1
    assert [(row["number"], row["where"]) for row in rows(tmp_path / "found")] == [(1, "line 1"), (2, "line 4")]


def test_a_folder_of_another_search_is_not_gone_on_with(arguments, tmp_path):
    assert command(*arguments, "--budget", "samples=2").code == 0
    refused(command(*arguments, "--budget", "samples=4"), "budget.samples = 2, not 4", "Choose another output")
    refused(command(*arguments, "--budget", "samples=2", "n=1"), "options.n = None, not 1")
    assert command(*arguments, "--budget", "samples=2", "--batch-size", "8").code == 0  # memory may have run out
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    refused(command(*arguments, "--budget", "samples=2"), "the same prompts")


def test_a_search_is_not_put_where_an_alignment_has_begun(arguments, tmp_path):
    (tmp_path / "found").mkdir()
    kept = "algorithm: nft\ngenerator: mine\nsteps: 4\n"
    (tmp_path / "found" / "config.yaml").write_text(kept)
    refused(command(*arguments, "--budget", "samples=2"), "another kind of run", "'algorithm'")
    assert (tmp_path / "found" / "config.yaml").read_text() == kept


def test_a_held_out_judge_is_asked_about_every_winner_and_the_page_shows_it(arguments, tmp_path):
    more = ["--kind", "pointwise", "--budget", "samples=3", "--held-out", str(judge_folder()), "--judge-batch", "2"]
    done = command(*arguments, *more)
    assert done.code == 0, done.err
    said = [row["held_out"] for row in rows(tmp_path / "found")]
    assert json.loads(done.out)["held_out_prefers"] == pytest.approx(sum(0.5 * (1 + np.sign(said))) / 3, abs=1e-4)
    page = command("report", tmp_path / "found")
    assert page.code == 0 and "Preferred" in Path(page.out.strip()).read_text()
    refused(command(*arguments, *more[:4]), "held_out")


def test_a_budget_that_is_too_small_for_the_method_is_said_aloud(arguments, tmp_path):
    done = command(*arguments, "--kind", "pointwise", "--method", "refine", "--budget", "questions=2")
    assert done.code == 0 and json.loads(done.out)["plain_samples_only"] == 3


def test_options_of_a_method_are_read_and_unknown_ones_refused(arguments, tmp_path):
    done = command(
        *arguments, "--kind", "pointwise", "--method", "pruning", "--budget", "samples=4", "keep=0.4", "at=[0.5]"
    )
    assert done.code == 0, done.err
    assert "at:\n  - 0.5" in (tmp_path / "found" / "config.yaml").read_text()
    assert {row["judging"] for row in rows(tmp_path / "found")} == {"alone"}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--budget", "samples=2", "copis=3", "--method", "paths"], "unknown key 'copis' in the options of paths"),
        (["--budget", "3"], "the budget '3' is not of the form"),
        (["--budget", "samples=2", "--method", "beam"], "no search method named 'beam'"),
        (["--budget", "samples=2", "--judging", "twice"], "'judging'"),
        (["--budget", "samples=2", "--dtype", "int8"], "dtype"),
        (["--budget", "samples=2", "--judge-device", "cuda:7"], "CUDA"),
        (["--budget", "evaluations=3"], "does not give one picture"),
        (["--budget", "samples=2", "--judging", "alone"], "cannot judge a picture by itself"),
        (["--budget", "samples=2", "--generator-options", "hight=8"], "'hight'"),
    ],
)
def test_what_cannot_be_done_is_one_error_with_exit_code_2(arguments, more, what):
    refused(command(*arguments, *more), what)


def test_a_negative_prompt_in_the_file_is_refused_without_guidance(arguments, tmp_path):
    rows_ = ['{"prompt": "a red circle"}', '{"prompt": "a cross", "negative_prompt": "blue"}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows_))
    arguments[1] = tmp_path / "prompts.jsonl"
    refused(command(*arguments, "--budget", "samples=2"), "negative text", "guidance_scale")


def test_every_way_to_judge_is_offered():
    assert all(name in command("search", "--help").out for name in (*JUDGING, *METHODS))


def test_a_first_prompt_that_fails_alone_stops_no_other_whatever_the_judge_raises(tmp_path):
    class Raising(Bright):
        def __call__(self, questions):
            if any(question.prompt.text == "no" for question in questions):
                raise ValueError("this is not one of ours")
            return super().__call__(questions)

    results = RowFile(tmp_path / "results.jsonl")
    work = Search(TinyGenerator(), Raising(), METHODS["best_of_n"].options(), Budget(samples=2), prompts_at_once=1)
    search_prompts(work, [Prompt("no"), Prompt("a")], 1, tmp_path, results)
    assert [row["number"] for row in rows(tmp_path)] == [2]
    assert "ValueError: this is not one of ours" in results.failures.read_text()


@pytest.mark.parametrize(
    "wrong", [{"prompts_at_once": "2"}, {"runners_up": 1.5}, {"batch_size": True}, {"rewrite": 3, "method": "refine"}]
)
def test_options_of_a_wrong_type_are_refused_by_name(wrong):
    name = next(iter(wrong))
    with pytest.raises(InputError, match=name):
        search(TinyGenerator(), Bright(), ["a"], budget="samples=2", **({"method": "best_of_n"} | wrong))
