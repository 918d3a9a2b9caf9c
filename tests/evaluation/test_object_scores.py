"""GenEval's rules on hand-placed objects, Soft-TIFA and TIFA on known answers, and the figures of known rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gmean

from rewarddance.data.object_prompts import GenEvalRow
from rewarddance.evaluation.object_figures import benchmark_figures, mean_of_categories
from rewarddance.evaluation.object_scores import Detection, geneval_verdict, kept, overlap, relations, soft_tifa, tifa
from rewarddance.evaluation.recipe import GenEvalRules

RULES = GenEvalRules()


def at(name: str, x: float, y: float, score: float = 0.95, colour: str | None = None, size: float = 10) -> Detection:
    """An object by its centre."""
    return Detection(name, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), score, colour=colour)


def row(tag: str, *include: dict, exclude: tuple[dict, ...] = ()) -> GenEvalRow:
    return GenEvalRow.model_validate({"tag": tag, "include": include, "exclude": exclude, "prompt": "a photo"})


def verdict(asked: GenEvalRow, *found: Detection, rules: GenEvalRules = RULES):
    def never(name, objects):
        raise AssertionError("no colour was to be asked for")

    return geneval_verdict(kept(found, asked.tag, rules), asked, never, rules)


def test_the_rules_that_nobody_sets_are_the_originals():
    assert RULES.model_dump() == {
        "threshold": 0.3,
        "counting_threshold": 0.9,
        "max_objects": 16,
        "max_overlap": 1.0,
        "position_threshold": 0.1,
    }


def test_an_object_counts_above_the_threshold_of_its_tag():
    single = row("single_object", {"class": "dog", "count": 1})
    assert verdict(single, at("dog", 5, 5, 0.31)).correct
    assert not verdict(single, at("dog", 5, 5, 0.3)).correct
    assert not verdict(single, at("cat", 5, 5)).correct
    two = row("counting", {"class": "dog", "count": 2}, exclude=({"class": "dog", "count": 3},))
    assert verdict(two, at("dog", 5, 5, 0.91), at("dog", 30, 5, 0.95)).correct
    unsure = verdict(two, at("dog", 5, 5, 0.89), at("dog", 30, 5, 0.95))
    assert unsure == (False, "expected dog>=2, found 1")


def test_one_object_too_many_is_excluded_where_the_row_says_so():
    dogs = [at("dog", 20 * n, 5) for n in range(3)]
    count = {"class": "dog", "count": 2}
    assert verdict(row("counting", count, exclude=({"class": "dog", "count": 3},)), *dogs) == (
        False,
        "expected dog<3, found 3",
    )
    assert verdict(row("two_object", count), *dogs).correct


def test_only_the_surest_objects_are_asked_for_their_colour():
    red = row("colors", {"class": "car", "count": 1, "color": "red"})
    assert verdict(red, at("car", 5, 5, 0.9, "red"), at("car", 40, 5, 0.8, "blue")).correct
    wrong = verdict(red, at("car", 5, 5, 0.8, "red"), at("car", 40, 5, 0.9, "blue"))
    assert wrong == (False, "expected red car>=1, found 0 (1 blue)")
    asked = []

    def colours(name, objects):
        asked.append((name, [one.score for one in objects]))
        return ["red"] * len(objects)

    objects = kept([at("car", 5, 5, 0.8), at("car", 40, 5, 0.9), at("bus", 9, 9)], "colors", RULES)
    assert geneval_verdict(objects, red, colours, RULES).correct
    assert asked == [("car", [0.9])]


def test_a_position_is_the_offset_of_the_centres_less_a_share_of_the_sizes():
    middle = at("dog", 50, 50).box
    for (x, y), seen in {
        (20, 50): {"left of"},
        (80, 50): {"right of"},
        (50, 20): {"above"},
        (50, 80): {"below"},
        (20, 20): {"left of", "above"},
        (80, 60): {"right of"},
        (52, 50): set(),  # within a tenth of both sizes
        (50, 50): set(),
    }.items():
        assert relations(at("cat", x, y).box, middle) == seen
    assert relations(at("cat", 53, 50).box, middle) == set()  # 3 - 2 pixels are a third of the offset
    assert relations(at("cat", 53, 50).box, middle, threshold=0.05) == {"right of"}


def test_a_position_needs_every_pair_and_a_target_that_was_met():
    asked = row(
        "position",
        {"class": "cat", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    )
    cat = at("cat", 50, 50, colour="red")
    assert verdict(asked, cat, at("dog", 10, 50)).correct
    assert verdict(asked, cat, at("dog", 90, 50)).reason == "expected dog left of target, found right of target"
    assert "no clear relation" in verdict(asked, cat, at("dog", 50, 50)).reason
    blue = verdict(asked, at("cat", 50, 50, colour="blue"), at("dog", 10, 50)).reason
    assert blue == "expected red cat>=1, found 0 (1 blue); no target for dog to be left of"
    pairs = row("position", {"class": "cat", "count": 2}, {"class": "dog", "count": 1, "position": ["left of", 0]})
    cats = [at("cat", 50, 50), at("cat", 90, 50)]
    assert verdict(pairs, *cats, at("dog", 10, 50)).correct
    assert not verdict(pairs, *cats, at("dog", 70, 50)).correct


def test_overlapping_and_numerous_objects_are_cut_as_the_rules_say():
    twins = [at("dog", 50, 50, 0.95), at("dog", 51, 50, 0.93), at("dog", 90, 50, 0.92)]
    assert overlap(twins[0].box, twins[0].box) == 1 and overlap(twins[0].box, twins[2].box) == 0
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    assert len(kept(twins, "counting", RULES)["dog"]) == 3
    assert [one.score for one in kept(twins, "counting", GenEvalRules(max_overlap=0.7))["dog"]] == [0.95, 0.92]
    many = [at("dog", n, n, 0.4 + n / 100) for n in range(20)]
    assert [one.score for one in kept(many, "colors", RULES)["dog"]] == [0.4 + n / 100 for n in range(19, 3, -1)]


def test_soft_tifa_is_the_arithmetic_and_the_geometric_mean():
    chances = [0.9, 0.5, 0.2]
    am, gm = soft_tifa(chances)
    assert (am, gm) == pytest.approx((np.mean(chances), gmean(chances)))
    assert soft_tifa([0.0, 1.0]) == (0.5, 0.0)
    with pytest.raises(ValueError):
        soft_tifa([])


def test_tifa_is_the_share_of_expected_answers():
    assert tifa(["yes", "surfer", "2"], ["yes", "skier", "2"]) == ([True, False, True], pytest.approx(2 / 3))


def geneval_rows(shares: dict[str, list[list[bool]]]) -> list[dict]:
    """Rows of prompts by tag, of each its pictures' correctness."""
    prompts = [(tag, own) for tag, members in shares.items() for own in members]
    return [
        {"number": number, "tag": tag, "sample": sample, "correct": correct}
        for number, (tag, own) in enumerate(prompts)
        for sample, correct in enumerate(own)
    ]


def test_the_overall_figure_is_the_mean_of_the_categories():
    rows = geneval_rows({"colors": [[True, True]], "counting": [[True, False], [False, False], [False, False]]})
    found = benchmark_figures("geneval", rows)
    assert found["category"]["colors"].mean == 1 and found["category"]["counting"].mean == pytest.approx(1 / 6)
    assert found["all"]["overall, mean of the categories"].mean == pytest.approx((1 + 1 / 6) / 2)
    assert found["all"]["correct pictures"].mean == pytest.approx(3 / 8)
    assert found["all"]["prompts with a correct picture"].mean == pytest.approx(2 / 4)
    by_seed = (1 + 1 / 3) / 2, 1 / 2
    over_seeds = found["all"]["overall, over seeds"]
    assert over_seeds.n == 2 and over_seeds.mean == pytest.approx(np.mean(by_seed))


def test_the_interval_of_the_overall_figure_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    chances, tags = {"a": 0.9, "b": 0.5, "c": 0.2}, [tag for tag in "abc" for _ in range(40)]
    for _ in range(100):
        values = [float(rng.random() < chances[tag]) for tag in tags]
        found = mean_of_categories(values, tags, np.arange(len(tags)))
        covered += found.low <= np.mean([*chances.values()]) <= found.high
    assert 88 <= covered <= 100


def test_figures_of_questions_are_by_skill_atoms_and_element():
    rows = [
        {"number": n, "sample": 0, "atom_count": atoms, "skills": ["count", "object"], "probabilities": [p, 1.0]}
        | {"am": (p + 1) / 2, "gm": p**0.5}
        for n, (atoms, p) in enumerate([(10, 0.25), (3, 0.81), (3, 0.49)])
    ]
    found = benchmark_figures("geneval2", rows)
    assert list(found["atoms (GM)"]) == ["3", "10"]
    assert found["atoms (GM)"]["3"].mean == pytest.approx(0.8) and found["atoms (GM)"]["10"].mean == pytest.approx(0.5)
    assert found["skill (AM)"]["count"].mean == pytest.approx((0.25 + 0.81 + 0.49) / 3)
    assert found["all"]["Soft-TIFA GM"].mean == pytest.approx(0.7)
    answered = [
        {"number": 0, "sample": 0, "element_types": ["color", "object"], "correct": [True, False], "score": 0.5}
    ]
    tifa_found = benchmark_figures("tifa", answered)
    assert tifa_found["all"]["TIFA"].mean == 0.5
    assert {name: figure.mean for name, figure in tifa_found["element type"].items()} == {"color": 1.0, "object": 0.0}
