"""Splits by prompt: all rows of a prompt fall into one part, whichever file they stand in."""

from __future__ import annotations

from hashlib import blake2b

from rewarddance.data.fields import normal
from rewarddance.errors import InputError


def parse_split(text: str) -> dict[str, float]:
    """`train=0.9,test=0.1` as names and shares. Raises InputError where the shares do not sum to 1."""
    parts: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not equals or not name.replace("_", "").replace("-", "").isalnum() or not 0 < value <= 1 or name in parts:
            raise InputError(f"the part {part.strip()!r} of the split is no name=share.", "Write train=0.9,test=0.1.")
        parts[name] = value
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise InputError(f"the shares of the split {text} sum to {sum(parts.values()):g}.", "Let them sum to 1.")
    return parts


def part_of(prompt: str, parts: dict[str, float]) -> str:
    """The part that a prompt falls into, by a hash of it without case, punctuation and spacing."""
    digest = blake2b(normal(prompt).encode(), digest_size=8, person=b"split").digest()
    at, end = int.from_bytes(digest, "big") / 2**64, 0.0
    for name, share in parts.items():
        end += share
        if at < end:
            return name
    return list(parts)[-1]
