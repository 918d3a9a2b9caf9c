"""What the judge is told: the template's own words in order, with its pictures in their places."""

from __future__ import annotations

import re

import pytest
import torch

from rewarddance.errors import InputError
from rewarddance.reward.instructions import (
    TEMPLATES,
    TREES,
    Picture,
    check_version,
    load_instruction,
    load_tree,
    pictures_of,
)
from rewarddance.types import Prompt, Question

OWN = """
name: mine
version: 3
criteria: {colour: the paint is right, form: the outline is right}
pairwise: |-
  {reference}
  Wanted: {prompt}.
  {criteria}
  Now see {candidate} and answer yes or no.
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    return path


def test_the_question_is_the_template_with_its_places_filled(own):
    parts = list(load_instruction(str(own)).question("a red circle"))
    assert parts == [
        "reference",
        "Wanted: a red circle.\n- colour: the paint is right\n- form: the outline is right\nNow see ",
        "candidate",
        " and answer yes or no.",
    ]
    assert [isinstance(part, Picture) for part in parts] == [True, False, True, False]


QUESTIONS = "vqa"
"""Of no task: the prompt is itself the question."""
BUNDLED = sorted(file.stem for file in TEMPLATES.glob("*.yaml") if file.stem != QUESTIONS)
FULL = [name for name in BUNDLED if not name.endswith("-bare")]
IMAGE = {"i2v": ["image"], "edit": ["image"]}


def test_the_question_of_the_bundled_judge_has_not_changed_by_a_byte():
    assert load_instruction("t2i-brief").version == 1
    assert list(load_instruction("t2i-brief").question("a red circle")) == [
        "Prompt: a red circle\nCriteria: alignment with the prompt, visual quality.\nReference:",
        "reference",
        "Candidate:",
        "candidate",
        "Is the candidate better than the reference? Answer yes or no.",
    ]


@pytest.mark.parametrize("name", BUNDLED)
def test_every_instruction_is_named_as_its_file_and_shows_pictures_in_order(name):
    instruction = load_instruction(name)
    assert instruction.name == name and instruction.version >= 1
    given = IMAGE.get(name.partition("-")[0], [])
    for parts, shown in (
        (list(instruction.question("a red circle")), [*given, "reference", "candidate"]),
        (list(instruction.pointwise_question("a red circle")), [*given, "candidate"]),
    ):
        assert [part for part in parts if isinstance(part, Picture)] == shown
        assert "Prompt: a red circle\n" in parts[0]
        assert parts[-1].endswith("Answer yes or no.")


def test_a_question_about_a_picture_is_asked_as_it_stands():
    parts = list(load_instruction(QUESTIONS).pointwise_question("Are there two dogs?"))
    assert parts == ["Picture:", "candidate", "Are there two dogs? Answer yes or no."]


@pytest.mark.parametrize("name", FULL)
def test_every_full_instruction_lists_its_criteria_before_the_pictures(name):
    instruction = load_instruction(name)
    for before in (next(instruction.question("a red circle")), next(instruction.pointwise_question("a red circle"))):
        places = [before.index(criterion) for criterion in instruction.criteria]
        assert places == sorted(places) and len(places) >= 2
        assert (instruction.list == "described") == all(text in before for text in instruction.criteria.values())


@pytest.mark.parametrize(
    ("name", "criteria"),
    [
        ("t2i", {"alignment", "quality"}),
        ("t2v", {"alignment", "motion", "consistency", "quality"}),
        ("i2v", {"fidelity", "alignment", "motion", "consistency", "quality"}),
        ("edit", {"fidelity", "alignment", "quality"}),
    ],
)
def test_each_task_has_its_criteria(name, criteria):
    assert set(load_instruction(name).criteria) == criteria


@pytest.mark.parametrize(("full", "bare"), [(name, f"{name}-bare") for name in ("edit", "i2v", "t2i", "t2v")])
def test_a_bare_instruction_is_the_full_one_without_its_criteria(full, bare):
    """t2i-bare is held against t2i-brief: the small judge's words."""
    full = "t2i-brief" if full == "t2i" else full
    for ask in ("question", "pointwise_question"):
        text = "|".join(getattr(load_instruction(full), ask)("a red circle"))
        without = re.sub(r"Judge by:\n(- .*\n)+|Criteria: .*\n", "", text)
        assert "|".join(getattr(load_instruction(bare), ask)("a red circle")) == without != text
    assert not load_instruction(bare).criteria


@pytest.mark.parametrize("name", BUNDLED)
def test_only_the_way_to_answer_changes_with_the_form_of_reasoning(name):
    for ask in (load_instruction(name).question, load_instruction(name).pointwise_question):
        plain, after, before = (list(ask("a red circle", form)) for form in ("none", "after", "before"))
        assert plain[:-1] == after[:-1] == before[:-1]
        assert after[-1] == f"{plain[-1]} Then give the reason."
        assert before[-1] == plain[-1].replace("Answer yes", "Think first, then answer yes")


def test_a_template_without_a_question_of_the_kind_asked_refuses_by_name(own):
    with pytest.raises(InputError, match="the instruction 'mine' has no pointwise question"):
        load_instruction(str(own)).pointwise_question("x")
    own.with_name("alone.yaml").write_text("name: alone\nversion: 1\npointwise: '{prompt} {candidate}'")
    alone = load_instruction(str(own.with_name("alone.yaml")))
    assert list(alone.pointwise_question("x")) == ["x ", "candidate"]
    with pytest.raises(InputError, match="the instruction 'alone' has no pairwise question"):
        alone.question("x")


def test_a_template_that_does_not_say_how_to_answer_refuses_reasons_by_name(own):
    with pytest.raises(InputError, match=r"'mine' cannot be answered with reasons.*\{answer\}"):
        load_instruction(str(own)).question("x", "after")


def test_a_template_may_say_how_to_answer_in_its_own_words(own):
    own.write_text(OWN.replace("answer yes or no.", "{answer}") + "answer: {none: 'yes or no?', before: Think.}\n")
    ask = load_instruction(str(own)).question
    assert [list(ask("x", form))[-1] for form in ("none", "after", "before")] == [
        " and yes or no?",
        " and Answer yes or no. Then give the reason.",
        " and Think.",
    ]


def test_names_alone_are_one_line():
    text = next(load_instruction("t2i-brief").question("x"))
    assert "Criteria: alignment with the prompt, visual quality.\n" in text


def test_a_prompt_that_looks_like_a_place_is_text():
    parts = list(load_instruction("t2i").question("a {candidate} on {criteria} and {prompt}"))
    assert "Prompt: a {candidate} on {criteria} and {prompt}\n" in parts[0]
    assert sum(isinstance(part, Picture) for part in parts) == 2


@pytest.mark.parametrize("place", ["{prompt}", "{reference}", "{candidate}"])
def test_a_template_without_one_of_its_places_or_with_two_is_refused(own, tmp_path, place):
    own.write_text(OWN.replace(place, ""))
    twice = tmp_path / "twice.yaml"
    twice.write_text(OWN + f"  {place}")
    for path in (own, twice):
        with pytest.raises(InputError, match=rf"the question must hold \{place} exactly once"):
            load_instruction(str(path))


def test_a_template_that_was_edited_is_read_again(own):
    before = load_instruction(str(own))
    own.write_text(OWN.replace("version: 3", "version: 4"))
    assert (before.version, load_instruction(str(own)).version) == (3, 4)


def test_an_unknown_instruction_is_an_error_that_lists_the_known_ones():
    with pytest.raises(InputError) as caught:
        load_instruction("t2x")
    assert caught.value.what == "there is no instruction named 't2x'."
    assert "t2i, t2i-bare, t2i-brief, t2v" in caught.value.remedy and "YAML" in caught.value.remedy


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("{criteria}", "{criterias}", r"\{criterias\} is no place; known are \{prompt\}, \{criteria\}"),
        ("{reference}", "{candidate} {reference}", "exactly once"),
        ("{reference}", "{reference} {image}", "the image comes before"),
        (
            OWN[OWN.index("  {reference}") :],
            "  {candidate} {prompt} {reference}",
            r"'pairwise'.*the candidate comes last",
        ),
        ("version: 3", "criterion: {}\nversion: 3", r"unknown key 'criterion'.*'criteria'"),
        ("pairwise: |-", "pointwise: |-", r"a pointwise question holds no \{reference\}"),
        ("  {criteria}\n", "", r"criteria are listed where a question holds \{criteria\}"),
        ("criteria: {colour: the paint is right, form: the outline is right}\n", "", "criteria are listed where"),
        ("version: 3", "version: three", "'version'"),
        ("version: 3\n", "", "'version' is missing"),
        (OWN[OWN.index("pairwise") :], "", "neither a pairwise nor a pointwise question"),
    ],
)
def test_what_is_wrong_with_a_users_template_is_said_with_its_file(own, was, now, said):
    assert was in OWN
    own.write_text(OWN.replace(was, now))
    with pytest.raises(InputError, match=said) as caught:
        load_instruction(str(own))
    assert str(own) in caught.value.what


def test_braces_that_are_no_place_are_text(own):
    own.write_text(OWN.replace("Wanted:", "Wanted {as JSON, or {}}:"))
    assert "Wanted {as JSON, or {}}: x." in list(load_instruction(str(own)).question("x"))[1]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_come_in_the_order_of_their_places():
    candidate, reference, image = (torch.full((1, 3, 2, 2), value) for value in (0.1, 0.2, 0.3))
    question = Question(Prompt("x", image=image), candidate, reference)
    shown = pictures_of(list(load_instruction("i2v").question("x")), question)
    assert [float(one[0, 0, 0, 0]) for one in shown] == pytest.approx([0.3, 0.2, 0.1])
    alone = pictures_of(list(load_instruction("edit").pointwise_question("x")), question)
    assert [float(one[0, 0, 0, 0]) for one in alone] == pytest.approx([0.3, 0.1])


def test_a_picture_that_is_missing_or_not_shown_is_named():
    candidate = torch.zeros(1, 3, 2, 2)
    with pytest.raises(InputError, match=r"question 3 \('x'\) has no image"):
        pictures_of(list(load_instruction("edit").question("x")), Question("x", candidate, candidate), 3)
    with pytest.raises(InputError, match=r"question 0 \('x'\) has no reference"):
        pictures_of(list(load_instruction("t2i").question("x")), Question("x", candidate))
    with pytest.raises(InputError, match=r"has an image, but its instruction has no place for one.*i2v or edit"):
        given = Question(Prompt("x", image=candidate), candidate, candidate)
        pictures_of(list(load_instruction("t2i").question("x")), given)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_installed_is_said_with_the_one_that_is(own):
    check_version(str(own), 3)
    with pytest.raises(InputError, match=rf"with version 2 of the instruction '{own}'; version 3 is here") as no:
        check_version(str(own), 2)
    assert "the file of version 2" in no.value.remedy


# -- trees -------------------------------------------------------------------------------------------------------------

TREE = """
name: mine
version: 2
criteria:
  colour: {meaning: the paint is right, weight: 3}
  form:
    criteria:
      outline: {meaning: the outline is right}
pairwise: "{prompt} {reference} {candidate} {criteria} {answer}"
"""


@pytest.fixture
def own_tree(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text(TREE)
    return path


@pytest.mark.parametrize("name", sorted(file.stem for file in TREES.glob("*.yaml")))
def test_the_leaves_of_a_bundled_tree_differ_behind_the_candidate_only(name):
    tree = load_tree(name)
    assert tree.name == name and len(tree.leaves) >= 4
    for ask in ("question", "pointwise_question"):
        asked = [list(getattr(load_instruction(f"{name}#{leaf}"), ask)("a red circle")) for leaf in tree.leaves]
        assert len({tuple(parts[:-1]) for parts in asked}) == 1
        assert len({parts[-1] for parts in asked}) == len(tree.leaves)
        assert asked[0][-2] == "candidate"
        for parts, (path, leaf) in zip(asked, tree.leaves.items(), strict=True):
            assert f"- {path.rpartition('/')[2]}: {leaf.meaning}\n" in parts[-1]


def test_a_leaf_of_a_users_own_tree_is_an_instruction(own_tree):
    assert list(load_tree(str(own_tree)).leaves) == ["colour", "form/outline"]
    leaf = load_instruction(f"{own_tree}#form/outline")
    assert (leaf.name, leaf.version) == ("mine#form/outline", 2)
    assert list(leaf.question("x"))[-1] == " - outline: the outline is right Answer yes or no."


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("{reference} {candidate} {criteria}", "{criteria} {reference} {candidate}", "comes after"),
        ("{criteria} ", "", "comes after"),
        ("{candidate}", "{candidates}", "is no place"),
        ("meaning: the paint is right, ", "", "either a meaning, or criteria"),
        ("weight: 3", "weight: 0", "greater than 0"),
        ("outline:", "out/line:", "a name holds no '/'"),
        ("form:", "'a#b':", "a name holds no '/'"),
        ("pairwise:", "pairwised:", "unknown key 'pairwised'"),
    ],
)
def test_what_is_wrong_with_a_users_tree_is_said_with_its_file(own_tree, was, now, said):
    assert was in TREE
    own_tree.write_text(TREE.replace(was, now, 1))
    with pytest.raises(InputError, match=said) as caught:
        load_tree(str(own_tree))
    assert str(own_tree) in caught.value.what


def test_a_leaf_or_tree_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(InputError, match=r"no leaf 'alignment/counts'.*alignment/count,"):
        load_instruction("t2i#alignment/counts")
    with pytest.raises(InputError, match=r"no tree of criteria named 't2x'.*t2i"):
        load_instruction("t2x#alignment/count")
