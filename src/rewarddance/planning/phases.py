"""A generator and a judge whose work is counted by phase."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.planning.counting import Counting
from rewarddance.types import Prompt, Question, Verdict


class CountedGenerator:
    """A generator whose predictions and decoding are phases.

    last_steps: above 1, its sampler has only these. predicting: the phase of a prediction.
    """

    def __init__(self, generator: PipelineGenerator, counts: Counting, last_steps: int = 1) -> None:
        self._generator, self._counts, self.predicting = generator, counts, "generator"
        self.num_steps = last_steps if last_steps > 1 else generator.num_steps
        self._encoded: set[Any] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def encode(self, prompts: Sequence[Prompt]) -> Any:
        """Prompts with pictures are encoded twice by texts and shapes, and from then on only counted.

        Twice, for a generator keeps the texts that it has encoded, and so the first time takes longer than any other.
        """
        if not any(prompt.image is not None for prompt in prompts):
            return self._generator.encode(prompts)
        first: dict[int, int] = {}  # prompts that share a picture encode it once
        key: tuple[Any, ...] = ("encode",)
        for place, prompt in enumerate(prompts):
            shape = None if prompt.image is None else prompt.image.shape
            key += (prompt.text, prompt.negative, shape, first.setdefault(id(prompt.image), place))
        with self._alike_pictures_once():
            if key not in self._encoded:
                self._encoded.add(key)
                return self._generator.encode(prompts)
            return self._counts.repeated(key, lambda: self._generator.encode(prompts))

    @contextmanager
    def _alike_pictures_once(self) -> Iterator[None]:
        """Within the block pictures of one size, and texts beside them, are encoded once and then only counted."""

        def once(method: Any, image: Image.Image, *text: str) -> Any:
            return self._counts.repeated((method.__name__, image.size, *text), lambda: method(image, *text))

        generator: Any = self._generator
        replaced = [name for name in ("_picture", "_text_beside") if hasattr(generator, name)]
        for name in replaced:
            setattr(generator, name, partial(once, getattr(generator, name)))
        try:
            yield
        finally:
            for name in replaced:
                delattr(generator, name)

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        self._counts.begin(self.predicting)
        lengths = [leaf.shape for leaf in tree_leaves(condition) if isinstance(leaf, Tensor)]
        key = "predict", self._generator._uses_initial, x_t.shape, *lengths
        if not torch.is_grad_enabled():
            return self._counts.repeated(key, lambda: self._generator.predict(x_t, step, condition))
        return self._counts.repeated_with_graph(
            (*key, x_t.requires_grad), lambda leaves: self._generator.predict(leaves[0], step, condition), [x_t]
        )

    def decode(self, x_0: Tensor) -> Tensor:
        self._counts.begin("decoder")
        if not torch.is_grad_enabled():
            return self._counts.repeated(("decode", x_0.shape), lambda: self._generator.decode(x_0))
        return self._counts.repeated_with_graph(
            ("decode", x_0.shape), lambda leaves: self._generator.decode(leaves[0]), [x_0]
        )


class CountedJudge:
    """A judge whose answers are a phase. Candidates are its leaves where it is asked with a gradient."""

    def __init__(self, judge: Any, counts: Counting) -> None:
        self._judge, self._counts = judge, counts
        self.vlm = judge.vlm
        self.needs_reference, self.config = judge.needs_reference, judge.config

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self._counts.begin("judge")
        if not any(question.candidate.requires_grad for question in questions):
            return self._judge(questions)
        candidates = {id(question.candidate): question.candidate for question in questions}

        def margin(leaves: list[Tensor]) -> Tensor:
            by_id = dict(zip(candidates, leaves, strict=True))
            return self._judge([replace(q, candidate=by_id[id(q.candidate)]) for q in questions]).margin

        key = "ask", id(self._judge), structure_of(questions)
        return Verdict(self._counts.repeated_with_graph(key, margin, list(candidates.values())))


class AskedJudge(CountedJudge):
    """A judge that is asked without a gradient, and whose margins, which are all 0, are read on the host.

    Prompts are alike. Of the first ones, enough to fill what the judge reads at once twice over, all is asked, and the
    operations of the others are theirs. Pictures of all are kept as they are encoded.
    """

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self._counts.begin("judge")
        if questions:
            asked = questions[: self._enough(questions)]
            before = self._counts.work("judge")
            others = self.vlm.encode(_pictures(questions[len(asked) :], set(map(id, _pictures(asked, set())))))
            self._counts.multiply("judge", 0, since=before)  # held, and counted with the questions
            self._counts.repeated(("ask", id(self._judge), structure_of(asked)), lambda: self._judge(asked).margin)
            del others
            self._counts.multiply("judge", len(questions) / len(asked), since=before)
        return Verdict(torch.zeros(len(questions)))

    def _enough(self, questions: Sequence[Question]) -> int:
        """How many of the questions fill what the judge reads at once twice, in whole prompts."""
        first_prompt = next((n for n, q in enumerate(questions) if q.prompt is not questions[0].prompt), len(questions))
        self.vlm.lengths.clear()
        self.vlm.counting_only = True
        try:
            self._judge(questions[:first_prompt])
        finally:
            self.vlm.counting_only = False
        return min(
            len(questions), first_prompt * math.ceil(2 * self.vlm.max_batch_tokens / max(1, sum(self.vlm.lengths)))
        )


def structure_of(questions: Sequence[Question]) -> tuple[Any, ...]:
    """All that the work on the questions depends on: their texts, and which picture of which shape is where."""
    numbers: dict[int, int] = {}

    def picture(pixels: Tensor | None) -> Any:
        return None if pixels is None else (numbers.setdefault(id(pixels), len(numbers)), pixels.shape)

    return tuple(
        (q.prompt.text, q.instruction, picture(q.prompt.image), picture(q.candidate), picture(q.reference))
        for q in questions
    )


def _pictures(questions: Sequence[Question], known: set[int]) -> list[Tensor]:
    """Each picture of the questions once, without those whose ids are known."""
    pictures = [
        pixels for q in questions for pixels in (q.prompt.image, q.candidate, q.reference) if pixels is not None
    ]
    return list({id(pixels): pixels for pixels in pictures if id(pixels) not in known}.values())
