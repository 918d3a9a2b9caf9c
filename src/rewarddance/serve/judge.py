"""The judge that is served: what it is called, what can be asked of it, and its references."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rewarddance.errors import InputError, shown
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.instructions import is_ours
from rewarddance.reward.judge import USED_BY, Judge
from rewarddance.types import Pixels, Prompt, Question

log = logging.getLogger("rewarddance.serve")
REWARD = "rewarddance"
"""What the reward is called in protocols that name several."""


@dataclass(frozen=True, eq=False)
class ServedJudge:
    """A reward model and what a server says of it.

    name: as the caller named it. mark: of its weights and options. references: by prompt, for questions without one.
    """

    reward: RewardModel
    name: str
    mark: str
    references: Mapping[str, Pixels] = field(default_factory=dict)

    @property
    def needs_reference(self) -> bool:
        return needs_reference(self.reward)

    @property
    def kind(self) -> str:
        return self.reward.config.kind if isinstance(self.reward, Judge) else "function"

    @property
    def instruction(self) -> str | None:
        if not isinstance(self.reward, Judge) or self.reward.config.criteria:
            return None
        config = self.reward.config
        return config.instruction if config.kind in USED_BY["instruction"] else None

    @property
    def fps(self) -> float | None:
        return self.reward.config.fps if isinstance(self.reward, Judge) else None

    @property
    def orders(self) -> str | None:
        return self.reward.config.orders if isinstance(self.reward, Judge) else None

    @property
    def differentiable(self) -> bool:
        """Only a function's own call can tell; it is taken to be."""
        return getattr(self.reward, "differentiable", None) is not False

    @property
    def reads_metadata(self) -> bool:
        """Ours read none; what somebody else's model reads only it knows."""
        return not isinstance(self.reward, Judge)

    def question(
        self,
        prompt: str | Prompt,
        candidate: Pixels,
        reference: Pixels | None = None,
        instruction: str | None = None,
        fps: tuple[float | None, float | None] = (None, None),
    ) -> Question:
        """A question of a client, with the server's reference where it brings none.

        Raises InputError where the judge cannot be asked without one, and for an instruction that the server does not
        know: a name from outside is never a path.
        """
        asked = Question(prompt, candidate, reference, self.known(instruction), fps)
        if reference is None and self.needs_reference:
            if asked.prompt.text not in self.references:
                raise InputError(
                    f"the judge compares with a reference, and the question about {shown(asked.prompt.text)} has none.",
                    "Send one, or start the server with --references.",
                )
            asked = Question(asked.prompt, candidate, self._reference(asked.prompt.text), asked.instruction, fps)
        return asked

    def _reference(self, prompt: str) -> Pixels:
        """Raises InputError where it cannot be read; where it is kept is for the log alone."""
        try:
            return self.references[prompt]
        except InputError as error:
            log.error("a reference cannot be had: %s", error)
            raise InputError(
                f"this server's reference of {shown(prompt)} cannot be read.", "Tell whoever runs it; its log says why."
            ) from None

    def known(self, instruction: str | None) -> str | None:
        """The instruction's name, None for the judge's own."""
        if instruction is None or instruction == self.instruction:
            return None
        if self.instruction is None:
            raise InputError("this reward is asked without an instruction.", "Leave it out.")
        if "/" in instruction or "\\" in instruction or ".." in instruction or not is_ours(instruction):
            raise InputError(
                f"{shown(instruction)} is no instruction of this server: the judge asks its own question.",
                f"Leave it out, or say {self.instruction!r} or the name of another that comes with RewardDance.",
            )
        return instruction


def mark_of(reward: RewardModel, folder: Path | None) -> str:
    """A mark that changes with the judge's options and its files; weights are read at both ends only."""
    is_folders = isinstance(reward, Judge) and folder is not None  # then it does not matter by which name it was found
    digest = hashlib.blake2b((type(reward).__name__ if is_folders else repr(reward)).encode(), digest_size=12)
    if isinstance(reward, Judge):
        digest.update(str(next(reward.model.parameters()).dtype).encode())
        digest.update(reward.config.model_dump_json().encode())
    for file in sorted(folder.iterdir()) if folder is not None else ():
        if file.is_file():
            size = file.stat().st_size
            with file.open("rb") as opened:
                digest.update(f"{file.name} {size} ".encode() + opened.read(1 << 16))
                opened.seek(max(0, size - (1 << 16)))
                digest.update(opened.read())
    return digest.hexdigest()
