"""The records that cross the seams, and the legend of shapes.

Shapes, used everywhere: B questions or samples, T frames (a picture has T = 1), C = 3 channels, H and W pixels,
N candidates under one prompt, G samples in a group. Pixels are float tensors [T, C, H, W] in [0, 1] and stay in the
autograd graph. A margin is the logit of yes minus the logit of no, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError

Pixels = Float[Tensor, "T C H W"]
"""One picture (T = 1) or video, in [0, 1]."""
OtherPixels = Float[Tensor, "T2 C H2 W2"]
"""As Pixels; of another size and length where it stands beside one."""
PixelBatch = Float[Tensor, "B T C H W"]


@dataclass(frozen=True)
class Prompt:
    """What the generator is asked for. `metadata` is carried along unread (GenEval's record, an id, a category).

    condition: the file of the picture that it is given beside the text (the first frame, in image to video).
    """

    text: str
    negative: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    condition: Path | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """One question to a judge: is `candidate` better than `reference` for `prompt`, under `instruction`?

    prompt: the text the picture was made for. candidate, reference: pixels [T, C, H, W] in [0, 1]; a pointwise judge
    needs no reference. instruction: the name of a task instruction, or None for the judge's own. condition: the picture
    that the generator was given beside the prompt (image to video, editing). fps: frames a second of the candidate and
    of the reference, where they are videos and it is known.
    Two questions that hold the very same tensor share its encoding. Raises InputError where the prompt is no text.
    """

    prompt: str
    candidate: Pixels
    reference: OtherPixels | None = None
    instruction: str | None = None
    condition: Float[Tensor, "T3 C H3 W3"] | None = None
    fps: tuple[float | None, float | None] = (None, None)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):  # a template would write it out, and the judge answer as if it were one
            raise InputError(f"the prompt {self.prompt!r} is no text.", "Give one text.")
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the prompt {self.prompt!r} is broken: {error.reason}.", "Correct it.") from None


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


@dataclass(frozen=True, eq=False)
class Preference:
    """One comparison by people: for `prompt`, the share of votes that found `second` better than `first`.

    share: in [0, 1]; 0.5 is a tie. source: where the pair comes from, for figures by source. condition: the picture
    that both were made from besides the prompt. reason: why the answer is as it is with `second` as the candidate and
    `first` as the reference; reason_swapped: with the two changed over. A reason speaks of "the candidate", so each
    order has its own; "" is none. criterion: by what the votes were cast, "" where by all. annotator: who voted, ""
    where many did. fps: frames a second of both files, where they are videos and it is known.
    """

    prompt: str
    first: Pixels
    second: OtherPixels
    share: float
    source: str = ""
    condition: Float[Tensor, "T3 C H3 W3"] | None = None
    reason: str = ""
    reason_swapped: str = ""
    criterion: str = ""
    annotator: str = ""
    fps: tuple[float | None, float | None] = (None, None)


class Scales(NamedTuple):
    """How much of a latent is picture and how much noise: x_t = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch of denoising sequences stopped at one step, without graph.

    x_t: the latents [B, ...] at `step`; step: how many steps were taken; noise: the latents each began from.
    """

    prompts: tuple[str, ...]
    noise: Tensor
    x_t: Tensor
    step: int
