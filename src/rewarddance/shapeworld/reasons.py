"""True reasons: why one picture is better than another, in one short sentence, from what the oracle sees.

They serve as the chain of thought that a judge is trained on, in words that the small judge's tokenizer knows.
"""

from __future__ import annotations

import re
from collections import Counter

from rewarddance.shapeworld.oracle import Score
from rewarddance.shapeworld.scenes import plural

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
CLEARLY = 0.1
"""A difference in quality that is worth a word beside a difference in alignment."""
MOST = 2
"""Faults named of a picture; the oracle names the objects' own first."""


def reason(candidate: Score, reference: Score) -> str:
    """Which of two pictures is better by what, and what is wrong with each; "" where neither is.

    "The candidate is better: alignment with the prompt. Reference: the circle is red, not blue. Candidate: nothing
    wrong." It is the right reason for this order alone: it names who was shown as what.
    """
    ahead = candidate.overall - reference.overall
    if ahead == 0:
        return ""
    names = ("candidate", "reference") if ahead > 0 else ("reference", "candidate")
    better, worse = (candidate, reference) if ahead > 0 else (reference, candidate)
    by = []
    if better.alignment > worse.alignment:
        by.append("alignment with the prompt")
    if better.quality - worse.quality > (CLEARLY if by else 0):
        by.append("visual quality")
    said = f"The {names[0]} is better: {', '.join(by)}."
    if better.alignment > worse.alignment:
        said += f" {names[1].title()}: {faults(worse)}. {names[0].title()}: {faults(better)}."
    return said


def faults(score: Score) -> str:
    """What the oracle finds wrong with a picture's contents, the first few faults in words."""
    counts = Counter(score.reasons)
    named = [_in_words(text, count) for text, count in counts.items()]
    return "; ".join(named[:MOST]) or "nothing wrong"


def _in_words(fault: str, count: int) -> str:
    """One of the oracle's complaints. Of many that one kind is missing from, "no circle is there" would be false."""
    missing = re.fullmatch(r"no (.+) is there", fault)
    if missing:
        return f"{NUMBERS[count]} {missing[1] if count == 1 else plural(missing[1])} not there"
    return re.sub(r"^\d+\b", lambda number: NUMBERS.get(int(number[0]), "many"), fault)
