"""Fit a reward model of any kind to preferences: one loop, whatever the kind and the number of processes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel

from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import RewardModel
from rewarddance.reward.batches import MicroBatch, MicroBatches
from rewarddance.reward.judge import Judge, LossNormalizer
from rewarddance.reward.loading import build_reward
from rewarddance.reward.parallel import ForwardDispatch, evaluate_together, replicate
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import (
    COMPLETE,
    discard,
    newest_complete,
    reading_checkpoint,
    replacing_together,
    save_state,
)
from rewarddance.runtime.process_group import is_main_process
from rewarddance.runtime.sharding import full_tensor
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics, progress_bar
from rewarddance.runtime.weights import step_finitely
from rewarddance.types import Preference

Evaluate = Callable[[RewardModel], dict[str, float]]


def train_judge(
    recipe: JudgeRecipe,
    preferences: Sequence[Preference],
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    *,
    preflight: Callable[[Judge], None] | None = None,
) -> Judge:
    """Train on `preferences` and write the reward to `folder`/reward; continues from `folder`'s newest checkpoint.

    preflight: called with the reward before the first step; it raises for preferences that cannot be read, or takes
    them out. evaluate: called at every checkpoint with the reward in training; its figures go to metrics.jsonl. The
    result does not depend on where a run was interrupted. In a group of processes all call this alike, and what is
    returned is whole on the first of them only, where the weights are sharded.
    """
    check_training(recipe, evaluate is not None)
    torch.manual_seed(seed)
    config = recipe.reward_config()
    student = Trainable(lambda dtype: build_reward(recipe.base, config, dtype=dtype), recipe)
    if preflight is not None:
        preflight(student.reward)
    if not recipe.sharded:  # shards are on their devices
        student.reward.model.to(process_group.device())
    optimiser = build_optimiser(student.reward.model, recipe)
    steps = math.ceil(
        math.ceil(len(preferences) / recipe.batch_size) * recipe.epochs
    )  # the last of an epoch may be smaller
    batches = MicroBatches(
        preferences, recipe.batch_size, steps, seed,
        parts=recipe.gradient_accumulation_steps, rank=process_group.rank(), count=process_group.world_size(),
        pixel_noise=recipe.pixel_noise,
    )  # fmt: skip
    warmup = min(math.ceil(steps * recipe.warmup), steps - 1)  # at its step 0 the rate is 0: a single step has none
    progress = _resume(folder, student, optimiser)
    model, losses = replicate(student.module), Losses(math.gcd(10, recipe.save_every), batches.count)
    with (
        reporting(recipe.report_to, folder, recipe) as trackers,
        progress_bar("training the judge", steps, progress.step) if is_main_process() else nullcontext() as bar,
    ):
        metrics = Metrics(metrics.path, [*metrics.trackers, *trackers], metrics.watch)
        if bar is not None:
            metrics.rewind("judge", progress.step)
        for step, micro_batches in enumerate(batches.after(progress.step, recipe.workers), start=progress.step + 1):
            torch.manual_seed(seed + step * batches.count + batches.rank)  # of dropout, where there is any
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * cosine_schedule(step - 1, steps, warmup)
            losses.add(accumulate_gradient(model, student.reward, micro_batches))
            norm = clip_gradient(student.reward.model, recipe.max_grad_norm, step)
            take_step(optimiser, student.reward.model, step)
            loss = losses.mean_at(step, last=step == steps)
            if bar is not None:
                bar.advance()
                if loss is not None:
                    metrics.log("judge", step, loss=loss, gradient_norm=norm)
                    bar.show(loss=loss)
            if step % recipe.save_every == 0 or step == steps:
                figures = evaluate_together(student.module, evaluate) if evaluate else {}
                progress = progress.after(step, figures, recipe.keep_best)
                if evaluate and bar is not None:
                    best = {"best_step": progress.best_step} if recipe.keep_best else {}
                    metrics.log("judge", step, "evaluation", **figures, **best)
                _save(folder, progress, student, optimiser)
    return student.deliver(folder / "reward", folder / f"checkpoint-{progress.best_step or progress.step}")


# -- a step ------------------------------------------------------------------------------------------------------------


def accumulate_gradient(model: nn.Module, reward: Judge, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
    """Leave the gradient of a whole batch's loss on the weights. Returns the losses of this process's micro-batches.

    Their sum, averaged over the processes, is the loss of the whole batch, however it is split. A micro-batch of more
    tokens than the judge reads at once is split further, unless it is sharded: only one part's graph is ever held.
    """
    parts = [
        (pairs, micro_batch.counts) for micro_batch in micro_batches for pairs in _parts(model, reward, micro_batch)
    ]
    is_whole_batch = micro_batches[0].is_whole_batch and len(parts) == 1
    normalizer = None if is_whole_batch else _whole_batch(reward, micro_batches)
    losses = []
    for number, (pairs, counts) in enumerate(parts, start=1):
        later = number < len(parts) and isinstance(model, DistributedDataParallel)
        with model.no_sync() if later else nullcontext():  # type: ignore[operator]
            loss = model(methodcaller("loss", pairs, normalizer))
            if normalizer is not None:  # gradients are averaged over the processes, and the parts' losses add up
                loss = loss * (process_group.world_size() if counts else 0)
            loss.backward()
        losses.append(loss.detach())
    return losses


def _parts(model: nn.Module, reward: Judge, micro_batch: MicroBatch) -> list[Sequence[Preference]]:
    """Where weights are in shards all processes must run the layers equally often, so that nothing is split."""
    is_sharded = isinstance(model, ForwardDispatch) and model.sharded
    return [micro_batch.pairs] if is_sharded else reward.split_by_tokens(micro_batch.pairs)


def _whole_batch(reward: Judge, micro_batches: Sequence[MicroBatch]) -> LossNormalizer:
    counted = [reward.loss_normalizer(part.pairs) for part in micro_batches if part.counts]
    total = process_group.sum_over_processes(torch.tensor([LossNormalizer(0), *counted]).sum(0))
    return LossNormalizer(*total.tolist())


def clip_gradient(model: nn.Module, max_norm: float, step: int) -> float:
    """Scale the gradient down to `max_norm`. Returns its norm from before; raises RewardError if it is not finite."""
    norm = float(full_tensor(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
    if not math.isfinite(norm):
        raise RewardError(
            f"the gradient of step {step} is not finite.",
            "Lower learning_rate; if it is the first step, look at the base's weights and at dtype.",
        )
    return norm


def take_step(optimiser: torch.optim.Optimizer, model: nn.Module, step: int) -> None:
    """Raises RewardError naming a step after which a weight is not finite, before anything of it is kept."""
    try:
        step_finitely(optimiser, [weight for weight in model.parameters() if weight.requires_grad])
    except RewardError as error:
        raise RewardError(f"the training of the judge stopped at step {step}: {error.what}", error.remedy) from error


class Losses:
    """The losses of this process since their mean was last taken.

    every: steps between means, so that none runs over a checkpoint. count: how many processes there are.
    """

    def __init__(self, every: int, count: int) -> None:
        self.every, self.count = every, count
        self.total, self.steps = torch.zeros(()), 0

    def add(self, losses: Sequence[Tensor]) -> None:
        self.total, self.steps = sum(losses, self.total), self.steps + 1

    def mean_at(self, step: int, last: bool = False) -> float | None:
        """The mean over steps and processes where it is due, else None; after the last step it is."""
        if step % self.every and not last:
            return None
        mean = (process_group.sum_over_processes(self.total) / self.count).item() / self.steps
        self.total, self.steps = torch.zeros(()), 0
        return mean


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Linear from 0 over the warm-up, then half a cosine towards 0: the learning rate of steps 0, 1, ... as a share."""
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * ((step - warmup) / max(1, steps - warmup)))) / 2


_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def build_optimiser(model: nn.Module, recipe: JudgeRecipe) -> torch.optim.Optimizer:
    """AdamW on the weights that are trained; weight decay leaves biases and the weights of norms alone."""
    norms = {id(w) for module in model.modules() if isinstance(module, nn.LayerNorm) for w in module.parameters()}
    groups: dict[float, list[nn.Parameter]] = {recipe.weight_decay: [], 0.0: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            decays = id(weight) not in norms and not _NOT_DECAYED.search(name.lower())
            groups[recipe.weight_decay if decays else 0.0].append(weight)
    options = [{"params": weights, "weight_decay": decay} for decay, weights in groups.items()]
    return torch.optim.AdamW(options, lr=recipe.learning_rate, fused=True)


# -- checkpoints -------------------------------------------------------------------------------------------------------

PROGRESS = "progress.json"


class Progress(NamedTuple):
    """How far a run has come.

    step: steps that are done.
    best_step: of the checkpoint with the highest figure so far, if the best is kept.
    best_figure: that figure.
    """

    step: int = 0
    best_step: int | None = None
    best_figure: float | None = None

    def after(self, step: int, figures: dict[str, float], keep_best: str | None) -> Progress:
        """Raises InputError where `keep_best` is none of the figures."""
        if keep_best is None:
            return Progress(step)
        if keep_best not in figures:
            raise InputError(f"there is no figure {keep_best!r} to keep the best by.", f"Known: {', '.join(figures)}.")
        if self.best_figure is None or figures[keep_best] > self.best_figure:
            return Progress(step, step, figures[keep_best])
        return self._replace(step=step)


def _save(folder: Path, progress: Progress, student: Trainable, optimiser: torch.optim.Optimizer) -> None:
    """Write a checkpoint, together with the other processes; keep the newest two and the best."""
    with replacing_together(folder / f"checkpoint-{progress.step}") as written:
        student.save(written)
        if student.module.sharded:  # each process writes its shards, and any number of them can read those again
            dcp.save(get_optimizer_state_dict(student.module, optimiser), checkpoint_id=written / "optimizer")
        elif is_main_process():
            save_state(optimiser.state_dict(), written / "optimizer.pt")
        if is_main_process():
            (written / PROGRESS).write_text(json.dumps(progress._asdict()))
    if is_main_process():
        numbers = [path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
        steps = sorted(int(step) for step in numbers if step.isdecimal())
        for step in set(steps[:-2]) - {progress.best_step}:
            discard(folder / f"checkpoint-{step}")


def _resume(folder: Path, student: Trainable, optimiser: torch.optim.Optimizer) -> Progress:
    """Read the newest checkpoint, if there is one, on all processes before any of them writes."""
    newest, progress = newest_complete(folder), Progress()
    if newest is not None:
        with reading_checkpoint(newest):
            progress = Progress(**json.loads((newest / PROGRESS).read_text()))
        student.load(newest)
        if student.module.sharded:
            state: Any = get_optimizer_state_dict(student.module, optimiser)
            dcp.load(state, checkpoint_id=newest / "optimizer")
            set_optimizer_state_dict(student.module, optimiser, state)
        else:
            with reading_checkpoint(newest):
                optimiser.load_state_dict(torch.load(newest / "optimizer.pt", map_location="cpu", weights_only=True))
    process_group.barrier()
    return progress


def check_training(recipe: JudgeRecipe, is_evaluated: bool) -> None:
    """Raises InputError for what could only fail later. is_evaluated: there are figures at each checkpoint."""
    check_trackers(recipe.report_to)
    n, parts = process_group.world_size(), recipe.gradient_accumulation_steps
    if recipe.batch_size < parts * n:
        raise InputError(
            f"a batch_size of {recipe.batch_size} cannot be shared by {n} processes in {parts} parts each.",
            f"Set it to {parts * n} or more: it counts the pairs of a step, all together.",
        )
    if recipe.sharded and n == 1:
        raise InputError(
            "a sharded judge needs several processes.",
            "Start it with torchrun --nproc-per-node N -m rewarddance train RECIPE, or set judge.sharded=false.",
        )
    if recipe.keep_best and not is_evaluated:
        raise InputError("keep_best needs figures to choose by.", "Give test sets, or leave it out.")
