"""The page and the card say what evaluation.json says, in figures or in words, and need nothing but themselves."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from test_examination import OwnScores, made
from tiny import BrightnessJudge

from rewarddance.errors import InputError
from rewarddance.evaluation.examine import ExamRecipe, examine
from rewarddance.evaluation.findings import Evaluation, JudgeFacts
from rewarddance.report.evaluation_page import write_page
from rewarddance.report.evaluation_tables import Shown, Table, as_html, as_markdown
from rewarddance.report.limits import limits_of
from rewarddance.report.model_card import TrainingFacts, model_card, read_training, write_card, write_training
from rewarddance.types import Preference

RECIPE = ExamRecipe(probes=12, groups=3, pictures=3)


def evaluated(kind: str = "pairwise", judge=None, names: tuple[str, ...] = ("id", "ood"), **facts) -> Evaluation:
    pairs = [Preference(p.prompt, p.first, p.second, p.share, p.source, criterion="light") for p in made(6)]
    who = JudgeFacts(name="a <b> judge", kind=kind, instruction="t2i", instruction_version=1, **facts)
    found, _ = examine(judge or BrightnessJudge(2.0), who, pairs, RECIPE, "set", "set.jsonl")
    tests = {name: found for name in names}
    return Evaluation(judge=who, tests=tests, seed=0, machine="a machine", version="1.2", seconds=61.0)


@pytest.fixture(scope="module")
def pairwise() -> Evaluation:
    return evaluated()


@pytest.fixture(scope="module")
def alone() -> Evaluation:
    return evaluated("regressive", OwnScores(), ("early",))


def words(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


class Tags(HTMLParser):
    """The tags that were left open, and all attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.held: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.held.append(dict(attrs))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.held.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_figures_say(pairwise, tmp_path):
    html = write_page(pairwise, tmp_path, "judge: <x>").read_text(encoding="utf-8")
    text = words(html)
    assert "It agrees with most votes on id (in domain) in 100.0 [100.0, 100.0] of 100 pairs; on ood (out of" in text
    assert "a &lt;b&gt; judge" in text and "pairwise judge, instruction t2i (version 1)" in text
    order = pairwise.tests["id"].order
    assert f"{100 * order.consistent.mean:.1f}" in text.split("Two orders of a pair")[1].split("Circles")[0]
    assert "brightness ±0.05 +0.40 [+0.40, +0.40] −0.40 [−0.40, −0.40]" in text
    assert "By source" in text and "By criterion" in text and "light 100.0" in text
    assert "In 1 min 01 s on a machine, with RewardDance 1.2 and seed 0" in text and "judge: &lt;x&gt;" in text


def test_the_page_needs_nothing_but_itself_and_its_links_lead_somewhere(pairwise, tmp_path):
    html = write_page(pairwise, tmp_path).read_text(encoding="utf-8")
    tags = Tags(html)
    assert tags.open == []
    assert not re.search(r"https?://|@import|<script|<link", html)
    ids = [held["id"] for held in tags.held if "id" in held]
    links = [value or "" for held in tags.held for name, value in held.items() if name in ("href", "xlink:href")]
    assert len(ids) == len(set(ids)) and {link.removeprefix("#") for link in links} <= set(ids)


def test_the_reliability_plot_has_a_panel_for_each_set_and_follows_the_page_into_the_dark(pairwise, tmp_path):
    html = write_page(pairwise, tmp_path).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert "id (in domain)" in drawing and "ood (out of domain)" in drawing
        assert drawing.count("P(yes)") >= 2 and "var(--blue)" in drawing
        assert set(re.findall(r"(?:fill|stroke): ?(#\w+)", drawing)) == set()


def test_what_a_judge_cannot_be_asked_stands_across_the_row_in_words(alone, tmp_path):
    html = write_page(alone, tmp_path).read_text(encoding="utf-8")
    said = re.findall(r'<td class="said" colspan="(\d)">([^<]*)</td>', html)
    assert [int(width) for width, _ in said] == [5, 3]
    assert all("by construction" in sentence for _, sentence in said)
    assert "contradicts itself" not in html and "pairwise" not in html


def test_a_page_with_many_sources_shows_those_with_most_pairs_and_says_so(pairwise, tmp_path):
    few = pairwise.tests["id"].accuracy
    sources = {f"source {i}": few._replace(n=i + 1) for i in range(40)}
    tests = {"id": pairwise.tests["id"].model_copy(update={"by_source": sources})}
    text = words(write_page(pairwise.model_copy(update={"tests": tests}), tmp_path).read_text(encoding="utf-8"))
    assert "source 39" in text and "source 9 " not in text
    assert "10 more of fewer pairs are in evaluation.json." in text


def test_pairs_that_failed_are_counted_on_the_page_and_on_the_card(pairwise, tmp_path):
    one = pairwise.tests["id"].model_copy(update={"failed": 3})
    failing = pairwise.model_copy(update={"tests": {"id": one}})
    text = words(write_page(failing, tmp_path).read_text(encoding="utf-8"))
    assert "Pairs that could not be judged and are in no figure: 3 of id. evaluation.failed.jsonl says why." in text
    assert "On id (in domain) some pairs could not be judged and are in no figure: 3." in limits_of(failing)


# -- what speaks against a judge ---------------------------------------------------------------------------------------


def test_limits_name_what_the_intervals_bear_out(pairwise):
    said = "\n".join(limits_of(pairwise))
    order = pairwise.tests["id"].order
    assert f"contradicts itself on {100 * (1 - order.consistent.mean):.0f} of 100 pairs" in said
    assert "it likes, beyond what the votes do, more brightness" in said
    assert "chance" not in said and said.endswith("(reward hacking) is not measured here.")


def test_a_judge_no_better_than_chance_or_worse_is_called_so(pairwise):
    def with_accuracy(mean: float, low: float, high: float) -> str:
        one = pairwise.tests["id"].model_copy(
            update={"accuracy": pairwise.tests["id"].accuracy._replace(mean=mean, low=low, high=high)}
        )
        return limits_of(pairwise.model_copy(update={"tests": {"id": one}}))[0]

    assert with_accuracy(0.55, 0.48, 0.6) == "On id (in domain) it is not told apart from chance: 55.0 [48.0, 60.0]."
    assert with_accuracy(0.3, 0.2, 0.4) == "On id (in domain) it is wrong more often than right: 30.0 [20.0, 40.0]."


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_sentence_fills_the_row_and_what_would_end_a_cell_is_escaped(pairwise):
    share = pairwise.tests["id"].accuracy._replace(mean=0.5, low=0.25, high=0.75)
    table = Table(("one", "two"), [["a|b\nc", Shown(share), "<i>"], ["d", "no figure"]])
    assert as_markdown(table).splitlines()[2:] == [r"| a\|b c | 50.0 [25.0, 75.0] | <i> |", "| d | no figure |  |"]
    html = as_html(table)
    assert "<td>&lt;i&gt;</td>" in html and '<td class="said" colspan="2">no figure</td>' in html


# -- the card ----------------------------------------------------------------------------------------------------------

TRAINED = TrainingFacts(data="train.jsonl", pairs=4200, seed=3, recipe={"base": "org/base", "epochs": 2})


def test_the_card_is_read_by_the_model_hubs_own_reader(pairwise, tmp_path):
    write_training(TRAINED, tmp_path)
    facts = pairwise.judge.model_copy(update={"base": "org/base", "name": "a judge"})
    path = write_card(facts, tmp_path, "1.2", pairwise, "Prompt: {prompt} Better?")
    card = ModelCard.load(path)
    told = card.data.to_dict()
    assert told["library_name"] == "rewarddance" and told["base_model"] == "org/base"
    assert told["pipeline_tag"] == "image-text-to-text" and "pairwise" in told["tags"]
    results = card.data.eval_results or []
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in results}
    assert found[("ood (out of domain)", "accuracy")] == 1.0 and ("id (in domain)", "ece") in found


def test_the_card_says_how_it_was_trained_what_it_is_asked_and_all_that_was_measured(pairwise, tmp_path):
    write_training(TRAINED, tmp_path)
    text = write_card(pairwise.judge, tmp_path, "1.2", pairwise, "Prompt: {prompt} Better?").read_text()
    assert "4,200 pairs of `train.jsonl`, seed 3" in text and "epochs: 2" in text
    assert "Prompt: {prompt} Better?" in text and "judge.compare(" in text
    for part in ("How good it is", "Limits", "Calibration", "Two orders", "Circles", "How pictures look", "Length of"):
        assert f"## {part}" in text
    assert "| id (in domain) | 100.0 [100.0, 100.0] |" in text and "| light | 100.0" in text
    lines = text.splitlines()
    for number, line in enumerate(lines):  # every table is whole: as many cells in each of its lines
        if line.startswith("| ---"):
            rows = [lines[number - 1], line]
            rows += [row for row in lines[number + 1 :][: lines[number + 1 :].index("")]]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, line


def test_without_tests_the_card_says_that_nothing_was_tested():
    text = model_card(JudgeFacts(name="j", kind="clip"), None, None, "1.2")
    front = yaml.safe_load(text.split("---")[1])
    assert "model-index" not in front and front["pipeline_tag"] == "zero-shot-image-classification"
    assert "It was not tested" in text and "does not say what it was trained on" in text
    assert "judge.score(" in text and "What it is asked" not in text


def test_a_base_on_this_machine_is_no_model_of_the_hub(pairwise):
    for base in ("shapeworld-judge", "/models/x", "runs/a/b"):
        text = model_card(pairwise.judge.model_copy(update={"base": base}), TRAINED, None, "1.2")
        assert "base_model" not in yaml.safe_load(text.split("---")[1])
        assert f"trained from `{base}`" in text


def test_a_card_is_written_again_but_never_over_one_of_somebody_else(pairwise, tmp_path):
    write_card(pairwise.judge, tmp_path, "1.2")
    write_card(pairwise.judge, tmp_path, "1.2", pairwise)
    (tmp_path / "README.md").write_text("# My judge\n")
    with pytest.raises(InputError, match=r"README\.md was written by somebody else"):
        write_card(pairwise.judge, tmp_path, "1.2", pairwise)
    assert (tmp_path / "README.md").read_text() == "# My judge\n"


def test_a_broken_note_of_the_training_is_an_error_that_names_it(tmp_path: Path):
    assert read_training(tmp_path) is None
    (tmp_path / "training.json").write_text('{"data": 3}')
    with pytest.raises(InputError, match=r"training\.json cannot be read"):
        read_training(tmp_path)
