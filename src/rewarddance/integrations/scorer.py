"""What all plug-ins share: N pictures with their prompts -> N scores in [0, 1], however a trainer holds them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewarddance.data.media import Media, as_pixels
from rewarddance.data.references import References
from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.function_reward import as_reward
from rewarddance.reward.judge import checked
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import tournament, win_rates
from rewarddance.runtime.config import Precision
from rewarddance.runtime.devices import find_device
from rewarddance.types import Pixels, Prompt, Question

AnyJudge = RewardModel | str | Path
"""A judge, a name that `load_reward` takes, or the address of a server."""
AnyReferences = Mapping[str, Media] | str | Path | None
"""What `References` takes; None: the judge is asked about each picture by itself, or about the pictures of a group."""
_BRIGHTEST = 1 + 1e-3
"""The largest value of a picture in 0..1; one with a much larger value is taken to be in 0..255."""
_BETWEEN = 2.0
"""The largest value that may be of either range, and so is refused."""


class Scorer:
    """A judge as trainers ask it. The score of a picture is, whichever of these can be had first,

    - with `references`, P("yes") that it is better than its prompt's reference;
    - with `group`, its win rate among the pictures of its group, every pair asked in both orders;
    - P("yes") of the picture by itself, by a judge that needs no reference.

    device: of a judge that is given by name; None is cuda where there is one. dtype: of its weights. options: of
    `load_reward`, such as kind="pointwise" or instruction="edit". A judge in this process answers one call at a time,
    since trainers call from several threads; a server is called by all of them at once.

    Raises InputError where the judge needs references and there is neither any nor a group.
    """

    def __init__(
        self,
        judge: AnyJudge,
        references: AnyReferences = None,
        *,
        group: bool = False,
        device: str | None = None,
        dtype: torch.dtype | Precision = "auto",
        **options: Any,
    ) -> None:
        remote = isinstance(judge, str) and "://" in judge
        if isinstance(judge, str) and remote:
            self.judge = load_reward(judge, **options)
        elif isinstance(judge, str | Path):
            self.judge = load_reward(judge, device or find_device(None), dtype, **options)
        elif options:
            raise InputError(f"{next(iter(options))} is an option of load_reward.", "Give it there, or name the judge.")
        else:
            self.judge = as_reward(judge)
        self.references = None if references is None else References(references)
        self.group = group and references is None
        if needs_reference(self.judge) and self.references is None and not group:
            raise InputError(
                f"the judge {judge!r} compares with a reference, and there is none.",
                "Give references, or take a judge of kind 'pointwise'.",
            )
        self._one_at_a_time = nullcontext() if remote else threading.Lock()

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Media] | Tensor | Any,
        prompts: Sequence[str],
        *,
        sources: Sequence[Media | None] | Tensor | Any = None,
        groups: Sequence[Hashable] | Tensor | np.ndarray | None = None,
    ) -> list[float]:
        """Scores of N pictures or videos, in their order.

        images: whatever `as_pixels` takes of each, along the first axis. sources: what each was edited or animated
        from. groups: of each the group that it belongs to; None: those of one prompt and source are a group.

        Raises InputError naming a picture that is none or is alone in its group, and RewardError for a score that could
        not be had. It never returns a number in the place of one.
        """
        pixels = [as_pixels(image, f"image {number}") for number, image in enumerate(images)]
        prompts = list(prompts)
        for number, text in enumerate(prompts):
            if isinstance(text, str) and not text.strip():
                raise InputError(f"prompt {number} is empty.", "Say what the picture is to show.")
        pictures = _sources(sources, len(prompts))
        for name, count in (
            ("images", len(pixels)),
            ("sources", len(pictures)),
            ("groups", len(prompts if groups is None else groups)),
        ):
            if count != len(prompts):
                raise InputError(f"there are {count} {name} and {len(prompts)} prompts.", "Give as many of each.")
        with_sources = [Prompt(text, image=image) for text, image in zip(prompts, pictures, strict=True)]
        with self._one_at_a_time:
            if self.group:
                own = [(prompt.text, id(prompt.image)) for prompt in with_sources]
                keys = own if groups is None else [getattr(key, "item", lambda key=key: key)() for key in groups]
                return self._win_rates(pixels, with_sources, keys)
            references: dict[str, Pixels] = {}
            if self.references is not None:
                references = {text: self.references.of(text) for text in dict.fromkeys(prompts)}
            asking = [
                Question(prompt, each, references.get(prompt.text))
                for prompt, each in zip(with_sources, pixels, strict=True)
            ]
            return checked(self.judge(asking).margin, asking).probability.tolist()

    def _win_rates(self, pixels: Sequence[Pixels], prompts: Sequence[Prompt], keys: Sequence[Hashable]) -> list[float]:
        places: dict[Hashable, list[int]] = {}
        for number, key in enumerate(keys):
            places.setdefault(key, []).append(number)
        for numbers in places.values():
            if len(numbers) < 2:
                raise InputError(
                    f"image {numbers[0]} ({prompts[numbers[0]].text!r}) is alone in its group.",
                    "Win rates are among the pictures of a group: let the trainer hand over whole ones.",
                )
        of_groups = [prompts[numbers[0]] for numbers in places.values()]
        pictures_of_groups = [[pixels[number] for number in numbers] for numbers in places.values()]
        scores = [0.0] * len(pixels)
        for numbers, ranking in zip(
            places.values(), tournament(self.judge, of_groups, pictures_of_groups), strict=True
        ):
            if not torch.isfinite(ranking.margins).all():
                raise RewardError(
                    f"the judge gave no finite margin for the pictures of {prompts[numbers[0]].text!r}.",
                    "Look at them for values that are not finite, and at the judge.",
                )
            for number, rate in zip(numbers, win_rates(ranking.margins[None])[0].tolist(), strict=True):
                scores[number] = rate
        return scores


def channels_first(video: Tensor, name: str = "the video") -> Pixels:
    """A video [3, T, H, W], floats in 0..1 or 0..255 or 8-bit integers, as pixels [T, 3, H, W] in [0, 1].

    Floats count as 0..255 where one of them is above 2. Raises InputError beginning with `name` where it is none, or
    where its largest value, between 1 and 2, may be of either range.
    """
    if not isinstance(video, Tensor) or video.ndim != 4 or video.shape[0] != 3:
        shape = list(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise InputError(f"{name} is {shape}.", "Give a tensor [3, T, H, W].")
    frames = video.detach().transpose(0, 1)
    if frames.is_floating_point():
        frames = frames.float()
        highest = frames.max().item()
        if _BRIGHTEST < highest <= _BETWEEN:
            raise InputError(
                f"{name} has values up to {highest:.3g}, which may be of 0..1 or of 0..255.", "Clamp it to 0..1."
            )
        if highest > _BETWEEN:
            frames = frames / 255
    return as_pixels(frames, name)


def _sources(sources: Any, count: int) -> list[Pixels | None]:
    """The source of each sample; samples that name one file or hold one object get the very same tensor."""
    if sources is None:
        return [None] * count
    seen: dict[Hashable, Pixels] = {}
    pictures: list[Pixels | None] = []
    kept = list(sources)  # their ids are told apart below, so they must live as long
    for number, source in enumerate(kept):
        if source is None:
            pictures.append(None)
            continue
        key = source if isinstance(source, str | Path) else id(source)
        if key not in seen:
            seen[key] = as_pixels(source, f"source {number}")
        pictures.append(seen[key])
    return pictures


def subclass(logic: type, base: type) -> type:
    """`_Name` of a plug-in as `Name`, a class of the trainer's own kind, which pickle finds where `_Name` stands."""
    return type(logic.__name__.lstrip("_"), (logic, base), {"__module__": logic.__module__, "__doc__": logic.__doc__})
