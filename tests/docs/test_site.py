"""Docs hold their promises: short lines, no dead ends, and a way from README to a judge and an aligned generator."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from snippets import ROOT, pages, snippets
from tiny import colour_preferences, pictures

from rewarddance.data.media import write_picture
from rewarddance.types import Preference

LONGEST = 120
EVERY = [*pages(), "docs/lab_log.md", "CHANGELOG.md"]


def prose(text: str) -> list[tuple[int, str]]:
    """The lines with their numbers that are neither of code nor of a table."""
    fenced, kept = False, []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith("|"):
            kept.append((number, line))
    return kept


@pytest.mark.parametrize("page", EVERY)
def test_no_line_of_prose_is_longer_than_120_characters(page):
    lines = prose((ROOT / page).read_text(encoding="utf-8"))
    assert [f"{page}:{number}" for number, line in lines if len(line) > LONGEST] == []


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", EVERY)
def test_every_file_that_a_page_links_to_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", text))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


def test_wrapping_changes_the_ends_of_lines_and_nothing_else():
    wrapped = runpy.run_path(str(ROOT / "docs" / "wrap.py"))["wrapped"]
    text = "# A title\n\n" + "word " * 60 + "\n- " + "item " * 40 + "\n\n| " + "cell " * 40 + "|\n\n```sh\n" + "x " * 90
    text = text + "\n```\n"
    made = wrapped(text)
    assert made.split() == text.split() and wrapped(made) == made
    assert max(len(line) for _, line in prose(made)) <= LONGEST
    assert "| " + "cell " * 40 + "|\n" in made and "x " * 90 in made


def of_ones_own(folder: Path) -> None:
    """A preferences file as README says what one is: its own keys, pictures beside it."""
    example = json.loads(next(s.text for s in snippets("README.md") if s.language == "json"))
    rows = []
    for number, pair in enumerate(colour_preferences(8)):
        assert isinstance(pair, Preference)
        names = {"media_a": f"mine_{number}_a.png", "media_b": f"mine_{number}_b.png"}
        for name, pixels in zip(names.values(), (pair.first, pair.second), strict=True):
            write_picture(pixels, folder / name)
        rows.append({"prompt": pair.prompt.text, "share": pair.share} | names)
    assert set(rows[0]) == set(example)
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_readmes_lines_lead_from_votes_to_a_judge_and_a_generator(tmp_path, monkeypatch):
    """Only how long it takes is made less; every other character is the page's."""
    of_ones_own(tmp_path)
    for name, pixels in zip("abc", pictures(3), strict=True):
        write_picture(pixels, tmp_path / f"{name}.png")
    write_picture(pictures(1)[0], tmp_path / "pictures" / "1.png")
    (tmp_path / "pictures" / "1.txt").write_text("a red circle")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(snippet.text for snippet in snippets("README.md") if snippet.language == "python")
    assert not any(snippet.reason for snippet in snippets("README.md"))
    shorter = lines.replace("steps=100", "steps=2, references={'candidates': 2}, prompts_per_step=2")
    assert shorter != lines
    names: dict = {}
    exec(compile(shorter, "README.md", "exec"), names)
    assert (tmp_path / "runs/mine/reward/model.safetensors").is_file()
    assert 0 < names["judge"].compare("a red circle", "a.png", reference="b.png").probability.item() < 1
    assert (tmp_path / "runs/aligned/lora/pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "runs/aligned/report.html").is_file()
    assert names["found"][0].winner.pixels.shape == (1, 3, 32, 32)
