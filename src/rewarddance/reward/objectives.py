"""Losses of reward models, each a pure function of tensors."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
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


def pairwise_cross_entropy(
    forward: Float[Tensor, " B"],
    backward: Float[Tensor, " B"],
    share: Float[Tensor, " B"],
    difference_weight: float,
) -> Float[Tensor, ""]:
    """(1 - w) both orders' cross-entropy + w CE((forward - backward) / 2): the answers, and their difference.

    Both have the same optimum. The difference is free of what the model says to both orders alike: a base that begins
    by saying no to everything otherwise spends its first steps on that, and can forget what it sees (docs/lab_log.md).
    w = 0 is the paper's objective (section 3); the difference is ours. Arguments as in `both_orders_cross_entropy`.
    """
    answers = both_orders_cross_entropy(forward, backward, share)
    return (1 - difference_weight) * answers + difference_weight * answer_cross_entropy((forward - backward) / 2, share)


def bradley_terry(margin: Float[Tensor, " B"], share: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """- mean( s log sigma(m) + (1 - s) log sigma(-m) ), m = r(second) - r(first): P(second wins) is sigma(m).

    margin [B]: difference of two rewards. share [B] in [0, 1]: votes that the second is better; 0.5 is a tie, half a
    win for each. Source: Bradley and Terry (1952); paper, Table 7's regressive baseline; soft labels are ours.
    """
    return F.binary_cross_entropy_with_logits(margin, share)


def win_tie_bradley_terry(
    margin: Float[Tensor, " B"], share: Float[Tensor, " B"], threshold: float
) -> Float[Tensor, ""]:
    """- mean( w log P(win) + t log P(tie) + l log P(loss) ) under Bradley-Terry with ties, theta = exp(threshold) > 1.

    P(win) = sigma(m - threshold), P(loss) = sigma(-m - threshold), P(tie) = (theta^2 - 1) P(win) P(loss): the three sum
    to one. margin, share [B] as in `bradley_terry`. A share of 0.5 is a tie, 0 and 1 a clear vote; between them
    t = 1 - |2s - 1| and the rest is won or lost, the fewest ties that give the share. That reading is ours.
    Source: Rao and Kupper (1967), as in VideoAlign (2501.13918); win-tie pairs after SoliReward (2512.22170).
    """
    win, loss = F.logsigmoid(margin - threshold), F.logsigmoid(-margin - threshold)
    tie = math.log(math.expm1(2 * threshold)) + win + loss
    decided = 2 * share - 1
    return -(decided.relu() * win + (-decided).relu() * loss + (1 - decided.abs()) * tie).mean()


def reason_cross_entropy(logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """- mean log P(token): the reasons' autoregressive cross-entropy over all of their N tokens, in nats a token.

    logits [N, V]: of the whole vocabulary at each reason token's place. tokens [N]: the right ones. 0 where N is 0.
    Source: paper, section 3: predict yes or no, then the reason.
    """
    return F.cross_entropy(logits, tokens) if len(tokens) else logits.sum()
