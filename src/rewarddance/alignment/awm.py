"""AWM, advantage weighted matching (2509.25050): a policy gradient with the matching loss for a log-probability."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.flow_grpo import surrogate
from rewarddance.alignment.forward_process import ClippedRatioRecipe, Learned

WEIGHTS = {"uniform": 0, "t": 1, "t^2": 2}
"""The powers of the noise level that a sample's matching loss is weighted with."""


def matching_log_prob(errors: Float[Tensor, " n"], sigma: float, weighting: str = "uniform") -> Float[Tensor, " n"]:
    """- w(t) || v - (eps - x_0) ||^2 (2509.25050). errors: the squares, the mean over a sample's values."""
    return -(sigma ** WEIGHTS[weighting]) * errors


class AwmRecipe(ClippedRatioRecipe):
    """How AWM runs (and `ForwardRecipe`). Defaults are ours where they are not the authors'.

    The loss is Flow-GRPO's clipped surrogate (`flow_grpo.surrogate`) of the matching loss's change since sampling.

    The authors' configurations also hold the network to a moving average of itself, and take a clip of 1 and a robust
    error; none of these is here.

    ema_decay: by default the weights themselves sample, and are what is delivered.
    clip_range: of the ratio of the matching losses' exponentials.
    weighting: of the matching loss at noise level t: 1, t or t^2.
    """

    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    spread: Literal["prompt", "global"] = "global"
    clip_range: float = Field(default=1e-4, gt=0)
    weighting: Literal["uniform", "t", "t^2"] = "uniform"

    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        new = matching_log_prob(learned.errors(learned.x_0_hat), learned.sigma, self.weighting)
        old = new.detach()
        if learned.x_0_old is not None:
            old = matching_log_prob(learned.errors(learned.x_0_old), learned.sigma, self.weighting)
        return surrogate(new, old, learned.advantage, self.clip_range)
