"""Rewards elsewhere, asked about a step's first groups while the generator draws the others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rewarddance.alignment.failed_groups import Faults
from rewarddance.alignment.group_rewards import Answers, Reward, scores_apart
from rewarddance.alignment.references import ReadAhead
from rewarddance.protocols import is_elsewhere
from rewarddance.types import PixelBatch, Pixels, Prompt


class EarlyAnswers:
    """What rewards elsewhere (`is_elsewhere`) say of a step's groups; each is asked in a thread as soon as it is drawn.

    They are what the rewards would say afterwards, of the same samples. Other rewards are not asked here: what they
    compute would only compete with the generator. One thread asks, so no reward is asked twice at a time.

    prompts [P], references [P * G]: of this process's groups and their samples.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        prompts: Sequence[Prompt],
        references: ReadAhead | None,
        group_size: int,
    ) -> None:
        self.prompts, self._read, self.group_size = prompts, references, group_size
        self._rewards = {number: reward for number, reward in enumerate(rewards) if is_elsewhere(reward.judge)}
        self._thread = ThreadPoolExecutor(1)
        self._asked: dict[int, list[Future[Answers]]] = {}
        self.begin()

    @property
    def references(self) -> list[list[Pixels]] | None:
        """The references' pictures [P][G], waited for."""
        if self._read is None:
            return None
        pictures = self._read.pictures()
        return [pictures[at : at + self.group_size] for at in range(0, len(pictures), self.group_size)]

    def begin(self) -> None:
        """The step's samples are drawn, or drawn again."""
        for futures in self._asked.values():
            for future in futures:
                future.cancel()
        self._asked = {number: [] for number in self._rewards}
        self._unfinished: list[Pixels] = []
        self._next_group = 0

    def drawn(self, pixels: PixelBatch) -> None:
        """Ask about the groups that these samples, the next ones of the step, complete."""
        if not self._rewards:
            return
        self._unfinished += pixels
        groups: dict[int, Sequence[Pixels]] = {}
        while len(self._unfinished) >= self.group_size:
            groups[self._next_group] = self._unfinished[: self.group_size]
            self._unfinished = self._unfinished[self.group_size :]
            self._next_group += 1
        for number, reward in self._rewards.items() if groups else ():
            self._asked[number].append(self._thread.submit(scores_apart, reward, self.prompts, groups, self.references))

    def of(self, number: int) -> Answers | None:
        """What the reward of this number said, waited for; None of one that is not asked here."""
        if number not in self._asked:
            return None
        scores, faults = [], Faults()
        for future in self._asked[number]:
            answers = future.result()
            scores += answers.scores
            faults |= answers.faults
        return Answers(scores, faults)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
