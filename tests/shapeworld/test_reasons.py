"""A reason is true: every clause of it is checked against the objects in the picture, by other means than its own."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rewarddance.shapeworld.oracle import Score, read, score_picture
from rewarddance.shapeworld.preferences import Candidate, Pool, PreferenceRecipe, draw_picture, pair_up, picture_pool
from rewarddance.shapeworld.reasons import faults, reason
from rewarddance.shapeworld.scenes import SHAPES, Spec, holds, parse_prompt, sample_spec
from rewarddance.shapeworld.training.judge import build_judge_base

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


def drawn(n: int, seed: int) -> list[tuple[Spec, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    styles = ("flat", "sketch")
    specs = [sample_spec(rng) for _ in range(n)]
    return [(spec, *(draw_picture(spec, styles[int(rng.integers(2))], rng) for _ in range(2))) for spec in specs]


def is_true(clause: str, picture: np.ndarray, spec: Spec) -> bool:
    """One clause about one picture, read as a person would, against what is drawn there."""
    reading = read(picture)
    things, nouns = reading.things, spec.objects
    if clause == "nothing wrong":
        return score_picture(picture, spec).alignment == 1
    if clause == "stray paint that is no object":
        return reading.strays > 6
    if match := re.fullmatch(r"(\w+) objects? too many", clause):
        surplus = len(things) - spec.total
        return surplus == NUMBERS[match[1]] if match[1] in NUMBERS else surplus > 4
    if match := re.fullmatch(r"(\w+) (?:(\w+) )?(\w+) not there", clause):
        shape = next(s for s in SHAPES if match[3] in (s, s + "s", s + "es"))
        asked = sum(noun.count for noun in nouns if noun.shape == shape and noun.colour in (None, match[2]))
        there = sum(t.shape == shape and match[2] in (None, t.colour) for t in things)
        return there + NUMBERS[match[1]] <= asked and len(things) < spec.total
    if match := re.fullmatch(r"a (\w+) (\w+) stands where a (\w+) should", clause):
        return any((t.colour, t.shape) == (match[1], match[2]) for t in things) and any(
            noun.shape == match[3] != match[2] for noun in nouns
        )
    if match := re.fullmatch(r"the (\w+) is (\w+), not (\w+)", clause):
        shape, is_so, should = match.groups()
        found = any(t.shape == shape and is_so in (t.colour, t.size) for t in things)
        return found and any(noun.shape == shape and should in (noun.colour, noun.size) for noun in nouns)
    if match := re.fullmatch(r"the (\w+) is not (left of|right of|above|below) the (\w+)", clause):
        firsts, seconds = ([t for t in things if t.shape == match[i]] for i in (1, 3))
        return not all(holds(match[2], a.centre, b.centre) for a in firsts for b in seconds) or not (firsts and seconds)
    raise AssertionError(f"nobody knows what {clause!r} means")


def test_every_clause_of_many_reasons_is_true():
    kinds = set()
    for spec, a, b in drawn(500, seed=0):
        candidate, reference = (score_picture(picture, spec) for picture in (a, b))
        text = reason(candidate, reference)
        if candidate.overall == reference.overall:
            assert text == ""
            continue
        head, *about = re.findall(r"[^.]+\.", text)
        match = re.fullmatch(r"The (candidate|reference) is better: (.+)\.", head)
        assert match, text
        scores = {"candidate": candidate, "reference": reference}
        better = scores.pop(match[1])
        (worse,) = scores.values()
        assert better.overall > worse.overall
        assert ("alignment with the prompt" in match[2]) == (better.alignment > worse.alignment)
        if "visual quality" in match[2]:
            assert better.quality > worse.quality
        for sentence in about:
            name, _, clauses = sentence.strip(" .").partition(": ")
            for clause in clauses.split("; "):
                kinds.add(re.sub(r"\b(red|green|blue|yellow|purple|white)\b", "COLOUR", clause))
                assert is_true(clause, a if name == "Candidate" else b, spec), (spec.text, text)
    assert len(kinds) > 30  # counts, colours, shapes, sizes, relations and paint all came up


def test_a_reason_always_says_by_what():
    for spec, a, b in drawn(200, seed=1):
        scores = [score_picture(picture, spec) for picture in (a, b)]
        text = reason(*scores)
        assert bool(text) == (scores[0].overall != scores[1].overall)
        assert "better: ." not in text


def test_changing_the_pictures_over_changes_their_names_and_nothing_else():
    turn = {"candidate": "reference", "reference": "candidate", "Candidate": "Reference", "Reference": "Candidate"}
    for spec, a, b in drawn(200, seed=2):
        scores = [score_picture(picture, spec) for picture in (a, b)]
        here, there = reason(*scores), reason(*scores[::-1])
        assert there == re.sub("|".join(turn), lambda word: turn[word[0]], here)


def test_one_missing_of_three_is_not_called_none():
    reasons = ("no red circle is there", "no red circle is there")
    assert faults(Score(0.3, 1.0, "counting", reasons)) == "two red circles not there"
    assert faults(Score(0.3, 1.0, "counting", reasons[:1])) == "one red circle not there"


def test_only_the_first_faults_are_named():
    reasons = ("the cross is red, not blue", "the circle is small, not large", "3 objects too many")
    assert faults(Score(0.3, 1.0, "x", reasons)) == "the cross is red, not blue; the circle is small, not large"
    assert faults(Score(0.9, 1.0, "x", ("7 objects too many",))) == "many objects too many"


def test_the_small_judges_tokenizer_has_a_token_for_every_word():
    _, tokenizer = build_judge_base()
    for spec, a, b in drawn(150, seed=3):
        text = reason(*(score_picture(picture, spec) for picture in (a, b)))
        for word in re.findall(r"\w+", text):
            assert min(len(tokenizer.tokenize(word)), len(tokenizer.tokenize(f" {word}"))) == 1, word
        assert len(tokenizer(text).input_ids) < 64


@pytest.fixture
def pools() -> list[Pool]:
    found = []
    for spec, a, b in drawn(12, seed=4):
        shown = [Candidate(picture[None], "sample", score_picture(picture, spec)) for picture in (a, b)]
        found.append(picture_pool(spec.text, spec)._replace(final=shown, early=shown))
    return found


def test_pairs_carry_reasons_of_both_orders_where_votes_agree_with_the_oracle(pools):
    recipe = PreferenceRecipe(drawn=2, reasons=True)
    told = pair_up(pools, "train", 10, recipe, 0, exact=False)
    for p in told:
        spec = parse_prompt(p.prompt.text)
        first, second = (score_picture(x[0].permute(1, 2, 0).numpy(), spec) for x in (p.first, p.second))
        agrees = (p.share - 0.5) * (second.overall - first.overall) > 0
        assert p.reason == (reason(second, first) if agrees else "")
        assert p.reason_swapped == (reason(first, second) if agrees else "")
    share = np.mean([bool(p.reason) for p in told])
    assert 0.5 < share < 1
    silent = pair_up(pools, "train", 10, PreferenceRecipe(drawn=2), 0, exact=False)
    assert not any(p.reason or p.reason_swapped for p in silent)
    assert [p.share for p in silent] == [p.share for p in told]
