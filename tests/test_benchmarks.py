"""What benchmarks compare does the same on both sides."""

from __future__ import annotations

import torch
from tiny import judge_folder, pictures
from train_step import gradients

from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.types import Preference


def test_a_training_step_of_ours_has_the_gradients_of_two_padded_passes():
    config = RewardConfig(instruction="t2i-brief", difference_weight=0.0)
    judge = build_reward(str(judge_folder()), config)
    a, b, c, d = pictures(4)
    pairs = [Preference("a red circle", a, b, 1.0), Preference("two small blue crosses", c, d, 0.25)]
    theirs, ours = gradients(judge, "naive", pairs), gradients(judge, "ours", pairs)
    assert len(ours) == len(theirs) > 10
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) + 1e-7)
