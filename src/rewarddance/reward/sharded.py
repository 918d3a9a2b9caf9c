"""A judge in pieces: frozen, its weights split over the processes of a run, and gathered one layer at a time.

For judges larger than a device. torch's fully_shard (FSDP2) does the gathering, which all processes must take part in.
So a verdict is a turn of all of them, in which each asks its own questions, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from rewarddance.errors import InputError, RewardDanceError, first_line
from rewarddance.reward.criteria import CriteriaReward
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.judge import Judge, LossNormalizer, checked
from rewarddance.reward.loading import load_reward
from rewarddance.reward.lockstep import Lockstep
from rewarddance.reward.remote.addresses import is_address
from rewarddance.runtime import process_group
from rewarddance.runtime.config import Precision
from rewarddance.runtime.devices import find_dtype
from rewarddance.runtime.memory import is_out_of_memory
from rewarddance.runtime.sharding import device_mesh, outer_blocks
from rewarddance.types import Preference, Question, Verdict

PICTURES = "candidate", "reference"


class ShardedJudge(Judge):
    """A frozen judge of which each process holds a share of every weight. A RewardModel; made by `load_sharded`.

    All processes must call it alike, with as many questions each as they like; or any number of times, within
    `together`. The gradient in pixels is taken within the call, so that no graph of the judge outlives it.

    judge: reads with a vision-language model (`vlm`), and is sharded in place.
    """

    needs_all_processes = True

    def __init__(self, judge: Judge, mesh: Any) -> None:
        """mesh: of the processes, on the type of device that they compute on. Raises InputError for a judge that is
        read question by question, or thinks before it answers: nobody knows how many forwards that takes."""
        self.judge, self.model, self.config = judge, judge.model, judge.config
        self.name_or_path, self.needs_reference = judge.name_or_path, judge.needs_reference
        self.vlm: Any = getattr(judge, "vlm", None)
        if not _can_split(judge):
            raise InputError(
                f"the judge {judge.name_or_path!r} cannot be split over processes, which would have to read in step: "
                "it is no InternVL or Qwen-VL, is quantised, or thinks before it answers.",
                "Leave judge_sharded out, or choose another judge.",
            )
        self._root = _Root(self.model)
        for module in (*outer_blocks(self._root), self._root):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        self.vlm.fixed_budget, self._inside, self._is_broken = True, False, False

    def __repr__(self) -> str:
        return f"{self.judge!r} in pieces over {process_group.world_size()} processes"

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], with a graph where a question's pixels require one, in a turn of all processes.

        Raises as any judge, after which the other processes go on; and ProcessStopped where the turn itself failed.
        """
        if self.vlm.is_checking:  # nothing is read, so nobody else is needed
            return self.judge(questions)
        with self.together():
            if not questions:
                return Verdict(torch.zeros(0))
            self._check(questions)
            return checked(self._margins_of_turn(questions), questions)

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        return self(questions).margin

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block this process may ask any number of times. All processes enter it, and leave it together:
        one that is done goes along with the turns of the others, also where the block fails in it."""
        if self._inside:
            yield
            return
        self._inside, serves = True, True
        try:
            yield
        except BaseException as error:
            serves = isinstance(error, Exception)
            raise
        finally:
            self._inside = False
            while serves and not self._is_broken and self._turn([], []) is not None:
                pass

    def _check(self, questions: Sequence[Question]) -> None:
        """Raises what is wrong with the questions themselves, before any other process is kept waiting."""
        self.vlm.is_checking = True
        try:
            self.judge.margin(questions)
        finally:
            self.vlm.is_checking = False

    def _margins_of_turn(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """The margins of a turn, in the graph of those pixels that require one."""
        detached, places, leaves = list(questions), [], []
        for row, question in enumerate(questions):
            for name in PICTURES:
                pixels = getattr(question, name)
                if pixels is not None and pixels.requires_grad and torch.is_grad_enabled():
                    places.append((row, name))
                    leaves.append(pixels.detach().requires_grad_())
                    detached[row] = replace(detached[row], **{name: leaves[-1]})
            image = question.prompt.image
            if image is not None and image.requires_grad and torch.is_grad_enabled():
                raise InputError("a judge in pieces gives no gradient in a prompt's picture.", "Detach it.")
        turn = self._turn(detached, leaves)
        assert turn is not None, "this process asked"
        if not leaves:
            return turn.margin
        rows = [row for row, _ in places]
        pixels = [getattr(questions[row], name) for row, name in places]
        return _Margins.apply(turn.margin, rows, turn.gradients, *pixels)  # type: ignore[return-value]

    def _turn(self, questions: Sequence[Question], leaves: list[Tensor]) -> _Turn | None:
        """One turn of all processes; None where none of them asks. leaves: the pixels that want a gradient."""
        step = Lockstep()
        asks, graph = step.any_process(bool(questions), bool(leaves))
        if not asks:
            return None
        if graph and questions and not leaves:  # the others go back through their passes, and so must this process
            candidates = [q.candidate.detach().clone().requires_grad_() for q in questions]
            questions = [replace(q, candidate=pixels) for q, pixels in zip(questions, candidates, strict=True)]
            leaves = candidates
        self.vlm.lockstep = step
        try:
            with torch.set_grad_enabled(graph):
                margin = self._root(lambda: self._passes(step, questions, graph))[0]
            gradients = _backward(margin, step, leaves) if graph else ()
        except BaseException as error:
            self._is_broken = True
            if not isinstance(error, Exception) or is_out_of_memory(error) or is_out_of_memory(error.__cause__):
                raise
            raise OutOfStep(error) from error
        finally:
            self.vlm.lockstep = None
        return _Turn(margin.detach(), gradients)

    def _passes(self, step: Lockstep, questions: Sequence[Question], graph: bool) -> tuple[Tensor, ...]:
        """This process's margins, then blanks until all others have theirs. What all graphs end in."""
        margin = torch.zeros(0, device=self.vlm.device)
        if questions:
            margin = self.judge.margin(questions) if graph else self.judge._in_batches(questions)
        while step.any_process(False, False)[0]:
            self.vlm.states_in_lockstep([])
        return margin.clone(), *step.ends

    def explain(self, questions: Sequence[Question]) -> Verdict:
        raise InputError("a judge in pieces gives no reasons.", "Leave judge_sharded out, or leave out explain.")

    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        raise InputError("a judge that was split is asked, not trained.", "Train it with judge.sharded.")

    def save(self, folder: Path) -> None:
        raise InputError("a judge in pieces is not saved.", f"Copy {self.name_or_path}, which it came from.")


class OutOfStep(process_group.ProcessStopped):
    """A turn failed in this process: the others now wait for it in vain, so that the run must end."""

    def __init__(self, error: BaseException) -> None:
        RewardDanceError.__init__(
            self,
            f"the judge in pieces failed while all processes asked it: {first_line(error)}.",
            "Start again; the same command goes on.",
        )


class _Turn(NamedTuple):
    """margin [B], of this process's questions. gradients: d (sum of the margins) / d leaf, one each."""

    margin: Float[Tensor, " B"]
    gradients: tuple[Tensor, ...]


class _Root(nn.Module):
    """What FSDP gathers around: a forward during which the judge is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return call()


class _Margins(torch.autograd.Function):
    """Margins whose derivatives by pixels are known already: each pixel tensor belongs to one question."""

    @staticmethod
    def forward(
        ctx: Any, margin: Tensor, rows: list[int], gradients: tuple[Tensor, ...], *pixels: Tensor
    ) -> Float[Tensor, " B"]:
        ctx.rows = rows
        ctx.save_for_backward(*gradients)
        return margin.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        values = zip(ctx.rows, ctx.saved_tensors, strict=True)
        return None, None, None, *(grad[row].to(gradient.device, gradient.dtype) * gradient for row, gradient in values)


def _backward(margin: Tensor, step: Lockstep, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Through the graphs of a turn, those of blanks included: d (sum of the margins) / d leaf."""
    ends = [end for end in (margin, *step.ends) if end.requires_grad]
    seeds = [torch.ones_like(end) if end is margin else torch.zeros_like(end) for end in ends]
    return torch.autograd.grad(ends, [*leaves, *step.leaves], seeds, materialize_grads=True)[: len(leaves)]


def load_sharded(
    name: str | Path,
    device: str,
    dtype: torch.dtype | Precision = "auto",
    *,
    or_whole: bool = False,
    **changes: object,
) -> Any:
    """`load_reward`, split over the processes of the run, which all call this alike; one after the other reads it all.

    device: the type that they compute on. or_whole: what cannot be split is whole on each of them; else that raises
    InputError (see `ShardedJudge`).
    """
    name = str(name)
    if not or_whole and (is_address(name) or is_factory(name)):
        raise InputError(f"the reward {name!r} has no weights here to be split.", "Leave judge_sharded out.")
    if is_address(name) or is_factory(name):
        return load_reward(name, device, dtype, **changes)
    mesh, precision = device_mesh(torch.device(device).type), find_dtype(dtype, device)
    with process_group.one_process_at_a_time():
        judge = load_reward(name, "cpu", precision, **changes)
        if or_whole and not _can_split(judge):
            judge.model.to(device)
            return judge
        if isinstance(judge, CriteriaReward) and isinstance(judge.judge, Judge):
            return CriteriaReward(ShardedJudge(judge.judge, mesh), judge.asked, judge.average)
        return ShardedJudge(judge, mesh)


def _can_split(judge: Any) -> bool:
    """Is the judge read in forwards that processes can count, and are its weights numbers?"""
    vlm = getattr(judge, "vlm", None)
    if vlm is None or vlm.base_precision != "none":
        return False
    return vlm.family.caches_prefix and judge.config.reasoning != "before"
