"""Several rewards in one alignment: each is normalised by itself, so that the scale of none decides.

Policy gradients add up normalised advantages (`group_rewards.combine`), ReFL gradients in pixels (`blend`). Where one
verdict is needed, such as for the choice of references, it is that of `JointReward`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.alignment.group_rewards import Reward
from rewarddance.protocols import RewardModel, judging, needs_reference
from rewarddance.reward.averages import mean_probability
from rewarddance.runtime.process_group import gather_objects
from rewarddance.types import Question, Verdict


class JointReward:
    """What several rewards say together: a RewardModel whose P(yes) is the weighted mean of theirs.

    A probability is bounded, so a loud reward outweighs a quiet one by no more than its weight. rewards: at least one
    has a weight above 0; those of weight 0 are not asked.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = tuple(rewards)
        self._heard = [reward for reward in rewards if reward.weight]
        self.needs_reference = any(needs_reference(reward.judge) for reward in self._heard)
        self.needs_all_processes = any(getattr(reward.judge, "needs_all_processes", False) for reward in self._heard)
        self._in_step = False

    def __repr__(self) -> str:
        return " and ".join(f"{reward.name} ({reward.weight:g} x {reward.judge!r})" for reward in self.rewards)

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], on the CPU; a reward that needs no reference answers by the difference of two scores.

        Raises as the first reward that fails, when the others were asked: several processes ask them in step.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        if self._in_step:
            gather_objects(True)
        margins, error = list[Tensor](), None
        for reward in self._heard:
            with judging(reward.judge):
                try:
                    margins += [reward.judge(questions).margin.float().cpu()] if error is None else []
                except Exception as fault:
                    error = fault
        if error is not None:
            raise error
        stacked = torch.stack(margins)
        return Verdict(mean_probability(stacked, stacked.new_tensor([reward.weight for reward in self._heard])))

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `judging`. Where a reward is sharded, a process that is done goes along in each reward as often as
        another one still asks: were it to wait in one of them, the others would wait for it in the next."""
        if not self.needs_all_processes or self._in_step:
            with ExitStack() as stack:
                for reward in self._heard if not self._in_step else ():
                    stack.enter_context(judging(reward.judge))
                yield
            return
        self._in_step = serves = True
        try:
            yield
        except BaseException as error:
            serves = isinstance(error, Exception)
            raise
        finally:
            self._in_step = False
            while serves and any(gather_objects(False)):
                for reward in self._heard:
                    with judging(reward.judge):
                        pass


def rewards_of(judge: RewardModel) -> tuple[Reward, ...]:
    """The rewards that a joint one is made of; any other is one by itself."""
    return judge.rewards if isinstance(judge, JointReward) else (Reward(judge, "references"),)


def joint_judge(rewards: Sequence[Reward]) -> RewardModel:
    """The one reward, or what several say together."""
    return rewards[0].judge if len(rewards) == 1 else JointReward(rewards)


def blend(
    gradients: Sequence[Float[Tensor, "B ..."]], sizes: Sequence[float], weights: Sequence[float]
) -> Float[Tensor, "B ..."]:
    """s sum_k w_k g_k / n_k / sum_k w_k, with s = sum_k w_k n_k / sum_k w_k: rewards' gradients, each by its own size.

    sizes: n_k, the mean L2 norm over those of the step's samples that the reward pulls at, 0 where it pulls at none.
    s brings back the size that one reward's gradient has beside the other terms of the loss, so that rewards that are
    all the same give the gradient of one. It is over the rewards that pull.
    """
    pulling = [k for k, size in enumerate(sizes) if size > 0]
    of_pulling = sum(weights[k] for k in pulling)
    if not of_pulling:
        return torch.zeros_like(gradients[0])
    scale = sum(weights[k] * sizes[k] for k in pulling) / of_pulling
    parts = [scale * weights[k] / (sum(weights) * sizes[k]) * gradients[k] for k in pulling]
    return sum(parts[1:], start=parts[0])


def mean_size(norms: Float[Tensor, " B"]) -> float:
    """The mean of the norms that are not 0; 0 where all are."""
    return (norms.sum() / (norms > 0).sum().clamp_min(1)).item()


def pair_cosines(vectors: Sequence[Float[Tensor, "n ..."]]) -> Float[Tensor, "n pairs"]:
    """The cosine of each two rewards' vectors, NaN where one of the two is 0: below 0 they pull apart."""
    unit = []
    for vector in vectors:
        flat = vector.flatten(1).float()
        norm = flat.norm(dim=1, keepdim=True)
        unit.append(torch.where(norm > 0, flat / norm, torch.nan))
    return torch.stack([(a * b).sum(1) for a, b in itertools.combinations(unit, 2)], 1)


def mean_cosine(cosines: Float[Tensor, "n pairs"]) -> float:
    """The mean of `pair_cosines` where there are any, else 0."""
    return (cosines.nansum() / (~cosines.isnan()).sum().clamp_min(1)).item()
