"""The options of a plan."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, field_validator

from rewarddance.planning.hardware import GPUS, Gpu, find_gpu
from rewarddance.runtime.config import Recipe


class PlanOptions(Recipe):
    """What a plan needs to know that the recipe does not say."""

    gpus: int = Field(default=1, ge=1)
    """GPUs, each with a process."""
    gpu: str = Field(default="h100", description=f"{', '.join(GPUS)}.")
    gpu_memory: float | None = Field(default=None, gt=0)
    """GiB of memory to plan with, instead of that GPU's."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Share of the GPU's peak that is reached."""
    picture: tuple[PositiveInt, PositiveInt] = (1024, 1024)
    """Height and width of pictures where the recipe's files are not here, such as 1024x1024."""
    prompt_words: int = Field(default=40, ge=1)
    """Words of a prompt where the recipe's files are not here."""
    judge_base: str = "OpenGVLab/InternVL3-8B-hf"
    """Judge to plan an alignment with where the recipe's judge, OUTPUT/reward of a training, is not here."""

    @field_validator("picture", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        size = value.lower().split("x")
        if len(size) != 2:
            raise ValueError("it is no height and width, such as 1024x1024")
        return size

    @property
    def hardware(self) -> Gpu:
        return find_gpu(self.gpu, self.gpu_memory)
