"""True reasons: why one picture is better than another, in a sentence or two, from what the oracle reads.

A judge is trained on them as its chain of thought. All words are in the small judge's vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter

from rewarddance.shapeworld.oracle import Score
from rewarddance.shapeworld.scenes import plural

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_CLEAR_DIFFERENCE = 0.1
"""A difference in quality that is named beside a difference in alignment."""
_MAX_FAULTS = 2
"""How many faults of a picture are named; the oracle lists those of the objects first."""


def reason(candidate: Score, reference: Score) -> str:
    """Which of two pictures is better by what, and what is wrong with each; "" where they are equal.

    "The candidate is better: alignment with the prompt. Reference: the circle is red, not blue. Candidate: nothing
    wrong." It is right for this order alone, as it names the candidate and the reference.
    """
    difference = candidate.overall - reference.overall
    if difference == 0:
        return ""
    names = ("candidate", "reference") if difference > 0 else ("reference", "candidate")
    better, worse = (candidate, reference) if difference > 0 else (reference, candidate)
    aspects = []
    if better.alignment > worse.alignment:
        aspects.append("alignment with the prompt")
    if better.quality - worse.quality > (_CLEAR_DIFFERENCE if aspects else 0):
        aspects.append("visual quality")
    text = f"The {names[0]} is better: {', '.join(aspects)}."
    if better.alignment > worse.alignment:
        text += f" {names[1].title()}: {faults(worse)}. {names[0].title()}: {faults(better)}."
    return text


def faults(score: Score) -> str:
    """What the oracle finds wrong with a picture's contents, the first few faults in words."""
    counts = Counter(score.reasons)
    texts = [_in_words(fault, count) for fault, count in counts.items()]
    return "; ".join(texts[:_MAX_FAULTS]) or "nothing wrong"


def _in_words(fault: str, count: int) -> str:
    """A fault as a reason states it: where one of several circles is missing, "no circle is there" would be false."""
    missing = re.fullmatch(r"no (.+) is there", fault)
    if missing:
        return f"{NUMBERS[count]} {missing[1] if count == 1 else plural(missing[1])} not there"
    return re.sub(r"^\d+\b", lambda number: NUMBERS.get(int(number[0]), "many"), fault)
