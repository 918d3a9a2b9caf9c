"""Fit a reward model of any kind to preferences, on transformers' Trainer (schedule, accumulation, resume)."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import TrainerState

from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.protocols import RewardModel
from rewarddance.reward.batches import MicroBatch, MicroBatches, jittered
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import USED_BY, Judge, LossNormalizer, RewardConfig, RewardOptions
from rewarddance.reward.loading import build_reward
from rewarddance.reward.parallel import load_optimiser, measured, replicated, save_optimiser
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable, vision_tower
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import COMPLETE, newest_complete
from rewarddance.runtime.sharding import full_tensor
from rewarddance.runtime.tracking import Metrics, progress_bar
from rewarddance.types import Preference

__all__ = ["Evaluate", "JudgeRecipe", "JudgeTrainer", "check_training", "train_judge", "vision_tower"]

Evaluate = Callable[[RewardModel], dict[str, float]]


class JudgeTrainer(Trainer):
    """Trainer whose loss is the reward's own, of a whole batch whatever parts it is read in.

    evaluate: called before every checkpoint; its figures go to `metrics` and the trackers.
    """

    def __init__(
        self,
        student: Trainable,
        recipe: JudgeRecipe,
        portions: MicroBatches,
        metrics: Metrics,
        evaluate: Evaluate | None,
        **kwargs: Any,
    ) -> None:
        self.student, self.recipe, self.portions = student, recipe, portions
        self.metrics, self.evaluated = metrics, evaluate
        super().__init__(model=student.reward.model, train_dataset=portions, **kwargs)
        self.model_accepts_loss_kwargs = True  # that is: do not divide by the parts, each loss is a part of the whole

    # -- a step ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Of the process's own portions, in order: nothing is left for a sampler to shuffle or to split."""
        return DataLoader(self.portions, batch_size=1, collate_fn=_only, num_workers=self.recipe.workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The portions of one step, and the amount of its whole batch, or None where a portion is all of it."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for sample in samples:
            if isinstance(sample["portion"], RewardDanceError):
                raise sample["portion"]
        if self.portions.parts * self.portions.count == 1:
            return samples, None
        own = [self.student.reward.amount(s["portion"].pairs) for s in samples if s["portion"].counts]
        return samples, LossNormalizer(*process_group.sum_over_processes(torch.tensor([(0, 0), *own]).sum(0)).tolist())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: LossNormalizer | None = None,
    ) -> Any:
        portion: MicroBatch = inputs["portion"]
        amount = num_items_in_batch
        pairs = jittered(portion, self.recipe.pixel_noise, self.portions.seed, amount is None)
        if amount is None:
            return model(lambda reward: reward.loss(pairs))
        scale = self.portions.count if portion.counts else 0  # for gradients are averaged over the processes
        return scale * model(lambda reward: reward.loss(pairs, amount))

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """Not the model but what is done with it: the hooks of DDP and FSDP fire at a forward's ends."""
        return replicated(self.student.lesson) if not self.student.lesson.sharded else self.student.lesson

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self.student.lesson.sharded:  # pieces are where they belong
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = full_tensor(torch.as_tensor(super()._get_grad_norm(model, grad_norm)))
        if not torch.isfinite(norm):
            raise RewardError(
                f"the gradient of step {self.state.global_step + 1} is not finite.",
                "Lower learning_rate; if it is the first step, look at the base's weights and at dtype.",
            )
        return norm

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        self.state.epoch = self.state.global_step / self.portions.steps_an_epoch
        super().log(logs, *rest)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Measured first, so that its state says which step is best; written beside its place and moved there."""
        self._measure()
        super()._save_checkpoint(model, trial)
        process_group.barrier()
        if process_group.is_main_process():
            name = f"checkpoint-{self.state.global_step}"
            scratch, place = Path(self._get_output_dir(None), name), Path(str(self.args.output_dir), name)
            (scratch / COMPLETE).touch()
            shutil.rmtree(place, ignore_errors=True)  # one that was cut off
            os.replace(scratch, place)
            scratch.parent.rmdir()
            keep = {self.state.global_step, self.state.best_global_step}
            forget_checkpoints(place.parent, keep, also_newest=2)
        process_group.barrier()

    def _measure(self) -> None:
        if self.evaluated is None:
            return
        step, key = self.state.global_step, self.recipe.keep_best
        figures: dict[str, Any] = dict(measured(self.student.lesson, self.evaluated))
        if key:
            if key not in figures:
                raise InputError(f"there is no figure {key!r} to keep the best by.", f"Known: {', '.join(figures)}.")
            if self.state.best_metric is None or figures[key] > self.state.best_metric:
                self.state.best_metric, self.state.best_global_step = figures[key], step
            figures["best_step"] = self.state.best_global_step
        if process_group.is_main_process():
            self.metrics.log("judge", step, "evaluation", **figures)
        if self.args.report_to:
            self.log({f"eval_{name}": float(figure) for name, figure in figures.items()})

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(str(self.args.output_dir), "unfinished"))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.student.save(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.student.load(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.student.lesson.sharded:
            return super()._save_optimizer_and_scheduler(output_dir)
        save_optimiser(self.student.lesson, _inner(self.optimizer), Path(output_dir, "optimizer"))
        if process_group.is_main_process():
            torch.save(self._rates.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.student.lesson.sharded:
            load_optimiser(self.student.lesson, _inner(self.optimizer), Path(checkpoint, "optimizer"))
        else:  # to the CPU first: Trainer's own (5.17) asks for a device "cpu:0", which there is not
            saved = torch.load(Path(checkpoint, "optimizer.pt"), map_location="cpu", weights_only=True)
            _inner(self.optimizer).load_state_dict(saved)
        self._rates.load_state_dict(torch.load(Path(checkpoint, "scheduler.pt"), weights_only=True))

    @property
    def _rates(self) -> Any:
        return self.lr_scheduler


class _Watch(TrainerCallback):
    """The loss in the metrics, and the bar."""

    def __init__(self, metrics: Metrics, bar: Any) -> None:
        self.metrics, self.bar = metrics, bar

    def on_step_end(self, args, state, control, **_: Any) -> None:
        self.bar.advance()

    def on_log(self, args, state, control, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.metrics.log("judge", state.global_step, loss=logs["loss"], gradient_norm=float(logs["grad_norm"]))
            self.bar.show(loss=logs["loss"])


def train_judge(
    recipe: JudgeRecipe,
    preferences: Sequence[Preference],
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> Judge:
    """Train on `preferences` and write the reward to `folder`/reward; continues from `folder`'s newest checkpoint.

    evaluate: called at every checkpoint with the reward in training; its figures go to metrics.jsonl. The result does
    not depend on where a run was interrupted. In a group of processes all call this alike, and what is returned is
    whole on the first of them only, where the weights are sharded.
    """
    check_training(recipe, evaluate is not None)
    torch.manual_seed(seed)
    options = recipe.model_dump(include=set(RewardOptions.model_fields))
    if recipe.kind in USED_BY["instruction"]:
        options["instruction_version"] = load_instruction(recipe.instruction).version
    config = RewardConfig(**options)
    student = Trainable(
        lambda dtype: build_reward(recipe.base, config, dtype=dtype),
        recipe.base,
        recipe.lora_rank,
        recipe.lora_alpha or recipe.lora_rank,
        recipe.freeze_vision_tower,
        recipe.dtype == "bf16",
        recipe.sharded,
    )
    steps = math.ceil(len(preferences) / recipe.batch_size * recipe.epochs)
    own = (recipe.gradient_accumulation_steps, process_group.rank(), process_group.world_size())
    portions = MicroBatches(preferences, recipe.batch_size, steps, seed, *own)
    resume = newest_complete(folder)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    process_group.barrier()  # before the first process writes anything
    with ExitStack() as stack:
        callbacks: list[TrainerCallback] = []
        if process_group.is_main_process():
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            metrics.rewind("judge", done)
            callbacks = [_Watch(metrics, stack.enter_context(progress_bar("training the judge", steps, done)))]
        trainer = JudgeTrainer(
            student,
            recipe,
            portions,
            metrics,
            evaluate,
            args=_arguments(recipe, folder, steps, seed),
            callbacks=callbacks,
        )
        for callback in ("PrinterCallback", "ProgressCallback"):
            for found in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
                trainer.remove_callback(found)
        if done < steps:  # else it was cut off after the last step: Trainer would take one more
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return student.deliver(folder / "reward", folder / f"checkpoint-{kept_step(folder)}")


def kept_step(folder: Path) -> int:
    """The step whose weights a finished run in `folder` delivers: the best by keep_best, or the last."""
    newest = newest_complete(folder)
    if newest is None:
        raise InputError(f"{folder} holds no checkpoint.", "Train first.")
    state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    return state.best_global_step or state.global_step


def forget_checkpoints(folder: Path, keep: set[int | None], also_newest: int) -> None:
    """Remove all checkpoints but those of the steps to keep and the newest ones."""
    steps = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    for step in steps[:-also_newest]:
        if step not in keep:
            (folder / f"checkpoint-{step}" / COMPLETE).unlink(missing_ok=True)  # first: half of one is not to be read
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)


def check_training(recipe: JudgeRecipe, measured: bool) -> None:
    """Raises InputError for what could only fail later. measured: is the judge evaluated at its checkpoints?"""
    installed = get_available_reporting_integrations()
    for name in recipe.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"there is no tracker {name!r}.", f"Known are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        if name not in installed:
            raise InputError(f"the tracker {name!r} is not installed.", f"pip install {name}, or leave it out.")
    shares = recipe.gradient_accumulation_steps * process_group.world_size()
    if recipe.batch_size < shares:
        raise InputError(
            f"a batch_size of {recipe.batch_size} cannot be shared by {process_group.world_size()} processes in "
            f"{recipe.gradient_accumulation_steps} parts each.",
            f"Set it to {shares} or more: it counts the pairs of a step, all together.",
        )
    if recipe.sharded and process_group.world_size() == 1:
        raise InputError(
            "a sharded judge needs several processes.",
            "Start it with torchrun --nproc-per-node N -m rewarddance train RECIPE, or set judge.sharded=false.",
        )
    if recipe.keep_best and not measured:
        raise InputError("keep_best needs figures to choose by.", "Give test sets, or leave it out.")


def _arguments(recipe: JudgeRecipe, folder: Path, steps: int, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        run_name=folder.resolve().name,
        max_steps=steps,
        per_device_train_batch_size=max(1, recipe.batch_size // process_group.world_size()),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * recipe.warmup),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        save_steps=recipe.save_every,
        logging_steps=math.gcd(10, recipe.save_every),  # so that no mean runs over a checkpoint
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run (`_get_grad_norm`)
        seed=seed,
        remove_unused_columns=False,
        report_to=list(recipe.report_to),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=process_group.device().type == "cpu",
    )


def _only(rows: list[Any]) -> dict[str, Any]:
    return {"portion": rows[0]}


def _inner(optimiser: Any) -> torch.optim.Optimizer:
    """accelerate's wrapper taken off."""
    return getattr(optimiser, "optimizer", optimiser)
