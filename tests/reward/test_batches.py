"""A batch holds the same pairs and teaches the same, however it is shared."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest
import torch
from tiny import colour_preferences, judge_folder

from rewarddance.errors import InputError
from rewarddance.reward.batches import MicroBatch, MicroBatches, jittered, pinned
from rewarddance.reward.judge import LossNormalizer, RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.types import Preference


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    """Of different votes, with reasons of different lengths or none."""
    return [
        replace(pair, share=(i % 5) / 4, reason="it is red " * (i % 3), reason_swapped="it is not " * (i % 2))
        for i, pair in enumerate(colour_preferences(7))
    ]


def read(pairs: list[Preference], parts: int, count: int, steps: int = 5) -> list[list[int]]:
    """The numbers of the pairs that each step's batch holds in the end, in order."""
    number = {id(pair): i for i, pair in enumerate(pairs)}
    processes = [MicroBatches(pairs, 3, steps, 1, parts=parts, rank=rank, count=count) for rank in range(count)]
    found = []
    for step in range(steps):
        micro_batches = [process[step][part] for part in range(parts) for process in processes]
        assert all(micro_batch.step == step for micro_batch in micro_batches)
        found.append([number[id(pair)] for micro in micro_batches if micro.counts for pair in micro.pairs])
    return found


def test_an_epoch_goes_through_all_preferences_and_the_next_in_another_order(pairs):
    batches = read(pairs, 1, 1, steps=6)
    assert [len(batch) for batch in batches] == [3, 3, 1] * 2
    first, second = ([i for batch in half for i in batch] for half in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second


@pytest.mark.parametrize(("parts", "count"), [(2, 1), (1, 2), (3, 1), (2, 2), (1, 3)])
def test_a_batch_is_the_same_however_many_parts_and_processes_share_it(pairs, parts, count):
    assert read(pairs, parts, count) == read(pairs, 1, 1)


def test_where_no_pair_is_left_one_is_read_that_does_not_count(pairs):
    shares = [MicroBatches(pairs, 3, 5, 1, rank=rank, count=2)[2][0] for rank in range(2)]
    assert sorted(len(share.pairs) for share in shares) == [1, 1]
    assert sorted(share.counts for share in shares) == [False, True]


def test_a_pair_that_cannot_be_read_comes_as_the_error_that_says_so(pairs):
    class Files(list):
        broken = False

        def __getitem__(self, at):
            if self.broken:
                raise InputError("a.png cannot be read.", "Replace it.")
            return super().__getitem__(at)

    files = Files(pairs)
    micro_batches = MicroBatches(files, 3, 1, 1)
    files.broken = True
    found = micro_batches[0]
    assert isinstance(found, InputError) and (found.what, found.remedy) == ("a.png cannot be read.", "Replace it.")


def test_the_next_steps_pictures_are_read_while_a_step_is_taken(pairs):
    second = Event()

    class Files(list):
        def __getitem__(self, at):
            read.append(at)
            if len(read) > 3:
                second.set()
            return super().__getitem__(at)

    read: list[int] = []
    coming = MicroBatches(Files(pairs), 3, 3, 1).after(0, 0)
    first = next(coming)
    assert second.wait(20), "the second step is not read before it is asked for"
    assert [len(part.pairs) for part in first] == [3] and len(list(coming)) == 2


def test_a_picture_that_pairs_share_is_one_in_pinned_memory_too(pairs, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # which a machine without a GPU has not
    shown = replace(pairs[1], first=pairs[0].first, prompt=replace(pairs[1].prompt, image=pairs[0].second))
    (part,) = pinned([MicroBatch((pairs[0], shown), 0)])
    one, two = part.pairs
    assert one.first is two.first is not pairs[0].first and two.prompt.image is one.second
    assert torch.equal(two.second, pairs[1].second) and one.prompt is pairs[0].prompt


def test_in_parts_a_pairs_noise_depends_on_its_place_in_the_batch_alone(pairs):
    def noisy(low: int, high: int, seed: int = 1) -> list[torch.Tensor]:
        found = jittered(MicroBatch(tuple(pairs[low:high]), 3, low, is_whole_batch=False), 0.1, seed)
        return [pixels for pair in found.pairs for pixels in (pair.first, pair.second)]

    together, apart = noisy(0, 4), [*noisy(0, 1), *noisy(1, 4)]
    assert all(torch.equal(*both) for both in zip(together, apart, strict=True))
    assert not any(torch.equal(*both) for both in zip(together, noisy(0, 4, seed=2), strict=True))


CONFIGS = {
    "pairwise": RewardConfig(instruction="t2i-brief"),
    "reasons": RewardConfig(instruction="t2i", reasoning="after", reason_weight=0.7),
    "pointwise": RewardConfig(kind="pointwise", tie_threshold=0.3),
    "regressive": RewardConfig(kind="regressive"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_losses_of_a_batchs_parts_add_up_to_its_own(pairs, config):
    reward = build_reward(str(judge_folder()), config)
    if config.kind == "regressive":
        torch.nn.init.normal_(reward.model.reward_head.weight)
    whole = reward.loss_normalizer(pairs)
    assert whole.pairs == 7 and (whole.tokens > 0) == (config.reasoning == "after")
    with torch.no_grad():
        parts = [reward.loss(pairs[low:high], whole) for low, high in ((0, 1), (1, 3), (3, 7))]
        assert torch.stack(parts).sum().item() == pytest.approx(reward.loss(pairs).item(), rel=1e-5)
    of_parts = [reward.loss_normalizer(pairs[low:high]) for low, high in ((0, 1), (1, 3), (3, 7))]
    assert LossNormalizer(*map(sum, zip(*of_parts, strict=True))) == whole
