"""What the judge is told: the template's own words in order, with its pictures in their places."""

from __future__ import annotations

import pytest

from rewarddance.errors import InputError
from rewarddance.reward.instructions import TEMPLATES, Picture, load_instruction

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


@pytest.mark.parametrize("name", sorted(file.stem for file in TEMPLATES.glob("*.yaml")))
def test_every_bundled_instruction_lists_its_criteria_before_the_two_pictures(name):
    instruction = load_instruction(name)
    parts = list(instruction.question("a red circle"))
    assert [part for part in parts if isinstance(part, Picture)] == ["reference", "candidate"]
    before = parts[0]
    assert "Prompt: a red circle\n" in before
    places = [before.index(criterion) for criterion in instruction.criteria]
    assert places == sorted(places) and len(places) >= 2
    assert (instruction.list == "described") == all(meaning in before for meaning in instruction.criteria.values())
    assert parts[-1].endswith("Answer yes or no.")


def test_names_alone_are_one_line():
    text = next(load_instruction("t2i-brief").question("x"))
    assert "Criteria: alignment with the prompt, visual quality.\n" in text


def test_a_prompt_that_looks_like_a_place_is_text():
    parts = list(load_instruction("t2i").question("a {candidate} on {criteria} and {prompt}"))
    assert "Prompt: a {candidate} on {criteria} and {prompt}\n" in parts[0]
    assert sum(isinstance(part, Picture) for part in parts) == 2


def test_a_template_that_shows_the_candidate_first_is_refused(own):
    own.write_text(OWN.replace("{reference}", "?").replace("{candidate}", "{reference}").replace("?", "{candidate}"))
    with pytest.raises(InputError, match=r"'pairwise'.*the candidate comes last") as caught:
        load_instruction(str(own))
    assert str(own) in caught.value.what


@pytest.mark.parametrize("place", ["{prompt}", "{reference}", "{candidate}"])
def test_a_template_without_one_of_its_places_or_with_two_is_refused(own, tmp_path, place):
    own.write_text(OWN.replace(place, ""))
    twice = tmp_path / "twice.yaml"
    twice.write_text(OWN + f"  {place}")
    for path in (own, twice):
        with pytest.raises(InputError, match=rf"the question must hold \{place} exactly once"):
            load_instruction(str(path))


def test_a_template_with_an_unknown_key_is_refused_by_name(own):
    own.write_text(OWN + "criterion: {}\n")
    with pytest.raises(InputError, match=r"unknown key 'criterion'.*'criteria'"):
        load_instruction(str(own))


def test_an_unknown_instruction_is_an_error_that_lists_the_known_ones():
    with pytest.raises(InputError) as caught:
        load_instruction("t2x")
    assert caught.value.what == "there is no instruction named 't2x'."
    assert "t2i, t2i-brief" in caught.value.remedy and "YAML" in caught.value.remedy
