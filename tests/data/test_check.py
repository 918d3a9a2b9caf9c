"""Checks of preferences files: every double, leak and overlap that is there is found, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sets import animation, as_jsonl, as_parquet, png, put
from tiny import command

from rewarddance.data.check import check, faulty
from rewarddance.errors import InputError


def row(prompt: str, a: int, b: int, share: float = 1.0, **more) -> dict:
    return {"prompt": prompt, "media_a": f"{a}.png", "media_b": f"{b}.png", "share": share} | more


@pytest.fixture
def folder(tmp_path) -> Path:
    put(tmp_path, *[f"{n}.png" for n in range(8)])
    return tmp_path


def test_a_clean_set_is_counted_and_has_no_faults(folder):
    rows = [row("a cat", 0, 1, 0.25, source="s", criterion="style", annotator="x"), row("a dog", 2, 3, 0.5, source="s")]
    rows += [row("a fox", 4, 5, 1.0, annotator="y", seed=3), {"prompt": "a hen", "media": "6.png", "score": 2}]
    path = as_jsonl(folder / "p.jsonl", rows)
    report = check([path])
    assert report["files"][str(path)] == {
        "rows": 4,
        "pairs": 3,
        "scores": 1,
        "broken": 0,
        "faults": [],
        "balance": {"a": 1, "tie": 1, "b": 1},
        "mean_share": 0.5833,
        "divided_votes": 1,
        "same_media_twice": 0,
        "sources": {"s": 2, "(none)": 2},
        "criteria": {"style": 1, "(none)": 3},
        "annotators": 2,
        "evaluation_only": [],
        "unread_keys": {"seed": 1},
    }
    assert (report["prompts"], report["media"], report["duplicate_rows"]["count"]) == (4, 7, 0)
    assert faulty(report) == []


def test_parquet_is_checked_like_jsonl(folder):
    rows = [row("a cat", 0, 1), row("A cat.", 1, 0), row("a dog", 2, 9)]
    reports = [check([as_jsonl(folder / "p.jsonl", rows)]), check([as_parquet(folder / "p.parquet", rows)])]
    assert [next(iter(report.pop("files").values()))["broken"] for report in reports] == [1, 1]
    text = [json.dumps(report).replace("parquet", "jsonl") for report in reports]
    assert text[0] == text[1]


def test_a_pair_is_double_in_either_order_but_not_by_another_annotator(folder):
    rows = [
        row("a cat", 0, 1),
        row("a cat", 1, 0),
        row("a cat", 0, 1, annotator="x"),
        row("a cat", 0, 1, criterion="c"),
    ]
    path = as_jsonl(folder / "p.jsonl", [*rows, row("a dog", 0, 1), row("a cat", 0, 1, 0.0)])
    found = check([path])["duplicate_rows"]
    assert found == {"count": 2, "first": [[f"{path}:1", f"{path}:2"]]}


def test_media_are_the_same_where_their_bytes_are(folder):
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    animation(folder / "video" / "a.gif")
    for name in ("one", "two"):
        put(folder, f"{name}/0.png", f"{name}/1.png")
    rows = [row("a", 0, 1), row("b", 0, 2), {"prompt": "c", "media_a": "again.png", "media_b": "3.png", "label": "a"}]
    rows += [row("d", 4, 4), {"prompt": "e", "media_a": "one", "media_b": "two", "label": "tie"}]
    report = check([as_jsonl(folder / "p.jsonl", rows)])
    assert (report["media"], report["duplicate_media"]["count"]) == (6, 2)
    assert report["files"][str(folder / "p.jsonl")]["same_media_twice"] == 2


def test_a_prompt_or_picture_in_two_files_is_a_leak_with_its_places(folder):
    train = as_jsonl(folder / "train.jsonl", [row("a cat", 0, 1), row("a dog", 2, 3), row("a dog", 2, 4)])
    test = as_jsonl(folder / "test.jsonl", [row("A  dog!", 5, 6), row("a fox", 7, 1)])
    report = check([train, test])
    assert report["leaks"] == {
        "prompts": {"count": 1, "first": [[f"{train}:3", f"{test}:1"]]},
        "media": {"count": 1, "first": [[f"{train}:1", f"{test}:2"]]},
    }
    assert faulty(report) == ["1 prompts are in more than one file", "1 media are in more than one file"]


def test_prompts_of_a_benchmark_are_found_whatever_their_case(folder):
    (folder / "bench.txt").write_text("A Cat\na horse\nthe dog\n")
    path = as_jsonl(folder / "p.jsonl", [row("a cat!", 0, 1), row("a cat", 2, 3), row("a dog", 4, 5)])
    report = check([path], folder / "bench.txt")
    assert report["benchmark"] == {"prompts": 3, "seen": 1, "rows": 2, "first": ["A Cat"]}
    assert faulty(report) == ["1 prompts of the benchmark are in the files"]


def test_broken_rows_and_media_are_named_and_the_rest_is_counted(folder):
    (folder / "6.png").write_bytes(png(6)[:40])
    path = as_jsonl(folder / "p.jsonl", [row("a", 0, 1), row("b", 2, 99), row("c", 6, 3), row("d", 4, 5, 7.0)])
    with path.open("a") as file:
        file.write("{\n")
    report = check([path])["files"][str(path)]
    assert (report["rows"], report["pairs"], report["broken"]) == (5, 1, 4)
    faults = [(fault["line"], fault["field"]) for fault in report["faults"]]
    assert faults == [(2, "media_b"), (3, ""), (4, "share"), (5, "")]
    assert "6.png cannot be read" in report["faults"][1]["reason"]
    assert check([path], decode=False)["files"][str(path)]["broken"] == 3


def test_rows_for_evaluation_only_are_named(folder):
    path = as_jsonl(folder / "p.jsonl", [row("a", 0, 1, source="mmrb2/wise"), row("b", 0, 2, source="mine")])
    assert check([path])["files"][str(path)]["evaluation_only"] == ["mmrb2/wise"]


def test_what_cannot_be_opened_is_an_error(folder):
    with pytest.raises(InputError, match=r"nowhere.jsonl cannot be read"):
        check([folder / "nowhere.jsonl"])
    (folder / "p.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match=r"p.parquet cannot be read"):
        check([folder / "p.parquet"])
    with pytest.raises(InputError, match="named twice"):
        check([folder / "a.jsonl", folder / "a.jsonl"])


def test_the_command_ends_with_1_where_there_is_a_leak(folder):
    one, two = as_jsonl(folder / "1.jsonl", [row("a", 0, 1)]), as_jsonl(folder / "2.jsonl", [row("b", 2, 3)])
    done = command("data", "check", one, two)
    assert done.code == 0 and json.loads(done.out)["leaks"]["media"]["count"] == 0
    done = command("data", "check", one, as_jsonl(two, [row("a", 2, 3)]))
    assert done.code == 1 and "1 prompts are in more than one file" in done.err and "Traceback" not in done.err
    assert "Example: rewarddance data check" in command("data", "check", "--help").out
