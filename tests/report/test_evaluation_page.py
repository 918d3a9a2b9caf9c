"""The page and the card say what evaluation.json says, in figures or in words, and need nothing but themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from page_content import assert_follows_dark_mode, assert_self_contained, drawings, words
from test_examine import OwnScores, made
from tiny import BrightnessJudge

from rewarddance.errors import InputError
from rewarddance.evaluation.examine import examine
from rewarddance.evaluation.findings import Evaluation, JudgeFacts, StressFigures
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.evaluation.statistics import Interval
from rewarddance.evaluation.stress import stress
from rewarddance.report.evaluation_page import write_evaluation_page
from rewarddance.report.evaluation_tables import limits_of
from rewarddance.report.formatting import FigureCell, Table, as_markdown
from rewarddance.report.model_card import TrainingFacts, read_training, write_card, write_training
from rewarddance.report.pages import ENVIRONMENT
from rewarddance.types import Preference, Question

RECIPE = ExamRecipe(probes=12, groups=3, pictures=3)


def evaluated(kind: str = "pairwise", judge=None, names: tuple[str, ...] = ("id", "ood")) -> Evaluation:
    pairs = [Preference(p.prompt, p.first, p.second, p.share, p.source, criterion="light") for p in made(6)]
    who = JudgeFacts(name="a <b> judge", kind=kind, instruction="t2i", instruction_version=1)
    findings, _ = examine(judge or BrightnessJudge(2.0), who, pairs, RECIPE, name="set", file="set.jsonl")
    tests = dict.fromkeys(names, findings)
    return Evaluation(judge=who, tests=tests, seed=0, machine="a machine", version="1.2", seconds=61.0)


@pytest.fixture(scope="module")
def pairwise() -> Evaluation:
    return evaluated()


@pytest.fixture(scope="module")
def alone() -> Evaluation:
    return evaluated("regressive", OwnScores(), ("early",))


def html_of(evaluation: Evaluation, folder: Path, config: str = "") -> str:
    return write_evaluation_page(evaluation, folder, config).read_text(encoding="utf-8")


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_figures_say(pairwise, tmp_path):
    html = html_of(pairwise, tmp_path, "judge: <x>")
    text = words(html)
    assert "It agrees with most votes on id (in domain) in 100.0 [82.4, 100.0] of 100 pairs; on ood (out of" in text
    assert "a &lt;b&gt; judge" in text and "pairwise judge, instruction t2i (version 1)" in text
    order = pairwise.tests["id"].order
    assert f"{100 * order.consistent.mean:.1f}" in text.split("Two orders of a pair")[1].split("Cyclic")[0]
    assert "brightness ±0.05 +0.40 [+0.40, +0.40] −0.40 [−0.40, −0.40]" in text
    assert "By source" in text and "By criterion" in text and "light 100.0" in text
    assert "In 1 min 01 s on a machine, with RewardDance 1.2 and seed 0" in text and "judge: &lt;x&gt;" in text


def test_the_page_needs_nothing_but_itself(pairwise, tmp_path):
    assert_self_contained(html_of(pairwise, tmp_path))


def test_the_reliability_plot_has_a_panel_for_each_set(pairwise, tmp_path):
    plots = drawings(html_of(pairwise, tmp_path))
    assert len(plots) == 2
    for plot in plots:
        assert "id (in domain)" in plot and "ood (out of domain)" in plot
        assert plot.count("P(yes)") >= 2 and "var(--blue)" in plot
        assert_follows_dark_mode(plot)


def test_a_figure_that_cannot_be_had_is_a_sentence_across_the_row(alone, tmp_path):
    html = html_of(alone, tmp_path)
    sentences = re.findall(r'<td class="reason" colspan="(\d)">([^<]*)</td>', html)
    assert [int(width) for width, _ in sentences] == [5, 3]
    assert all("by construction" in sentence for _, sentence in sentences)
    assert "contradicts itself" not in html and "pairwise" not in html


def test_of_many_sources_those_with_most_pairs_are_shown(pairwise, tmp_path):
    few = pairwise.tests["id"].accuracy
    sources = {f"source {i}": few._replace(n=i + 1) for i in range(40)}
    tests = {"id": pairwise.tests["id"].model_copy(update={"by_source": sources})}
    text = words(html_of(pairwise.model_copy(update={"tests": tests}), tmp_path))
    assert "source 39" in text and "source 9 " not in text
    assert "10 more of fewer pairs are in evaluation.json." in text


def test_pairs_that_failed_are_counted_on_the_page_and_on_the_card(pairwise, tmp_path):
    one = pairwise.tests["id"].model_copy(update={"failed": 3})
    failing = pairwise.model_copy(update={"tests": {"id": one}})
    text = words(html_of(failing, tmp_path))
    assert "Pairs that could not be judged and are in no figure: 3 of id. evaluation.failed.jsonl says why." in text
    assert "On id (in domain) some pairs could not be judged and are in no figure: 3." in limits_of(failing)


def stressed(names: tuple[str, ...] = ("id",)) -> Evaluation:
    evaluation = evaluated(names=names)
    figures = stress(BrightnessJudge(2.0), [Question(p.prompt, p.second, p.first) for p in made(6)])
    tests = {name: test.model_copy(update={"stress": figures}) for name, test in evaluation.tests.items()}
    return evaluation.model_copy(update={"tests": tests})


def test_the_page_says_what_stress_found_and_what_each_change_is(tmp_path):
    evaluation = stressed()
    html = html_of(evaluation, tmp_path)
    text = words(html)
    assert_self_contained(html)
    figures = evaluation.tests["id"].stress
    assert isinstance(figures, StressFigures) and isinstance(figures.pixels, dict)
    assert "id (in domain) 1 of 255 along the gradient +0.03 [+0.03, +0.03]" in text
    assert "Along the gradient of a latent: No decoder was given." in text
    assert "text alone" in text and "copies of the prompt as text on white, and no picture" in text
    assert "24 pictures of 6 prompts, 4 steps a distance." in text and "Left out is frozen frames" in text
    assert "P(yes) of the top quarter of them spreads" in text


def test_without_stress_nothing_is_said_of_it(pairwise, tmp_path):
    text = words(html_of(pairwise, tmp_path))
    assert "Stress" not in text and "along the gradient" not in text


def test_a_stress_that_failed_is_a_sentence_on_the_page(pairwise, tmp_path):
    broken = pairwise.tests["id"].model_copy(update={"stress": "It could not be measured: no answer."})
    evaluation = pairwise.model_copy(update={"tests": {"id": broken}})
    assert "It could not be measured: no answer." in words(html_of(evaluation, tmp_path))
    assert limits_of(evaluation)[-1].endswith("(reward hacking) is not measured here.")


# -- what speaks against a judge ---------------------------------------------------------------------------------------


def test_limits_name_what_the_intervals_bear_out(pairwise):
    said = "\n".join(limits_of(pairwise))
    order = pairwise.tests["id"].order
    assert f"contradicts itself on {100 * (1 - order.consistent.mean):.0f} of 100 pairs" in said
    assert "it likes, beyond what the votes do, more brightness" in said
    assert "chance" not in said and said.endswith("(reward hacking) is not measured here.")


def test_limits_say_what_wins_without_drawing_better():
    said = "\n".join(limits_of(stressed()))
    assert "On id (in domain) 2 of 255 along its gradient win +0.06 [+0.06, +0.06] logits, " in said
    assert re.search(
        r"On id \(in domain\) a picture wins by .*text alone \(\+\d\.\d\d \[.*of 100 beat the clean one", said
    )
    assert "one colour (" not in said and said.endswith("finds what wins under stress is not measured here.")


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ((0.55, 0.48, 0.6), "it is not told apart from chance: 55.0 [48.0, 60.0]."),
        ((0.3, 0.2, 0.4), "it is wrong more often than right: 30.0 [20.0, 40.0]."),
    ],
)
def test_a_judge_no_better_than_chance_or_worse_is_called_so(pairwise, figure, sentence):
    test = pairwise.tests["id"].model_copy(update={"accuracy": Interval(*figure, 9)})
    assert limits_of(pairwise.model_copy(update={"tests": {"id": test}}))[0] == f"On id (in domain) {sentence}"


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_sentence_fills_the_row_and_what_would_end_a_cell_is_escaped():
    share = Interval(0.5, 0.25, 0.75, 9)
    table = Table(("one", "two"), [["a|b\nc", FigureCell(share), "<i>"], ["d", "no figure"]])
    assert as_markdown(table).splitlines()[2:] == [r"| a\|b c | 50.0 [25.0, 75.0] | <i> |", "| d | no figure |  |"]
    html = ENVIRONMENT.get_template("macros.html").module.table(table)  # type: ignore[attr-defined]
    assert "<td>&lt;i&gt;</td>" in html and '<td class="reason" colspan="2">no figure</td>' in html


# -- the card ----------------------------------------------------------------------------------------------------------

TRAINED = TrainingFacts(data="train.jsonl", pairs=4200, seed=3, recipe={"base": "org/base", "epochs": 2})


def test_the_card_is_read_by_the_model_hubs_own_reader(pairwise, tmp_path):
    write_training(TRAINED, tmp_path)
    facts = pairwise.judge.model_copy(update={"base": "org/base", "name": "a judge"})
    path = write_card(facts, tmp_path, "1.2", pairwise, "Prompt: {prompt} Better?")
    card = ModelCard.load(path)
    front = card.data.to_dict()
    assert front["library_name"] == "rewarddance" and front["base_model"] == "org/base"
    assert front["pipeline_tag"] == "image-text-to-text" and "pairwise" in front["tags"]
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results or []}
    assert results[("ood (out of domain)", "accuracy")] == 1.0 and ("id (in domain)", "ece") in results


def test_the_card_holds_training_question_and_all_that_was_measured(pairwise, tmp_path):
    write_training(TRAINED, tmp_path)
    text = write_card(pairwise.judge, tmp_path, "1.2", pairwise, "Prompt: {prompt} Better?").read_text()
    assert "4,200 pairs of `train.jsonl`, seed 3" in text and "epochs: 2" in text
    assert "Prompt: {prompt} Better?" in text and "judge.compare(" in text
    for part in ("How good it is", "Limits", "Calibration", "Two orders", "Cyclic", "Image statistics", "Length of"):
        assert f"## {part}" in text
    assert "| id (in domain) | 100.0 [82.4, 100.0] |" in text and "| light | 100.0" in text
    lines = text.splitlines()
    for number, line in enumerate(lines):  # every table is whole: as many cells in each of its lines
        if line.startswith("| ---"):
            rows = [lines[number - 1], line]
            rows += [row for row in lines[number + 1 :][: lines[number + 1 :].index("")]]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, line


def test_without_tests_the_card_says_that_nothing_was_tested(tmp_path):
    text = write_card(JudgeFacts(name="j", kind="clip"), tmp_path, "1.2").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert "model-index" not in front and front["pipeline_tag"] == "zero-shot-image-classification"
    assert "It was not tested" in text and "does not say what it was trained on" in text
    assert "judge.score(" in text and "What it is asked" not in text


@pytest.mark.parametrize("base", ["shapeworld-judge", "/models/x", "runs/a/b"])
def test_a_base_on_this_machine_is_no_model_of_the_hub(pairwise, tmp_path, base):
    text = write_card(pairwise.judge.model_copy(update={"base": base}), tmp_path, "1.2").read_text()
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


def test_a_name_with_markup_is_shown_as_text(tmp_path):
    from rewarddance.evaluation.findings import JudgeFacts
    from rewarddance.report.model_card import write_card

    facts = JudgeFacts(name="[a](http://b) <b> $x$ \u202efdp", kind="clip", base="x`<script>")
    text = write_card(facts, tmp_path, "1").read_text()
    assert r"# \[a\](http://b) \<b\> \$x\$ \\u202efdp" in text
    assert "`x'<script>`" in text
