"""What a server says of the reward that it asks."""

from __future__ import annotations

from tiny import judge_folder

from rewarddance.reward.function_reward import as_reward
from rewarddance.reward.loading import load_reward
from rewarddance.serve.judge import ServedJudge


class Mine:
    """A reward model of somebody else's, which reads what it likes."""

    needs_reference = False

    def __call__(self, questions):
        raise NotImplementedError


def test_metadata_is_wanted_by_all_but_our_own_judges():
    rewards = (Mine(), as_reward(lambda images, prompts, metadata: images), load_reward(str(judge_folder())))
    assert [ServedJudge(reward, "it", "mark").reads_metadata for reward in rewards] == [True, True, False]
