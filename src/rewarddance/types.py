"""The records that cross the seams, and the legend of shapes.

Shapes, used everywhere: B questions or samples, T frames (a picture has T = 1), C = 3 channels, H and W pixels,
N candidates under one prompt, G samples in a group. Pixels are float tensors [T, C, H, W] in [0, 1] and stay in the
autograd graph. A margin is the logit of yes minus the logit of no, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError, shown

Pixels = Float[Tensor, "T C H W"]
"""One picture (T = 1) or video, in [0, 1]."""
OtherPixels = Float[Tensor, "T2 C H2 W2"]
"""As Pixels; of another size and length where it stands beside one."""
LONGEST_PROMPT = 1 << 16
"""Characters of a prompt; a text of more is a file that strayed into a row."""
PixelBatch = Float[Tensor, "B T C H W"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a generator is asked for, and what a judge is asked about.

    text: the words.
    negative: what a generator with guidance is steered away from, before its own `negative_prompt`.
    metadata: carried along unread (GenEval's record, an id, a category).
    image: the picture [T, C, H, W] that the prompt comes with: the first frame of a video, the source of an edit.
    image_path: the picture's file, for records.
    where: its place in the file that it is from, such as "line 3", for records; "" where it is from none.

    Prompts that share one picture hold the very same tensor, so that it is encoded once; two prompts are equal only
    where their pictures are the same tensor or the same file. Raises InputError where a text is none that can be
    encoded, holds a null character, or is longer than LONGEST_PROMPT.
    """

    text: str
    negative: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    image: Pixels | None = field(default=None, repr=False)
    image_path: Path | None = None
    where: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _check_text(self.text, "prompt")
        _check_text(self.negative, "negative prompt")
        if self.image is not None:
            _check_pixels(self.image, "picture of a prompt")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prompt):
            return NotImplemented
        paths = self.image_path, other.image_path
        same_image = self.image is other.image if paths == (None, None) else paths[0] == paths[1]
        words = self.text, self.negative, self.metadata
        return same_image and words == (other.text, other.negative, other.metadata)

    def __hash__(self) -> int:
        return hash((self.text, self.negative, self.image_path or id(self.image)))


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):  # a template would write it out, and the judge answer as if it were one
        raise InputError(f"the {what} {shown(text)} is no text.", "Give one text.")
    if len(text) > LONGEST_PROMPT:
        raise InputError(
            f"the {what} {shown(text)} has {len(text):,} characters, and {LONGEST_PROMPT:,} can be read.",
            "Shorten it; perhaps a whole file stands in it.",
        )
    if "\0" in text:
        raise InputError(f"the {what} {shown(text)} holds a null character.", "Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} {shown(text)} is broken: {error.reason}.", "Correct it.") from None


def _check_pixels(pixels: object, what: str) -> None:
    if isinstance(pixels, Tensor) and pixels.ndim == 4 and pixels.is_floating_point():
        return
    is_tensor = isinstance(pixels, Tensor)
    found = f"{pixels.dtype} of the shape {list(pixels.shape)}" if is_tensor else f"a {type(pixels).__name__}"
    raise InputError(f"the {what} is {found}, and no float pixels [T, C, H, W].", "Make them by as_pixels.")


def as_prompt(prompt: str | Prompt) -> Prompt:
    """A text as a Prompt; a Prompt as it is. Raises InputError where it is neither."""
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt)


def as_prompts(prompts: Iterable[str | Prompt]) -> list[Prompt]:
    """`as_prompt` of each."""
    return [as_prompt(prompt) for prompt in prompts]


@dataclass(frozen=True, eq=False, init=False)
class Question:
    """One question to a judge: is `candidate` better than `reference` for `prompt`, under `instruction`?

    prompt: what the picture was made for, with the picture that it was made from if there is one; a text is made into
    a Prompt.
    candidate, reference: pixels [T, C, H, W] in [0, 1]; a pointwise judge needs no reference.
    instruction: the name of a task instruction, or None for the judge's own.
    fps: frames a second of the candidate and of the reference, where they are videos and it is known.

    Two questions that hold the very same tensor share its encoding. Raises InputError where the prompt is no text or a
    blank one, or pixels are none.
    """

    prompt: Prompt
    candidate: Pixels
    reference: OtherPixels | None = None
    instruction: str | None = None
    fps: tuple[float | None, float | None] = (None, None)

    def __init__(
        self,
        prompt: str | Prompt,
        candidate: Pixels,
        reference: OtherPixels | None = None,
        instruction: str | None = None,
        fps: tuple[float | None, float | None] = (None, None),
    ) -> None:
        _check_pixels(candidate, "candidate")
        if reference is not None:
            _check_pixels(reference, "reference")
        prompt = as_prompt(prompt)
        if not prompt.text.strip():
            raise InputError(f"the prompt {prompt.text!r} is blank.", "Say what the candidate was made for.")
        vars(self).update(prompt=prompt, candidate=candidate, reference=reference)
        vars(self).update(instruction=instruction, fps=fps)


@dataclass(frozen=True, eq=False)
class Verdict:
    """A judge's answers to B questions.

    margin: [B] float32, the logit of yes minus the logit of no; differentiable in the questions' pixels.
    reasons: B texts where they were asked for.
    """

    margin: Float[Tensor, " B"]
    reasons: tuple[str, ...] | None = None

    @property
    def probability(self) -> Float[Tensor, " B"]:
        """P("yes") [B], the reward (paper, section 3): the softmax over the yes group against the no group."""
        return torch.sigmoid(self.margin)


@dataclass(frozen=True, eq=False, init=False)
class Preference:
    """One comparison by people: for `prompt`, the share of votes that found `second` better than `first`.

    prompt: with the picture that both were made from, if there is one; a text is made into a Prompt.
    share: in [0, 1]; 0.5 is a tie.
    source: where the pair comes from, for figures by source.
    reason: why the answer is as it is with `second` as the candidate and `first` as the reference; reason_swapped: with
    the two changed over. A reason speaks of "the candidate", so each order has its own; "" is none.
    criterion: by what the votes were cast, "" where by all.
    annotator: who voted, "" where many did.
    fps: frames a second of both files, where they are videos and it is known.
    """

    prompt: Prompt
    first: Pixels
    second: OtherPixels
    share: float
    source: str = ""
    reason: str = ""
    reason_swapped: str = ""
    criterion: str = ""
    annotator: str = ""
    fps: tuple[float | None, float | None] = (None, None)

    def __init__(
        self,
        prompt: str | Prompt,
        first: Pixels,
        second: OtherPixels,
        share: float,
        source: str = "",
        *,
        reason: str = "",
        reason_swapped: str = "",
        criterion: str = "",
        annotator: str = "",
        fps: tuple[float | None, float | None] = (None, None),
    ) -> None:
        _check_pixels(first, "first picture of a preference")
        _check_pixels(second, "second picture of a preference")
        if isinstance(share, str) or share is None or not 0 <= share <= 1:  # written so that NaN does not pass
            raise InputError(
                f"the share {shown(share)} of a preference is not from 0 to 1.", "Give the share of the votes."
            )
        vars(self).update(prompt=as_prompt(prompt), first=first, second=second, share=share, source=source)
        vars(self).update(
            reason=reason, reason_swapped=reason_swapped, criterion=criterion, annotator=annotator, fps=fps
        )


class Scales(NamedTuple):
    """How much of a latent is picture and how much noise: x_t = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch of denoising sequences stopped at one step, without graph.

    x_t: the latents [B, ...] at `step`; step: how many steps were taken; noise: the latents each began from.
    """

    prompts: tuple[Prompt, ...]
    noise: Tensor
    x_t: Tensor
    step: int
