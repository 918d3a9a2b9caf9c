"""A linear reward on the hidden states of a frozen judge, fitted to its optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.types import Preference, Question

RIDGES = (3.0, 10.0, 30.0, 100.0)
"""Strengths of the ridge that are tried, on features of unit deviation."""
_FOLDS, _STEPS = 4, 12


def hidden_states(base: str, pairs: Sequence[Preference], at_once: int = 64) -> np.ndarray:
    """The hidden state of b minus that of a [n, D], where a regressive reward on this base has its head."""
    judge: Any = build_reward(base, RewardConfig(kind="regressive", instruction="t2i-brief")).freeze()
    states: list[torch.Tensor] = []
    head = judge.model.reward_head
    handle = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].detach().float()))
    try:
        with torch.no_grad():
            for start in range(0, len(pairs), at_once):
                batch = pairs[start : start + at_once]
                shown = [
                    picture for pair in batch for picture in ((pair.prompt, pair.first), (pair.prompt, pair.second))
                ]
                judge.scores([Question(prompt, picture) for prompt, picture in shown])
    finally:
        handle.remove()
    every = torch.cat(states).double().numpy()
    return every[1::2] - every[::2]


def fit_head(difference: np.ndarray, share: np.ndarray) -> np.ndarray:
    """w [D] that maximises the votes' likelihood under P(b better) = sigmoid(w . difference) (Bradley-Terry).

    difference [n, D], share [n]. With a ridge that predicts held-out votes best, over folds.
    """
    fold = np.arange(len(share)) % _FOLDS
    losses = []
    for ridge in RIDGES:
        loss = 0.0
        for number in range(_FOLDS):
            w = _newton(difference[fold != number], share[fold != number], ridge)
            margin, held = difference[fold == number] @ w, share[fold == number]
            loss += float((np.logaddexp(0, margin) - held * margin).sum())
        losses.append(loss)
    return _newton(difference, share, RIDGES[int(np.argmin(losses))])


def _newton(difference: np.ndarray, share: np.ndarray, ridge: float) -> np.ndarray:
    w = np.zeros(difference.shape[1])
    for _ in range(_STEPS):
        p = expit(difference @ w)
        slope = difference.T @ (p - share) + ridge * w
        curvature = (difference * (p * (1 - p))[:, None]).T @ difference + ridge * np.eye(len(w))
        step = np.linalg.solve(curvature, slope)
        w = w - step
        if np.abs(step).max() < 1e-6:
            break
    return w
