"""Texts are encoded once, and are the same whatever was encoded before or beside them."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import FAMILIES, fresh, frozen
from torch.utils._pytree import tree_leaves

from rewarddance.generators import text_memory
from rewarddance.generators.text_memory import TextMemory, joined, rows_of

BESIDE_A_PICTURE = ("qwen-image-edit", "qwen-image-edit-plus")
"""Their encoder reads a text beside its picture, and there is no text to keep."""


def counted(generator) -> list[int]:
    """A list that gets the number of texts in each call of the family's encoders."""
    assert generator._text_limits  # learned by encoding a text
    sizes, encode = [], generator._text
    generator._text = lambda texts: (sizes.append(len(texts)), encode(texts))[1]
    return sizes


def leaves(condition) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(condition) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "qwen-image"])
def test_each_text_is_encoded_once(family: str):
    generator = fresh(family)
    sizes, texts = counted(generator), ["a red circle", "a blue cross", "a red circle"]
    first = generator.encode(texts)
    known = sum(sizes)
    assert known == 2
    again = generator.encode(texts)
    assert sum(sizes) == (known if generator.encodes_alone else 2 * known)
    for ours_, theirs in zip(leaves(again), leaves(first), strict=True):
        assert torch.equal(ours_, theirs)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in BESIDE_A_PICTURE])
def test_a_text_is_encoded_as_by_the_pipeline_among_others(family: str):
    generator = frozen(family)
    texts = ["a red circle left of a blue square", "a cross", "a red circle left of a blue square"]
    plain, kept = generator._text(texts), generator._encoded(texts)
    for ours_, theirs in zip(leaves(kept), leaves(plain), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5)


def test_texts_asked_for_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_memory, "BUDGET", 2 * 4 * 8)
    memory, asked = TextMemory(frozenset(), by_itself=True), []

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        asked.extend(texts)
        return {"hidden": torch.full((1, 8), float(len(texts[0])))}

    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        memory([text], encode)
    assert asked == ["a", "bb", "ccc", "bb"]
    memory(["a"], encode, place="another device")
    assert asked[-1] == "a"


def test_rows_of_any_conditioning_are_taken_and_joined():
    condition = {"text": torch.arange(6.0).view(3, 2), "list": [1, 2, 3], "mask": None, "ids": "all"}
    some = rows_of(condition, [2, 0, 2], frozenset({"ids"}))
    assert some["text"].tolist() == [[4, 5], [0, 1], [4, 5]] and some["list"] == [3, 1, 3]
    assert some["mask"] is None and some["ids"] == "all"
    both = joined([rows_of(condition, [row], frozenset({"ids"})) for row in (2, 0, 2)], frozenset({"ids"}))
    assert both.pop("text").equal(some.pop("text")) and both == some
