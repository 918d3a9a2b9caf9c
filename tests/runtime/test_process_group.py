"""What several processes do together; one process by itself waits for nobody."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from several import in_processes

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.reward.parallel import SharedJudge, by_picture
from rewarddance.runtime.checkpoint import newest_complete, replacing
from rewarddance.runtime.process_group import (
    all_gather,
    barrier,
    gather_objects,
    init_process_group,
    is_main_process,
    local_shard,
    main_process_first,
    mean_over_processes,
    one_process_at_a_time,
    rank,
    sum_over_processes,
    world_size,
)
from rewarddance.types import Question, Verdict


def test_a_process_by_itself_is_the_first_of_one():
    with init_process_group(), main_process_first(), one_process_at_a_time():
        barrier()
        assert (rank(), world_size(), is_main_process()) == (0, 1, True)
        assert sum_over_processes(torch.tensor([2.5])).tolist() == [2.5]
        rows = torch.arange(5)
        assert local_shard(rows, parts=2) is rows is all_gather(rows, parts=2)
        assert (mean_over_processes({"a": 0.1, "n": 3}), gather_objects("a")) == ({"a": 0.1, "n": 3}, ["a"])


def test_processes_know_their_number_and_add_up():
    def work() -> tuple:
        own = torch.tensor([rank(), 1])
        return rank(), world_size(), is_main_process(), sum_over_processes(own).tolist(), own.tolist()

    assert in_processes(2, work) == [(0, 2, True, [1, 2], [0, 1]), (1, 2, False, [1, 2], [1, 1])]


def test_processes_that_see_different_checkpoints_do_not_go_on_apart(tmp_path):
    def work() -> str:
        with replacing(tmp_path / str(rank()) / f"checkpoint-{rank() + 1}"):
            pass
        with pytest.raises(InputError, match="at different steps: 1, 2") as caught:
            newest_complete(tmp_path / str(rank()))
        assert newest_complete(tmp_path / str(rank()), at_most=0) is None
        return caught.value.remedy

    assert in_processes(2, work) == ["Let output be one folder that all of them see."] * 2


def test_each_has_its_share_of_every_part_and_together_they_are_the_whole():
    def work() -> tuple:
        rows = torch.arange(24).view(12, 2)
        mine = local_shard(rows, parts=3)
        assert torch.equal(all_gather(mine, parts=3), rows) and torch.equal(all_gather(local_shard(rows)), rows)
        assert local_shard(rows.tolist(), parts=3) == mine.tolist()
        return (
            local_shard([*range(12)], parts=3),
            gather_objects(rank()),
            mean_over_processes({"a": 1.0 + rank(), "n": 3}),
        )

    means = {"a": 1.5, "n": 3}
    assert in_processes(2, work) == [([0, 1, 4, 5, 8, 9], [0, 1], means), ([2, 3, 6, 7, 10, 11], [0, 1], means)]


def test_the_first_goes_ahead_and_each_has_its_turn(tmp_path):
    def work(log: Path) -> None:
        with main_process_first():
            time.sleep(0.1 if is_main_process() else 0)
            with log.open("a") as file:
                file.write(f"ahead {rank()}\n")
        with one_process_at_a_time():
            for when in ("begins", "ends"):
                with log.open("a") as file:
                    file.write(f"{rank()} {when}\n")
                time.sleep(0.05)

    in_processes(2, work, tmp_path / "log")
    expected = ["ahead 0", "ahead 1", "0 begins", "0 ends", "1 begins", "1 ends"]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "ahead 0" and [line for line in lines if "ahead" not in line] == expected[2:]


def test_where_one_process_fails_the_others_say_so_in_words():
    def work() -> str:
        if is_main_process():
            return "left"
        try:
            barrier()
        except RewardDanceError as error:
            return error.what
        return "waited for ever"

    assert in_processes(2, work) == ["left", "another process of this run has stopped."]


@pytest.mark.parametrize("failing", [[0], [1], [0, 1]])
def test_of_processes_that_fail_one_speaks_and_the_others_leave_without_a_word(failing):
    def work() -> str:
        try:
            with init_process_group():
                barrier()
                if rank() in failing:
                    raise InputError(f"picture {rank()} is broken.")
                all_gather(torch.zeros(2))
        except (RewardDanceError, SystemExit) as error:
            return str(error)
        return "waited for nobody"

    said = in_processes(2, work, join=False)
    assert sorted(said) in [["2", f"picture {number} is broken."] for number in failing]


def test_where_a_process_is_gone_without_a_word_another_says_so():
    def work() -> str:
        try:
            with init_process_group():
                barrier()
                if is_main_process():
                    return "left"
                barrier()
        except RewardDanceError as error:
            return error.what
        return "waited for nobody"

    assert in_processes(2, work, join=False) == ["left", "another process of this run has stopped."]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_would_shard_by_itself_is_refused(monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match="accelerate launch was told to use") as caught, init_process_group():
        raise AssertionError("it was taken up")
    assert "judge.sharded=true" in caught.value.remedy


class Brightness:
    """A judge with a known answer: the mean of the candidate."""

    needs_reference = False

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, questions):
        self.asked.append(len(questions))
        return Verdict(torch.stack([q.candidate.mean() for q in questions]))


@pytest.mark.parametrize("n", [1, 5])
def test_processes_share_questions_and_all_have_all_answers(n):
    pictures = [torch.full((1, 3, 4, 4), i / 10) for i in range(2 * n)]
    questions = [Question("p", pictures[2 * i], pictures[2 * i + 1]) for i in range(n)]
    questions += [Question("p", q.reference, q.candidate) for q in questions]

    def work() -> tuple[list[float], list[int]]:
        judge = Brightness()
        return SharedJudge(judge)(questions).margin.tolist(), judge.asked

    found = in_processes(2, work)
    right = [float(q.candidate.mean()) for q in questions]
    assert all(margin == pytest.approx(right) for margin, _ in found)
    assert [asked for _, asked in found] == [[n], [n]]


def test_questions_on_the_same_pictures_stay_together():
    a, b, c, d = (torch.zeros(1, 3, 2, 2) for _ in range(4))
    questions = [Question("p", a, b), Question("p", c, d), Question("p", b, a), Question("p", d, c), Question("p", c)]
    assert by_picture(questions) == [0, 2, 1, 3, 4]
