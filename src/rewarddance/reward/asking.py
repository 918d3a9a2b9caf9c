"""Pictures in any form, put to a judge: scored, compared with a reference, ranked, or as a trainer's function."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewarddance.data.media import MAX_FRAMES, Media, as_pixels, read_rate
from rewarddance.errors import InputError
from rewarddance.reward.ranking import Ranking, knockout, rivals, tournament
from rewarddance.reward.reward_fn import rewards_of
from rewarddance.reward.video_frames import check_rate
from rewarddance.types import Pixels, Prompt, Question, Verdict, as_prompt

Candidates = Media | Sequence[Media]
"""N pictures or videos of one prompt: a list, as many along the first axis of one tensor or array, or a single one."""


class Asking(ABC):
    """What any judge answers, here or on a server, of pictures and videos in any form that `as_pixels` takes.

    Where the judge knows the rate of its videos (`config.fps`), a file of another is refused.
    """

    needs_reference: bool
    config: Any

    @abstractmethod
    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B]."""

    def score(
        self,
        prompt: str | Prompt,
        candidates: Candidates,
        instruction: str | None = None,
        explain: bool = False,
    ) -> Verdict:
        """How good is each of N candidates? [N].

        A judge that needs a reference says it among the others: the mean margin against each of them, both orders. Any
        other scores each by itself. explain: as in `rank`, or `compare`. Raises InputError for a single candidate where
        the judge needs a reference.
        """
        prompt, pixels = as_prompt(prompt), all_pixels(candidates, fps=self.config.fps)
        if not self.needs_reference:
            questions = [Question(prompt, each, None, instruction) for each in pixels]
            return self._verdict(questions, explain)
        n = len(pixels)
        if n < 2:
            raise InputError(
                "a pairwise judge cannot score one candidate by itself.", "Give a reference to compare, or two or more."
            )
        pairs = list(itertools.permutations(range(n), 2))
        pair_margins = self([Question(prompt, pixels[c], pixels[r], instruction) for c, r in pairs]).margin
        margins = pair_margins.new_zeros(n, n)
        margins[tuple(torch.tensor(pairs).T)] = pair_margins
        margin = (margins - margins.T).sum(1) / (2 * (n - 1))
        if not explain:
            return Verdict(margin)
        order = margin.argsort(descending=True, stable=True).tolist()
        return Verdict(margin, self.reasons_against_best(prompt, pixels, order, instruction))

    def compare(
        self,
        prompt: str | Prompt,
        candidates: Candidates,
        reference: Media,
        instruction: str | None = None,
        explain: bool = False,
    ) -> Verdict:
        """Is each of N candidates better than the reference? Pictures in any form that `as_pixels` takes; [N].

        explain: with reasons (and without a graph). Raises InputError naming the candidate that is no picture, or where
        this kind gives no reasons.
        """
        prompt, other, fps = as_prompt(prompt), pixels_of(reference, "the reference", self.config.fps), self.config.fps
        questions = [Question(prompt, each, other, instruction) for each in all_pixels(candidates, fps=fps)]
        return self._verdict(questions, explain)

    def rank(
        self,
        prompt: str | Prompt,
        candidates: Candidates,
        instruction: str | None = None,
        explain: bool = False,
        method: str = "all",
    ) -> Ranking:
        """Order N candidates, best first, by wins over each other, every comparison in both orders (paper, section 3).

        method: "all" pairs, or a "knockout" in N - 1 of the N (N - 1) / 2 comparisons, which finds the best but orders
        the others only by when they left; its margins are NaN where two did not meet.
        explain: with the reasons of each against the best of the others. Raises InputError naming a candidate that is
        no picture, an unknown method, or where this kind gives no reasons.
        """
        pixels = all_pixels(candidates, fps=self.config.fps)
        if method == "all":
            (ranking,) = tournament(self, [prompt], [pixels], instruction)
        elif method == "knockout":
            (cup,) = knockout(self, [prompt], [pixels], instruction)
            ranking = Ranking(cup.order, cup.won.float(), cup.margins)
        else:
            raise InputError(f"there is no way of ranking named {method!r}.", "Say all or knockout.")
        if not explain or len(pixels) < 2:
            return ranking
        order = ranking.order.tolist()
        return ranking._replace(reasons=self.reasons_against_best(prompt, pixels, order, instruction))

    def reasons_against_best(
        self,
        prompt: str | Prompt,
        pixels: Sequence[Pixels],
        order: Sequence[int],
        instruction: str | None = None,
    ) -> tuple[str, ...]:
        """Why each of N >= 2 candidates is better than the best of the others or not; order: best first."""
        prompt = as_prompt(prompt)
        questions = [
            Question(prompt, each, pixels[rival], instruction)
            for each, rival in zip(pixels, rivals(order), strict=True)
        ]
        return self._verdict(questions, explain=True).reasons or ()

    def reward_fn(self) -> Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]:
        """This judge as a reward function of other people's loops: (images, prompts, metadata) -> (scores, info).

        See `reward.reward_fn.rewards_of`.
        """
        return functools.partial(rewards_of, self)

    def _verdict(self, questions: Sequence[Question], explain: bool) -> Verdict:
        if not explain:
            return self(questions)
        give_reasons: Callable[[Sequence[Question]], Verdict] | None = getattr(self, "explain", None)
        if give_reasons is None:
            raise InputError(f"{self!r} gives no reasons.", "Leave explain out.")
        return give_reasons(questions)


def all_pixels(
    candidates: Any, name: str = "candidate", fps: float | None = None, max_frames: int = MAX_FRAMES
) -> list[Pixels]:
    """`pixels_of` each candidate, named by its number; a single picture is a list of one."""
    if isinstance(candidates, Tensor | np.ndarray):
        single = candidates.ndim <= 3
    else:
        of_one_file = isinstance(candidates, str | bytes | bytearray | memoryview | Image.Image)
        single = of_one_file or not isinstance(candidates, Iterable)
    given: Any = candidates
    if single:
        return [pixels_of(given, f"the {name}", fps, max_frames)]
    return [pixels_of(item, f"{name} {number}", fps, max_frames) for number, item in enumerate(given)]


def pixels_of(media: Media, name: str, fps: float | None = None, max_frames: int = MAX_FRAMES) -> Pixels:
    """`as_pixels`, of videos at `fps` frames a second.

    Raises InputError as it does, and for a video's file that is known to have another rate.
    """
    pixels = as_pixels(media, name, max_frames)
    if fps is not None and len(pixels) > 1 and isinstance(media, str | Path | bytes | bytearray | memoryview):
        file = Path(media) if isinstance(media, str | Path) else bytes(media)
        check_rate(read_rate(file, name), fps, name)
    return pixels
