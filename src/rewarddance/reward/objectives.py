"""Losses of reward models, each a pure function of tensors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def answer_cross_entropy(margin: Float[Tensor, " B"], share: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """- mean( s log P(yes) + (1 - s) log P(no) ): the answer token's cross-entropy, soft where votes were divided.

    margin [B]: logit of yes minus logit of no. share [B] in [0, 1]: votes for yes, 0.5 a tie.
    Source: paper, section 3 (text-only objective); soft labels are ours.
    """
    return F.binary_cross_entropy_with_logits(margin, share)


def both_orders_cross_entropy(
    forward: Float[Tensor, " B"], backward: Float[Tensor, " B"], share: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Half the answer's cross-entropy with the second picture as candidate, half with the first and the label flipped.

    forward, backward [B]: margins of the two orders. share [B]: votes that the second picture is better.
    """
    return (answer_cross_entropy(forward, share) + answer_cross_entropy(backward, 1 - share)) / 2
