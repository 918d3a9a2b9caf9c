"""What the figures say against a judge, in sentences."""

from __future__ import annotations

from rewarddance.evaluation.findings import Evaluation
from rewarddance.report.evaluation_tables import title
from rewarddance.report.formatting import figure_text, number


def limits_of(found: Evaluation) -> list[str]:
    """A sentence for each fault that its interval bears out, test set by test set; the last one stands everywhere."""
    said = []
    for name, one in found.tests.items():
        where, right, fitted = f"On {title(name)}", one.accuracy, one.calibration.temperature
        if one.failed:
            said.append(f"{where} some pairs could not be judged and are in no figure: {one.failed}.")
        if not isinstance(right, str) and right.low <= 0.5:
            verdict = "it is wrong more often than right" if right.high < 0.5 else "it is not told apart from chance"
            said.append(f"{where} {verdict}: {figure_text(right)}.")
        if not isinstance(one.order, str) and one.order.consistent.high < 0.9:
            apart = number(1 - one.order.consistent.mean, digits=0)
            advice = 'ask it both ways (`load_reward(..., orders="both")`)'
            said.append(f"{where} it contradicts itself on {apart} of 100 pairs when they change places: {advice}.")
        if not isinstance(fitted, str) and fitted.gain.low > 0:
            way = "too bold" if fitted.value > 1 else "too timid"
            said.append(f"{where} its P(yes) is {way}: to read it as a share, divide margins by {fitted.value:.2f}.")
        likes = []
        for look, own in one.bias.looks.items():
            beyond = own.beyond_votes
            if not isinstance(beyond, str) and (beyond.low > 0 or beyond.high < 0):
                likes.append(f"{'more' if beyond.mean > 0 else 'less'} {look} ({figure_text(beyond, 1, 2, '+')})")
        if likes:
            said.append(f"{where} it likes, beyond what the votes do, {', '.join(likes)}.")
    said.append("What an optimiser would find against it (reward hacking) is not measured here.")
    return said
