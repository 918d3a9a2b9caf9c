"""(good - bad) / (good + same + bad), from a judge's scores or from people's votes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny import command

from rewarddance.evaluation.gsb import gsb


def test_good_same_and_bad_are_counted_and_their_figure_is_the_papers():
    counts = gsb(np.array([0.9, 0.8, 0.5, 0.1, 1.0]))
    assert counts[:3] == (3, 1, 1) and counts.gsb.mean == pytest.approx(2 / 5)
    wider = gsb(np.array([0.9, 0.58, 0.5, 0.45, 1.0]), same=0.1)
    assert wider[:3] == (2, 3, 0) and wider.gsb.mean == pytest.approx(2 / 5)


def test_swapping_candidate_and_reference_changes_the_sign_alone():
    share = np.random.default_rng(0).random(50)
    plain, swapped = gsb(share, same=0.05), gsb(1 - share, same=0.05)
    assert plain[:3] == swapped[:3][::-1] and plain.gsb.mean == pytest.approx(-swapped.gsb.mean)


def test_a_distance_that_is_just_reached_is_the_same_on_both_sides():
    assert gsb(np.array([0.55, 0.45, 0.56]), same=0.05)[:3] == (1, 2, 0)


def test_ten_of_ten_do_not_say_that_all_are_good():
    assert gsb(np.ones(10)).gsb.high == 1 and 0.3 < gsb(np.ones(10)).gsb.low < 0.6


def test_pairs_of_one_prompt_are_resampled_together():
    share = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 30).astype(float)
    prompts = [str(i) for i in range(20) for _ in range(30)]
    alone, together = gsb(share).gsb, gsb(share, prompts).gsb
    assert together.high - together.low > 4 * (alone.high - alone.low)


def rows(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def test_the_command_reads_scores_and_votes_and_parts_them(tmp_path):
    scored = [
        {"prompt": "a", "candidate": "1.png", "reference": "r.png", "probability": 0.9, "category": "one"},
        {"prompt": "b", "candidate": "3.png", "reference": "r.png", "probability": 0.2, "category": "two"},
    ]  # fmt: skip
    done = command("gsb", rows(tmp_path / "scores.jsonl", scored), "--by", "category")
    found = json.loads(done.out)
    assert done.code == 0 and found["all"] == {
        "good": 1, "same": 0, "bad": 1, "gsb": {"mean": 0.0, "low": -1.0, "high": 1.0, "n": 2}
    }  # fmt: skip
    assert found["one"]["gsb"]["mean"] == 1 and found["two"]["gsb"]["mean"] == -1
    votes = rows(tmp_path / "votes.jsonl", [{"prompt": "a", "share": 0.6}, {"prompt": "a", "share": 0.4}])
    assert json.loads(command("gsb", votes, "--same", "0.2").out)["all"]["same"] == 2


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "a"}, [], "line 2 of .* neither a probability nor a share"),
        ({"prompt": "a", "share": 0.1, "probability": 0.1}, [], "both a probability and a share"),
        ({"prompt": "a", "share": 7}, [], "the share is 7. It is one number from 0 to 1"),
        ({"prompt": "a", "reference": "r", "probability": [0.5, 0.2]}, [], "one pair a row"),
        ({"prompt": "a", "share": float("nan")}, [], "the share is nan"),
        ({"prompt": "a", "share": True}, [], "the share is True"),
        ({"prompt": "a", "probability": 0.3}, [], "line 2 of .* no reference, so that nothing was compared"),
        (
            {"prompt": "a", "reference": "r", "probability": 0.3, "orders": "forward"},
            [],
            "line 2 of .* Score with --orders both",
        ),
        ({"prompt": "a", "share": 0.2}, ["--by", "kind"], "the row has no 'kind'"),
        ({"prompt": "a", "share": 0.2, "kind": "all"}, ["--by", "kind"], "line 2 of .* names the figure of all"),
        ({"prompt": "a", "share": 0.2}, ["--same", "0.7"], "same"),
    ],
)
def test_a_row_without_a_verdict_is_refused_by_its_line(tmp_path, row, options, message):
    good = {"prompt": "a", "share": 0.9, "kind": "x"}
    done = command("gsb", rows(tmp_path / "votes.jsonl", [good, row]), *options)
    assert done.code == 2
    assert re.search(message, " ".join(done.err.split()))


def test_a_file_that_is_not_there_or_empty_is_refused_by_name(tmp_path):
    assert "votes.jsonl" in command("gsb", tmp_path / "votes.jsonl").err.replace("\n", "")
    assert command("gsb", rows(tmp_path / "empty.jsonl", [])).code == 2
