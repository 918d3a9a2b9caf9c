"""How votes are collected. Nothing heavy is imported here, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rewarddance.runtime.config import Recipe, Seed, changed

Policy = Literal["random", "least_voted", "least_sure", "disagreement", "ranking"]
"""Which pair is handed out next: any; one with fewest votes; where the judge is nearest to P("yes") = 0.5; where
several judges differ; the one that tells most of a Bradley-Terry ranking of the models."""
LEARNED = ("least_sure", "disagreement")
"""Policies that need scores of a judge."""


class HandingOut(Recipe):
    """Whom is asked what. It is kept in the store, and holds for all that are asked from it."""

    policy: Policy = "least_voted"
    """Which pair is handed out next. Until a judge has scored the pairs, least_sure and disagreement are random."""
    votes: int = Field(default=1, ge=1)
    """People who vote on each pair."""
    overlap: float = Field(default=0.1, ge=0, le=1)
    """Share of the pairs that more people vote on, so that agreement can be seen."""
    overlap_votes: int = Field(default=3, ge=1)
    """People who vote on each of these."""
    test_every: int = Field(default=20, ge=2)
    """Every so many pairs of a person one is a test pair, if pairs with a known answer were given."""
    lease_seconds: float = Field(default=600.0, gt=0)
    """After so long without an answer a pair that was handed out may be handed to somebody else."""
    criteria: str | None = None
    """A tree of criteria by name or file, or a part of it (edit#keeping): its leaves are asked one after the other."""
    compare: tuple[str, str] | None = None
    """A blind comparison of two models, "new,old": pairs of these alone, in random order, until it is decided."""
    seed: Seed = 0
    """Of the order of the pairs, and of those that more people vote on."""

    @field_validator("compare", mode="before")
    @classmethod
    def _models_from_text(cls, value: Any) -> Any:
        models = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if isinstance(models, list | tuple) and len(models) != 2:
            raise ValueError("it names two models, such as new,old")
        return models

    @model_validator(mode="after")
    def _handing_out_goes_together(self) -> HandingOut:
        if not self.overlap and changed(self, "overlap_votes"):
            raise ValueError("overlap_votes are of the pairs of the overlap, which is 0: leave it out")
        if self.overlap and self.overlap_votes < self.votes:
            raise ValueError(f"overlap_votes is {self.overlap_votes}, less than the {self.votes} votes of every pair")
        if self.compare and self.compare[0] == self.compare[1]:
            raise ValueError(f"compare names {self.compare[0]!r} twice")
        if self.compare and self.policy not in ("random", "least_voted"):
            raise ValueError("a comparison's pairs are drawn at random; leave policy out")
        if self.compare and self.criteria:
            raise ValueError("a comparison asks one question; leave criteria out")
        return self


class PageOptions(Recipe):
    """Where the page is, and who may see it."""

    host: str = "127.0.0.1"
    """The address to listen at. Any other than this machine's own needs people."""
    port: int = Field(default=8100, ge=0, le=65535)
    """The port; 0 takes a free one, which is printed."""
    address: str | None = None
    """What invitation links begin with, such as https://votes.example.org. Default: where the page is."""
    people: tuple[str, ...] = ()
    """Who is invited: one link each, with commas; the link of whoever is left out later is void. Nobody: whoever is at
    this machine votes as "local"."""
    ahead: int = Field(default=3, ge=1, le=10)
    """Pairs that a browser holds, so that the next one is there at once."""

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, address: str | None) -> str | None:
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
        return address

    @field_validator("people", mode="before")
    @classmethod
    def _names_from_text(cls, value: Any) -> Any:
        words = value if isinstance(value, list | tuple) else [value]
        names = tuple(name.strip() for word in words for name in str(word).split(",") if name.strip())
        if words and not names:
            raise ValueError("it names nobody")
        return names

    @field_validator("people")
    @classmethod
    def _names_differ(cls, people: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(people)) < len(people):
            raise ValueError("a name stands twice")
        if any(name in ("local", "owner") or len(name) > 60 or not name.isprintable() for name in people):
            raise ValueError("names have up to 60 printable characters, and are not local or owner")
        return people


class ExportRecipe(Recipe):
    """`rewarddance votes export`: which votes become which file."""

    store: Path
    """The store of votes."""
    output: Path
    """The file to write: .jsonl or .parquet of preferences, .json for other programs."""
    format: Literal["shares", "votes", "label-studio", "argilla"] = "shares"
    """shares is one row a pair, each vote weighed by how often its annotator seems right; votes one row a vote."""
    tests: bool = False
    """Votes on test pairs too."""
