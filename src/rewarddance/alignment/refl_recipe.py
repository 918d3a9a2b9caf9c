"""ReFL's keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewarddance.alignment.group_rewards import Judging
from rewarddance.alignment.surrogate import Surrogate
from rewarddance.alignment.train import TrainRecipe
from rewarddance.errors import InputError
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.config import MOST, changed

CheckpointedPart = Literal["generator", "decoder", "judge"]


class ReflRecipe(TrainRecipe):
    """How ReFL runs (and `TrainRecipe`). The paper leaves all of this open; every default is ours.

    grad_step_range: range of the random step at which the gradient is taken, as shares of the schedule (0 pure noise,
        1 the last step).
    last_steps: with K > 1 the gradient goes through the last K steps of the sampler instead (DRaFT-K, 2309.17400), and
        grad_step_range is left alone.
    surrogate: what else stands for the picture in the gradient; a name of `PRESETS` or see `Surrogate`. Then
        grad_step_range and last_steps are left alone.
    loss, cap: see `refl_losses`.
    velocity_mse: weight of the distance to the base's velocity. With 0, and the alarm `distance` off, the base is not
        asked.
    reference_mse: weight of the denoising loss on the step's references, noised anew (`denoise`), or on a random
        reference_batch of them.
    jitter_copies: the reward is averaged over this many copies of each picture, each shifted by up to jitter_shift
        pixels and noised by jitter_noise.
    frames: of a video, one at random out of each of so many equal stretches is decoded and judged, and the same ones of
        the reference; by default all are, of which the judge reads those that its own `frames` says.
    judge_batch: pictures whose gradient is taken together.
    decode_batch: samples that go through the decoder together with a graph, by default all of the step's, once. With
        fewer all are decoded once more without a graph, which is not there while the judge is asked: less memory.
    gate: no gradient of samples on which a held-out judge disagrees.
    checkpointing: parts whose layers keep their inputs only and are computed again on the way back: less memory, more
        time, the same gradient.
    refresh_every: steps after which the references are made anew by the generator as it then is, by its average or by
        its current weights (refresh_from); by default those of the start stay.
    """

    grad_step_range: tuple[float, float] = (0.5, 1.0)
    last_steps: int = Field(default=1, ge=1)
    surrogate: Surrogate | None = None
    loss: Literal["linear", "hinge", "log", "margin"] = "hinge"
    cap: float = Field(default=0.9, gt=0, lt=1)
    velocity_mse: float = Field(default=0.1, ge=0)
    reference_mse: float = Field(default=0.0, ge=0)
    reference_batch: int | None = Field(default=None, ge=1)
    jitter_copies: int = Field(default=1, ge=1, le=MOST)
    jitter_shift: int = Field(default=0, ge=0)
    jitter_noise: float = Field(default=0.0, ge=0)
    frames: int | None = Field(default=None, ge=1)
    judge_batch: int = Field(default=16, ge=1)
    decode_batch: int | None = Field(default=None, ge=1)
    gate: bool = True
    checkpointing: tuple[CheckpointedPart, ...] = ()
    refresh_every: int | None = Field(default=None, ge=1)
    refresh_from: Literal["ema", "current"] = "ema"

    @model_validator(mode="after")
    def _steps_are_a_range(self) -> ReflRecipe:
        if not 0 <= self.grad_step_range[0] < self.grad_step_range[1] <= 1:
            raise ValueError("grad_step_range must be two rising shares between 0 and 1")
        if self.last_steps > 1 and changed(self, "grad_step_range"):
            raise ValueError("grad_step_range says nothing where last_steps is above 1; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_way_back(self) -> ReflRecipe:
        if self.surrogate is not None and (name := changed(self, "grad_step_range", "last_steps")):
            raise ValueError(f"{name} says nothing beside a surrogate; leave one of them out")
        return self

    @model_validator(mode="after")
    def _nothing_is_left_unused(self) -> ReflRecipe:
        if self.loss == "linear" and changed(self, "cap"):
            raise ValueError("cap says nothing with the loss linear; leave it out")
        if self.refresh_every is None and changed(self, "refresh_from"):
            raise ValueError("refresh_from is used with a refresh_every only")
        if not (self.jitter_shift or self.jitter_noise) and changed(self, "jitter_copies"):
            raise ValueError("jitter_copies are alike without jitter_shift or jitter_noise: set one, or leave it out")
        return self

    @model_validator(mode="after")
    def _references_are_enough(self) -> ReflRecipe:
        samples = self.prompts_per_step * self.group_size
        if self.reference_batch is not None and not self.reference_mse:
            raise ValueError("reference_batch is used with a reference_mse only")
        if self.reference_batch is not None and self.reference_batch > samples:
            raise ValueError(f"reference_batch is {self.reference_batch}, and a step has {samples} references")
        return self

    @property
    def asks_base(self) -> bool:
        """Is the distance from the base wanted, for the loss or for the alarm?"""
        return self.velocity_mse > 0 or "distance" not in self.alarms.off

    @property
    def copies(self) -> int:
        """How many pictures of each sample the judge is asked about, before any jitter."""
        return self.surrogate.copies if self.surrogate is not None else 1

    def check_processes(self, processes: int) -> None:
        """Raises InputError where the processes cannot share a step's samples, or the references that are denoised."""
        super().check_processes(processes)
        if self.reference_batch is not None and self.reference_batch % processes:
            raise InputError(
                f"{processes} processes cannot share {self.reference_batch} references equally (reference_batch).",
                f"Set it to a multiple of {processes}.",
            )

    def first_grad_steps(self, num_steps: int) -> tuple[int, int]:
        """The first and last step of a sampler of num_steps at which the gradient may begin.

        Raises InputError where last_steps are more than there are. With a surrogate all steps are part of it.
        """
        if self.surrogate is not None:
            self.surrogate.check(num_steps)
            return 0, 0
        if self.last_steps > num_steps:
            raise InputError(
                f"refl.last_steps is {self.last_steps}, and the generator takes {num_steps} steps.", "Lower it."
            )
        if self.last_steps > 1:
            return num_steps - self.last_steps, num_steps - self.last_steps
        low, high = (round(share * (num_steps - 1)) for share in self.grad_step_range)
        return low, high

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where the sampler has fewer steps, videos fewer frames or pictures fewer pixels than are
        wanted, or the judge gives no gradient, or is not told pictures from videos, or has no layers to checkpoint."""
        self.first_grad_steps(generator.num_steps)
        length = getattr(generator, "num_frames", None)
        if self.frames is not None and length is not None and self.frames > length:
            raise InputError(f"refl.frames is {self.frames}, and the videos have {length} frames.", "Lower it.")
        read = getattr(getattr(judge, "config", None), "frames", None)
        if self.frames is not None and read is not None and self.frames < read:
            raise InputError(
                f"refl.frames is {self.frames}, and {judge!r} reads {read} frames.",
                f"Raise it to {read}, or leave it out.",
            )
        sides = [side for side in (getattr(generator, "height", None), getattr(generator, "width", None)) if side]
        if sides and self.jitter_shift >= min(sides):
            raise InputError(
                f"refl.jitter_shift is {self.jitter_shift}, and the pictures have a side of {min(sides)} pixels.",
                "Lower it: a pixel or two are enough.",
            )
        if self.frames == 1 and (length or 1) > 1 and getattr(judge, "videos", True) is None:
            raise InputError(
                f"refl.frames is 1, and {judge!r} would take a video of one frame for a picture.",
                "Say in its options whether it is shown videos (videos: true) or pictures (videos: false).",
            )
        if "judge" in self.checkpointing and getattr(judge, "vlm", None) is None:
            raise InputError(
                f"refl.checkpointing names the judge, and {judge!r} has no layers that can be computed again.",
                "Leave judge out of checkpointing.",
            )
        if getattr(judge, "differentiable", None) is False:
            raise InputError(
                f"ReFL follows the reward's gradient in pixels, and {judge!r} gives none.",
                "Set algorithm to grpo or nft, or another that only asks it.",
            )

    def judging_of(self, judge: RewardModel) -> Judging:
        return "references"
