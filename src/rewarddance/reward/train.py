"""Fit a reward model of any kind to preferences, on transformers' Trainer (resume, bf16, FSDP, logging)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from rewarddance.errors import InputError
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import USED_BY, Judge, RewardConfig, RewardOptions
from rewarddance.reward.kinds import build_reward
from rewarddance.runtime.checkpoint import COMPLETE, newest_complete
from rewarddance.runtime.tracking import Metrics, progress_bar
from rewarddance.types import Preference

Evaluate = Callable[[Judge], dict[str, float]]


class JudgeRecipe(RewardOptions):
    """How a judge is trained.

    base: a checkpoint folder, or a bundled one's name. epochs may be a fraction. pixel_noise: deviation of Gaussian
    noise added to the pictures at each step, against hair-splitting. warmup: share of the steps. freeze_vision_tower:
    train the rest only. save_every: steps between checkpoints; save_every also sets the evaluations.
    """

    base: str = "shapeworld-judge"
    learning_rate: float = Field(default=1e-5, gt=0)
    batch_size: int = Field(default=32, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    freeze_vision_tower: bool = False
    pixel_noise: float = Field(default=0.0, ge=0)
    save_every: int = Field(default=100, ge=1)


class _Rows(Dataset):
    def __init__(self, preferences: Sequence[Preference]) -> None:
        self.preferences = preferences

    def __len__(self) -> int:
        return len(self.preferences)

    def __getitem__(self, index: int) -> Preference:
        return self.preferences[index]


class JudgeTrainer(Trainer):
    """Trainer whose loss is the reward's own."""

    def __init__(self, reward: Judge, recipe: JudgeRecipe, seed: int, **kwargs: Any) -> None:
        super().__init__(model=reward.model, **kwargs)
        self.reward, self.recipe, self.noise_seed = reward, recipe, seed

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        return self.reward.loss(self._jittered(inputs["preferences"]))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        self.reward.save_own_weights(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's own looks for the model's names in the file: save_pretrained wrote others, none would load."""
        saved = type(self.reward.model).from_pretrained(resume_from_checkpoint, dtype=self.reward.model.dtype)
        own = self.reward.read_own_weights(Path(resume_from_checkpoint))
        self.reward.model.load_state_dict(saved.state_dict() | own)

    def _jittered(self, pairs: list[Preference]) -> list[Preference]:
        """The pairs with pixel noise that depends on seed and step alone, so that a resumed run sees the same."""
        if not self.recipe.pixel_noise:
            return pairs
        rng = torch.Generator().manual_seed(self.noise_seed * 1_000_003 + self.state.global_step)

        def noisy(pixels: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(pixels.shape, generator=rng)
            return (pixels + self.recipe.pixel_noise * noise).clamp(0, 1)

        return [replace(p, first=noisy(p.first), second=noisy(p.second)) for p in pairs]


class _Watch(TrainerCallback):
    """Metrics, the bar, evaluation at each checkpoint, and the mark that a checkpoint is complete."""

    def __init__(self, metrics: Metrics, bar: Any, reward: Judge, evaluate: Evaluate | None) -> None:
        self.metrics, self.bar, self.reward, self.evaluate = metrics, bar, reward, evaluate

    def on_step_end(self, args, state, control, **_: Any) -> None:
        self.bar.advance()

    def on_log(self, args, state, control, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.metrics.log("judge", state.global_step, loss=logs["loss"], gradient_norm=float(logs["grad_norm"]))
            self.bar.show(loss=logs["loss"])

    def on_save(self, args, state, control, **_: Any) -> None:
        if self.evaluate is not None:
            self.metrics.log("judge", state.global_step, **self.evaluate(self.reward))
            self.reward.model.train()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def vision_tower(model: Any) -> torch.nn.Module:
    """The part of a transformers model that reads pictures. Raises InputError naming a model that has none apart."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise InputError(
            f"the vision tower of a {type(model).__name__} cannot be frozen: it has none that stands apart.",
            "Set freeze_vision_tower to false, or choose another base.",
        )
    return tower


def train_judge(
    recipe: JudgeRecipe,
    preferences: Sequence[Preference],
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> Judge:
    """Train on `preferences` and write the reward to `folder`/reward; continues from `folder`'s newest checkpoint.

    evaluate: called at every checkpoint with the reward in training; its figures go to metrics.jsonl.
    The result does not depend on where a run was interrupted.
    """
    torch.manual_seed(seed)
    options = recipe.model_dump(include=set(RewardOptions.model_fields))
    if recipe.kind in USED_BY["instruction"]:
        options["instruction_version"] = load_instruction(recipe.instruction).version
    reward = build_reward(recipe.base, RewardConfig(**options))
    if recipe.freeze_vision_tower:
        vision_tower(reward.model).requires_grad_(False)
    steps = math.ceil(len(preferences) / recipe.batch_size * recipe.epochs)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * recipe.warmup),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=math.gcd(10, recipe.save_every),  # so that no mean runs over a checkpoint
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    resume = newest_complete(folder)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    metrics.rewind("judge", done)
    with progress_bar("training the judge", steps, done) as bar:
        trainer = JudgeTrainer(
            reward,
            recipe,
            seed,
            args=arguments,
            train_dataset=_Rows(preferences),
            data_collator=lambda rows: {"preferences": rows},
            callbacks=[_Watch(metrics, bar, reward, evaluate)],
        )
        for callback in ("PrinterCallback", "ProgressCallback"):
            for found in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
                trainer.remove_callback(found)
        if resume and done >= steps:  # cut off after the last step: Trainer would begin its epoch and take one more
            trainer._load_from_checkpoint(str(resume))
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    reward.freeze().save(folder / "reward")
    return reward
