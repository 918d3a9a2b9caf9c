"""The recipe of a judge's training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import USED_BY, RewardConfig, RewardOptions
from rewarddance.runtime.config import MOST, MOST_WORKERS


class JudgeRecipe(RewardOptions):
    """How a judge is trained.

    base: a checkpoint folder, or a bundled one's name.
    batch_size: pairs of a step, all processes together; each reads its share in gradient_accumulation_steps parts.
    epochs: may be a fraction.
    warmup: share of the steps over which the learning rate rises; it then falls to zero as a cosine.
    weight_decay: of all weights but biases and those of norms.
    freeze_vision_tower: train the rest only.
    lora_rank: 0 trains all weights. lora_alpha: by default the rank.
    dtype: what layers compute in. With bfloat16 trained weights and optimiser stay in float32, and the reward is stored
        in bfloat16.
    sharded: the weights are split over the processes (FSDP2); else each process has all of them.
    pixel_noise: standard deviation of Gaussian noise added to the pictures at each step, against overfitting to pixels.
    workers: processes that read pictures ahead.
    save_every: steps between checkpoints and evaluations.
    keep_best: the figure, such as accuracy_ood, by which the best checkpoint becomes the reward; else the last does.
    report_to: trackers, by their names in accelerate.
    """

    base: str = "shapeworld-judge"
    learning_rate: float = Field(default=1e-5, gt=0)
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    freeze_vision_tower: bool = False
    lora_rank: int = Field(default=0, ge=0, le=MOST)
    lora_alpha: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    sharded: bool = False
    pixel_noise: float = Field(default=0.0, ge=0)
    workers: int = Field(default=0, ge=0, le=MOST_WORKERS)
    save_every: int = Field(default=100, ge=1)
    keep_best: str | None = None
    report_to: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> JudgeRecipe:
        if self.lora_alpha and not self.lora_rank:
            raise ValueError("lora_alpha is used with a lora_rank only")
        if self.base_precision != "none" and not self.lora_rank:
            raise ValueError(
                f"weights in {self.base_precision} cannot be trained: set lora_rank, or base_precision to none"
            )
        if self.base_precision != "none" and self.sharded:
            raise ValueError("weights in base_precision are packed, and cannot be sharded: leave one of them out")
        if self.sharded and self.compile:
            raise ValueError("compile goes with a judge that is whole on each process, not with a sharded one")
        if self.sharded and self.kind == "clip":
            raise ValueError("a clip reward is too small to be sharded")
        return self

    def reward_config(self) -> RewardConfig:
        """Of the reward that is trained, with the instruction's version of today."""
        options = self.model_dump(include=set(RewardOptions.model_fields))
        if self.kind in USED_BY["instruction"]:
            options["instruction_version"] = load_instruction(self.instruction).version
        return RewardConfig(**options)
