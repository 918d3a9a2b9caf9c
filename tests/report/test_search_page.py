"""Searches as a page: what they spent, what a held-out judge says, winners beside first samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from page_content import assert_self_contained, drawings
from tiny import command, pictures

from rewarddance.data.media import write_picture
from rewarddance.errors import InputError
from rewarddance.report.search_page import is_search, write_search_page


def search_of(
    folder: Path, method: str, seconds: float, held_out: list[float | None], prompts: str = "abcd", rounds: int = 1
) -> Path:
    shown = pictures(2)
    rows = []
    for number, (prompt, margin) in enumerate(zip(prompts, held_out, strict=False), start=1):
        for name, pixels in zip(("winner", "first"), shown, strict=True):
            write_picture(pixels, folder / f"{number}" / f"{name}.png")
        spent = {"evaluations": 192, "pictures": 16, "questions": 16, "seconds": seconds}
        row = {
            "number": number, "prompt": f"<{prompt}>", "judging": "alone", "rounds": rounds,
            "winner": {"picture": f"{number}/winner.png", "score": 2.25, "noise": 1},
            "first": {"picture": f"{number}/first.png", "score": None, "noise": 2},
            "spent": spent | {"generator_seconds": 0.75 * seconds, "judge_seconds": 0.25 * seconds},
        }  # fmt: skip
        rows.append(row if margin is None else row | {"held_out": margin})
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = f"method: {method}\nbudget:\n  samples: 16\noptions:\n  keep: 0.4\ngenerator: g\njudge: j\n"
    (folder / "config.yaml").write_text(config)
    return folder


def test_a_search_shows_what_it_spent_and_what_a_held_out_judge_says(tmp_path):
    html = write_search_page([search_of(tmp_path / "one", "pruning", 2.0, [0.5, -0.5, 0.0, 1.5])]).read_text()
    (row,) = re.findall(r'<tr><th scope="row">one</th>.*?</tr>', html)
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
    assert cells[:6] == ["pruning", "samples=16", "2.00", "25", "192", "16"]
    assert cells[6].startswith("62.5 [")  # one draw is half a win
    assert html.count("<img") == 8 and "score <b>2.25</b>" in html and "held out −0.50" in html
    assert "&lt;a&gt;" in html and "keep=0.4" in html
    assert_self_contained(html)


def test_several_searches_are_drawn_over_their_seconds_side_by_side(tmp_path):
    folders = [
        search_of(tmp_path / name, method, seconds, [1.0, -1.0, 1.0, 1.0])
        for name, method, seconds in (("a4", "best_of_n", 1.0), ("a16", "best_of_n", 4.0), ("b16", "pruning", 4.2))
    ]
    html = write_search_page(folders).read_text()
    assert all(word in drawings(html)[0] for word in ("best_of_n", "pruning", "seconds a prompt"))
    assert html.count("<img") == 4 * 4 and "a4 and 2 more" in html


def test_without_a_held_out_judge_nothing_is_called_proved(tmp_path):
    html = write_search_page([search_of(tmp_path / "one", "paths", 2.0, [None] * 4, rounds=0)]).read_text()
    assert "No held-out judge was asked" in html and "<svg" not in html
    assert "plain samples only: 4" in html


def test_a_prompt_that_failed_in_one_of_them_is_left_out_of_all(tmp_path):
    one = search_of(tmp_path / "one", "paths", 2.0, [1.0] * 4)
    two = search_of(tmp_path / "two", "paths", 2.0, [1.0] * 3)
    html = write_search_page([one, two]).read_text()
    assert "pictures of 3 prompts" in html and "1 that not all of them have are left out" in html


def test_searches_that_cannot_be_compared_are_refused_by_name(tmp_path):
    one = search_of(tmp_path / "one", "paths", 2.0, [1.0] * 4)
    two = search_of(tmp_path / "two", "paths", 2.0, [1.0] * 4, prompts="abce")
    with pytest.raises(InputError, match=r"two is a search for other prompts than .*one"):
        write_search_page([one, two])
    (two / "config.yaml").unlink()
    assert is_search(one) and not is_search(two)
    with pytest.raises(InputError, match="two holds no search"):
        write_search_page([one, two])
    (one / "3" / "winner.png").unlink()
    with pytest.raises(InputError, match=r"winner\.png is missing, and results\.jsonl shows it"):
        write_search_page([one])


def test_the_command_knows_a_search_by_its_folder(tmp_path):
    done = command("report", search_of(tmp_path / "one", "paths", 2.0, [1.0] * 4))
    assert done.code == 0 and done.out.strip().endswith("search.html")
