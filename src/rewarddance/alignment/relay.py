"""ReFL's backward pass from a gradient in pixels on: to latents a few pictures at a time, to weights step by step.

The judge's graph is gone before the decoder's is walked (`reward/pixel_gradient.py`), and the decoder's before the
generator's. Where pictures are decoded in parts the decoder's begins after the judge's is gone, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rewarddance.alignment.safeguards import velocity_mse
from rewarddance.alignment.train import Trainable
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.memory import memory_for
from rewarddance.types import PixelBatch

SHORT = "the decoder (VAE)", "Lower refl.decode_batch, or add decoder to refl.checkpointing."
"""What is said where the decoder runs out of memory."""

T = TypeVar("T")


def decoder_vjp(
    decode: Callable[[Tensor], PixelBatch],
    x_0: Tensor,
    ask: Callable[[PixelBatch], T],
    at_once: int,
    decoding: Callable[[], AbstractContextManager[None]] = nullcontext,
    may_wait: bool = True,
) -> tuple[T, Tensor]:
    """What `ask` answers for the decoded latents x_0 [B, ...], and d loss / d x_0 [B, ...] of its loss.

    The pictures are handed to `ask` as a leaf. Where all are decoded at once their graph waits for the gradient that it
    left on them. Else they are decoded without one, and afterwards again, `at_once` at a time, to send the gradient
    further. Exact: samples do not meet in a decoder.
    decoding: a block around each decoding, in which the decoder is there (`PipelineGenerator.decoding`). may_wait: may
    the decoder stay there while `ask` answers?
    """
    if may_wait and at_once >= len(x_0):
        return _decoded_once(decode, x_0, ask, decoding)
    parts = on_device(torch.arange(len(x_0)), x_0.device).split(at_once)
    with torch.no_grad(), memory_for(*SHORT), decoding():
        pixels = torch.cat([decode(x_0[rows]) for rows in parts])
    pixels.requires_grad_()
    with torch.enable_grad():
        answer = ask(pixels)
        assert pixels.grad is not None, "no loss was sent back through the pictures"
        gradients = []
        with memory_for(*SHORT), decoding():
            for rows in parts:
                latents = x_0[rows].detach().requires_grad_()
                gradients += torch.autograd.grad(decode(latents), latents, pixels.grad[rows])
    return answer, torch.cat(gradients)


def _decoded_once(
    decode: Callable[[Tensor], PixelBatch],
    x_0: Tensor,
    ask: Callable[[PixelBatch], T],
    decoding: Callable[[], AbstractContextManager[None]],
) -> tuple[T, Tensor]:
    """`decoder_vjp` of all pictures together."""
    with torch.enable_grad(), decoding():
        latents = x_0.detach().requires_grad_()
        with memory_for(*SHORT):
            decoded = decode(latents)
        pixels = decoded.detach().requires_grad_()
        answer = ask(pixels)
        assert pixels.grad is not None, "no loss was sent back through the pictures"
        with memory_for(*SHORT):
            (gradient,) = torch.autograd.grad(decoded, latents, pixels.grad)
    return answer, gradient


class Stage(NamedTuple):
    """One step of a part of the batch: x_t before it, the velocity, and the latent after it, or the clean one."""

    x_t: Tensor
    v: Tensor
    after: Tensor

    def backward(self, gradient: Tensor, held: Tensor | None) -> Tensor | None:
        """Send d loss / d after to the weights, and the gradient of `held`; returns d loss / d x_t, None for no leaf.

        held: the weighted distance of v from the base's. Its x_t is taken as given, as it is for the base: of that
        gradient nothing is in what is returned. So where x_t is a leaf the graph is walked twice.
        """
        if held is None:
            self.after.backward(gradient)
            return self.x_t.grad
        back = None
        if self.x_t.requires_grad:
            (back,) = torch.autograd.grad(self.after, self.x_t, gradient, retain_graph=True)
        torch.autograd.backward([self.after, held], [gradient, None])
        return back


class LastSteps:
    """The end of a rollout that the gradient goes through: one step and the x_0 it predicts, or the last K steps.

    conditions: of the batch's parts (rows of it). shares: of the parts in the batch. Each step has a graph of its own,
    which begins at a leaf, so that no more than one is walked at a time. They wait for the gradient where the batch is
    one part; of several parts each step is computed again with a graph when its turn comes.
    """

    def __init__(
        self, generator: Trainable, conditions: Sequence[Any], parts: Sequence[Tensor], first: int, length: int
    ) -> None:
        self.generator, self.conditions, self.parts = generator, conditions, parts
        self.shares = [len(rows) / sum(map(len, parts)) for rows in parts]
        self.steps = range(first, first + length)
        self.move = generator.advance if length > 1 else generator.predict_x0
        self.before: list[Tensor] = []
        self.kept: list[Stage] = []

    def forward(self, x_t: Tensor) -> Tensor:
        """x_0 [B, ...] from x_t [B, ...], both without graph."""
        waits = len(self.parts) == 1
        for number in range(len(self.steps)):
            self.before.append(x_t)
            with torch.set_grad_enabled(waits):
                stages = [self._stage(number, part) for part in range(len(self.parts))]
            x_t = torch.cat([stage.after.detach() for stage in stages])
            self.kept += stages if waits else []
        return x_t

    def replace_parts(
        self, parts: Sequence[Tensor], conditions: Sequence[Any], shares: Sequence[float], without: Tensor
    ) -> None:
        """Go back through other parts than forward; what `without` [B] marks may not be finite, and becomes zero."""
        self.parts, self.conditions, self.shares, self.kept = parts, conditions, list(shares), []
        self.before = [
            x_t.masked_fill(without.to(x_t.device).view(-1, *[1] * (x_t.ndim - 1)), 0) for x_t in self.before
        ]

    def backward(self, gradient: Tensor, weight: float | None) -> float | None:
        """Send d loss / d x_0 [B, ...] to the weights, and that of weight times the velocity's distance to the base's.

        Returns the distance: its mean over the steps, at latents that are taken as given, for the network and the base
        alike. weight: None where nobody wants the distance; then the base is not asked.
        """
        distances = []
        for part, rows in enumerate(self.parts):
            to_go = gradient[on_device(rows, gradient.device)]
            for number in reversed(range(len(self.steps))):
                stage = self.kept.pop() if self.kept else self._stage(number, part)
                far = None
                if weight is not None:
                    share = self.shares[part] / len(self.steps)
                    far = self._distance(stage.x_t, stage.v, self.steps[number], part) * share
                    distances.append(far.detach())
                back = stage.backward(to_go, weight * far if weight and far is not None else None)
                if number:
                    assert back is not None, "the step does not depend on the latent before it"
                    to_go = back
        return torch.stack(distances).sum().item() if distances else None

    def _distance(self, x_t: Tensor, v: Tensor, step: int, part: int) -> Tensor:
        """Of a prediction from the base's at the same latents."""
        with self.generator.as_before_training(), torch.no_grad():
            v_base = self.generator.predict(x_t, step, self.conditions[part])
        return velocity_mse(v, v_base)

    def _stage(self, number: int, part: int) -> Stage:
        x_t = self.before[number][on_device(self.parts[part], self.before[number].device)]
        if number:  # nothing is sent on to what came before the first
            x_t.requires_grad_()
        v = self.generator.predict(x_t, self.steps[number], self.conditions[part])
        return Stage(x_t, v, self.move(x_t, v, self.steps[number]))
