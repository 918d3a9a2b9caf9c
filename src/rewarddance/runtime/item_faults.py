"""Which errors are of the item that was worked on, so that the others can go on."""

from __future__ import annotations

from rewarddance.errors import NoGradient, RewardDanceError, RewardError, first_line
from rewarddance.runtime.memory import is_out_of_memory
from rewarddance.runtime.process_group import ProcessStopped


def as_fault(error: Exception) -> RewardDanceError:
    """Whatever a reward or an encoder raised, as an error of ours. Raises it where it is not of what was asked."""
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause) or isinstance(cause, MemoryError | NoGradient | ProcessStopped):
            raise error
        cause = cause.__cause__
    if isinstance(error, RewardDanceError):
        return error
    return RewardError(f"it failed: {type(error).__name__}: {first_line(error)}.", "Correct the reward.")
