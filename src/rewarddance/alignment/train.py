"""The loop that aligns a generator, whatever the algorithm: its updates leave gradients, the loop takes the steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from rewarddance.alignment.alarms import AlarmLog, AlarmRecipe
from rewarddance.alignment.failed_groups import FailedGroups, NothingLeft
from rewarddance.alignment.group_rewards import Judging, Reward
from rewarddance.alignment.references import ReferenceBank
from rewarddance.alignment.safeguards import Ema
from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import newest_complete, reading_checkpoint, replacing, save_state
from rewarddance.runtime.config import MOST, Recipe, changed
from rewarddance.runtime.process_group import is_main_process
from rewarddance.runtime.sharding import (
    average_gradients,
    copy_into,
    full_tensor,
    gather_full_tensors,
    shard_like,
)
from rewarddance.runtime.tracking import Metrics, console, progress_bar
from rewarddance.runtime.weights import read_tensors, step_finitely
from rewarddance.types import Preference, Prompt

Figures = dict[str, float]
"""What an update measured, by name; what the loop logs."""


def read_together(figures: Mapping[str, Tensor]) -> Figures:
    """Numbers that a GPU has computed, all read at once: the host waits for it once and not for each."""
    values = torch.stack([value.float() for value in figures.values()]).tolist() if figures else []
    return dict(zip(figures, values, strict=True))


class TrainRecipe(Recipe):
    """What the loop needs, whatever the algorithm. The paper leaves all of this open; every default is ours.

    prompts_per_step, group_size: P prompts with G samples each make a step; several processes share them equally.
    warmup, cooldown: shares of the steps over which the learning rate rises from zero, and falls to it at the end.
    lora_rank: 0 trains all weights. lora_alpha: by default the rank.
    lora_targets: ends of the names of the layers that get a LoRA; by default the generator's family says.
    generator_batch: samples that go through the generator together with a graph, by default all of the step's.
    sharded: the generator's weights are split over the processes, too.
    ema_decay: of the average of the weights, which is what is delivered.
    probe_every, save_every: steps between probes and between checkpoints.
    alarms: see `alarms`; one that stops leaves the newest checkpoint from before its window as the result.
    """

    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=8, ge=1, le=MOST)
    group_size: int = Field(default=4, ge=1, le=MOST)
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    cooldown: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora_rank: int = Field(default=16, ge=0, le=MOST)
    lora_alpha: int | None = Field(default=None, ge=1)
    lora_targets: tuple[str, ...] = ()
    generator_batch: int | None = Field(default=None, ge=1)
    sharded: bool = False
    ema_decay: float = Field(default=0.95, ge=0, lt=1)
    probe_every: int = Field(default=20, ge=1)
    save_every: int = Field(default=20, ge=1)
    alarms: AlarmRecipe = AlarmRecipe()

    @model_validator(mode="after")
    def _targets_get_a_lora(self) -> TrainRecipe:
        if not self.lora_rank and (given := changed(self, "lora_targets", "lora_alpha")):
            raise ValueError(f"{given} is used with a lora_rank only: leave it out")
        return self

    @property
    def alpha(self) -> int:
        """Of the LoRA: what is given, or else its rank."""
        return self.lora_alpha or self.lora_rank

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where the algorithm cannot align this generator, or cannot do it by this judge."""
        del generator, judge  # none of it matters to most algorithms

    def decay_at(self, step: int) -> float:
        """The average's decay after a step."""
        del step  # the same for all, but in algorithms that have a schedule of it
        return self.ema_decay

    @abstractmethod
    def judging_of(self, judge: RewardModel) -> Judging:
        """How the judge is asked. Raises InputError where it cannot be asked so."""

    def check_processes(self, processes: int) -> None:
        """Raises InputError where so many processes cannot share a step."""
        samples = self.prompts_per_step * self.group_size
        if self.sharded and processes == 1:
            raise InputError(
                "a sharded generator needs several processes.",
                "Start it with torchrun --nproc-per-node N -m rewarddance align RECIPE, or set sharded to false.",
            )
        if samples % processes:
            raise InputError(
                f"{processes} processes cannot share {samples} samples equally (prompts_per_step "
                f"{self.prompts_per_step}, group_size {self.group_size}).",
                f"Make their product a multiple of {processes}.",
            )


class Trainable(Generator, Protocol):
    """A generator that can be trained, with LoRA or all of it, and can step back to what it was."""

    def add_lora(
        self, rank: int, alpha: int, targets: Sequence[str] = (), sharded: bool = False
    ) -> list[nn.Parameter]: ...
    def check_lora_goes_on(self, folder: Path, rank: int, alpha: int, targets: Sequence[str] = ()) -> None: ...
    def continue_lora(self, folder: Path) -> None: ...
    def train_all(self, sharded: bool = False) -> list[nn.Parameter]: ...
    def as_before_training(self) -> Any: ...
    def without_guidance(self) -> Any: ...

    def error_scale(self, step: int) -> float:
        """What an error of x_0 at `step` is multiplied by to be that of the network's own prediction: 1 / sigma where
        it is a velocity or v, alpha / sigma where it is eps. So losses weigh noise levels as the network's training
        did."""
        ...

    def checkpointed(self, network: bool = True, decoder: bool = True) -> Any: ...
    def save_lora(self, folder: Path) -> None: ...
    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, eq=False)
class Alignment:
    """What is aligned, and with what.

    generator: trained in place.
    rewards: one or several, each with its weight; none where it is learned from preferences.
    prompts: distinct ones, which training draws from.
    recipe: of the algorithm.
    seed: all random draws depend on it and the step alone.
    bank: the prompts' references, where samples are judged against references.
    held_out: a judge that is asked beside the first and gates ReFL's gradient.
    begin_with: the folder of a LoRA that training goes on from; what it is held to is still the generator without it.
    failed: the groups that had no reward.
    preferences: votes on pictures that are there, where they are learned from instead of rewards.
    """

    generator: Trainable
    rewards: Sequence[Reward]
    prompts: Sequence[str | Prompt]
    recipe: TrainRecipe
    seed: int = 0
    bank: ReferenceBank | None = None
    held_out: RewardModel | None = None
    begin_with: Path | None = None
    failed: FailedGroups = field(default_factory=FailedGroups)
    preferences: Sequence[Preference] | None = None


Updates = Callable[[Alignment, int, Ema], Iterator[Figures]]
"""An algorithm: the updates of a step. After each one's figures a gradient lies on the weights.

It raises NothingLeft where no group of the step has a reward."""


@dataclass(frozen=True, eq=False)
class TrainState:
    """What a checkpoint in `folder` holds: the trained weights, the optimiser's moments, and the weights' average."""

    folder: Path
    weights: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    ema: Ema

    @classmethod
    def begin(cls, run: Alignment, folder: Path) -> TrainState:
        """Put a LoRA on the generator, or make all of its weights trainable."""
        recipe = run.recipe
        if recipe.lora_rank:
            weights = run.generator.add_lora(recipe.lora_rank, recipe.alpha, recipe.lora_targets, recipe.sharded)
            if run.begin_with is None:
                _reset_lora(weights, run.seed)
            else:
                run.generator.continue_lora(run.begin_with)
        else:
            weights = run.generator.train_all(recipe.sharded)
        on_gpu = weights[0].device.type == "cuda"  # where the unfused step would hold all weights once more
        optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0, fused=on_gpu)
        return cls(folder, weights, optimiser, Ema(weights, recipe.ema_decay))

    def apply_gradient(self, learning_rate: float, max_norm: float) -> float:
        """Take an optimiser step with the mean of the processes' gradients; returns its norm before clipping.

        Raises RewardError where it, or a weight after the step, is not finite.
        """
        average_gradients(self.weights)
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(self.weights, max_norm)))
        if not math.isfinite(norm):
            raise RewardError(
                "the gradient is not finite.",
                "Lower learning_rate; if it is the first step, look at the weights of the loss's parts, and at dtype.",
            )
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        step_finitely(self.optimiser, self.weights)
        return norm

    def save(self, step: int) -> None:
        """Write whole weights and moments, whatever the number of processes; one file at a time is in memory."""
        place = self.folder / f"checkpoint-{step}"
        with replacing(place) if is_main_process() else nullcontext(place) as written:
            for name, values in (("weights", self.weights), ("ema", self.ema.average)):
                whole = gather_full_tensors({str(i): value for i, value in enumerate(values)})
                if is_main_process():
                    save_file({i: value.contiguous() for i, value in whole.items()}, written / f"{name}.safetensors")
            state = self.optimiser.state_dict()
            state["state"] = {i: gather_full_tensors(moments) for i, moments in state["state"].items()}
            if is_main_process():
                save_state(state, written / "optimiser.pt")

    def resume(self, at_most: int | None = None) -> int:
        """Load the newest complete checkpoint, of step `at_most` or before; returns its step, 0 where there is none."""
        newest = newest_complete(self.folder, at_most=at_most)
        if newest is None:
            return 0
        for name, values in (("weights", self.weights), ("ema", self.ema.average)):
            wanted, file = {str(i): value for i, value in enumerate(values)}, newest / f"{name}.safetensors"
            copy_into(
                wanted, read_tensors(file, f"the checkpoint {newest}", wanted, "Remove it; an older one is taken.")
            )
        with reading_checkpoint(newest):
            saved = torch.load(newest / "optimiser.pt", weights_only=True, mmap=True)
            for i, moments in saved["state"].items():
                saved["state"][i] = {
                    name: value if name == "step" else shard_like(value, self.weights[i])
                    for name, value in moments.items()
                }
            self.optimiser.load_state_dict(saved)
        return int(newest.name.rpartition("-")[2])


def train(
    run: Alignment,
    updates: Updates,
    title: str,
    *,
    folder: Path,
    metrics: Metrics,
    probe: Callable[[], Figures] = dict,
) -> Path:
    """Train the run's generator by an algorithm's updates, named `title`; its metrics are of the phase of that name.

    On return the generator carries the average of its trained weights. Returns where it is on disk, too: `folder`/lora,
    or `folder`/generator, a plain diffusers folder, where all weights were trained. Continues from the newest
    checkpoint in `folder`; the result does not depend on where a run was interrupted. probe: figures of the averaged
    generator, measured every probe_every steps and logged.

    In a group of processes all call this alike. Each leaves the gradient of its share of the samples, and the step is
    taken with their mean. The first one writes and speaks, and a sharded generator stays sharded.
    """
    recipe = run.recipe
    recipe.check_processes(process_group.world_size())
    phase, leads = title.lower().replace(" ", "_"), is_main_process()
    state = TrainState.begin(run, folder)
    first = state.resume()
    if leads:
        metrics.rewind(phase, first or -1)  # without a checkpoint the first probe comes again too
        run.failed.begin(folder, first)
    alarms = AlarmLog(recipe.alarms, metrics, phase, first) if leads else None
    with progress_bar(title, recipe.steps, first) if leads else nullcontext() as bar:
        for step in range(first, recipe.steps + 1):
            is_new = step > first or step == 0  # a resumed run's first step was probed before its checkpoint
            if is_new and (step % recipe.probe_every == 0 or step == recipe.steps):
                figures = _probe_average(probe, state.ema, recipe.sharded or _judged_together(run))
                if leads:
                    metrics.log(phase, step, "probe", **figures)
            if step % recipe.save_every == 0 and step > first:
                state.save(step)
            if step == recipe.steps:
                break
            figures = _take_step(run, updates, title, state, step)
            last_good = None
            if alarms is not None and bar is not None:
                bar.advance()
                if figures:
                    metrics.log(phase, step + 1, "step", **figures)
                    bar.show(reward=figures["reward"], margin=figures["margin"])
                    last_good = alarms.check(step + 1, figures)
                else:
                    metrics.log(phase, step + 1, "failed", failed_groups=recipe.prompts_per_step)
            last_good = process_group.gather_objects(last_good)[0]
            if last_good is not None:
                back = state.resume(at_most=last_good)
                kept = f"checkpoint-{back} is kept" if back else "no checkpoint is from before, so the average is kept"
                if leads:
                    console.print(f"{title} ends at step {step + 1}: {kept}.")
                break
    state.ema.deliver()
    return _save_result(run.generator, recipe, folder)


def _probe_average(probe: Callable[[], Figures], ema: Ema, sharded: bool) -> Figures:
    """The probe's figures of the averaged weights. The first process alone asks, but for sharded weights, which are of
    use to all processes together only."""
    if not (is_main_process() or sharded):
        return {}
    with ema.applied():
        return probe()


def _judged_together(run: Alignment) -> bool:
    """Are a judge's weights sharded?"""
    return any(getattr(reward.judge, "needs_all_processes", False) for reward in run.rewards)


def _take_step(run: Alignment, updates: Updates, title: str, state: TrainState, step: int) -> Figures:
    """All updates of a step, and the average's; returns the mean of their figures over updates and processes.

    A step of which no group has a reward changes nothing and has no figures.
    """
    learning_rate = run.recipe.learning_rate * lr_factor(step, run.recipe)
    rows: list[Figures] = []
    try:
        for figures in updates(run, step, state.ema):
            norm = state.apply_gradient(learning_rate, run.recipe.max_grad_norm)
            rows.append({"gradient_norm": norm, **figures})
    except NothingLeft:
        return {}
    except RewardError as error:
        raise RewardError(f"{title} stopped at step {step + 1}: {error.what}", error.remedy) from error
    state.ema.update(run.recipe.decay_at(step))
    means = rows[0] if len(rows) == 1 else {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return process_group.mean_over_processes(means)


def _save_result(generator: Trainable, recipe: TrainRecipe, folder: Path) -> Path:
    """Write the LoRA, which is whole on each process, or the generator, which sharded ones write together."""
    place = folder / ("lora" if recipe.lora_rank else "generator")
    if recipe.lora_rank:
        if is_main_process():
            generator.save_lora(place)
    elif is_main_process() or recipe.sharded:
        with replacing(place) if is_main_process() else nullcontext(place) as written:
            generator.save(written)
    process_group.barrier()
    return place


def prompts_of_step(n: int, k: int, seed: int, step: int) -> list[int]:
    """The numbers of k of n prompts: in a random order, every prompt once before any comes again."""
    return [
        int(np.random.default_rng([seed, 3, at // n]).permutation(n)[at % n]) for at in range(step * k, (step + 1) * k)
    ]


def lr_factor(step: int, recipe: TrainRecipe) -> float:
    """Linear warm-up, constant, and linearly towards zero over the last `cooldown` of the steps."""
    rise = (step + 1) / max(1, math.ceil(recipe.warmup * recipe.steps))
    fall = (recipe.steps - step) / max(1, math.ceil(recipe.cooldown * recipe.steps))
    return min(1.0, rise, fall)


def _reset_lora(weights: Sequence[nn.Parameter], seed: int) -> None:
    """LoRA's first factor from the run's seed (the second stays zero), so that a run repeats itself."""
    rng = torch.Generator().manual_seed(seed)
    for weight in weights:
        if weight.detach().any():
            bound = 1 / math.sqrt(weight.shape[1])
            with torch.no_grad():
                weight.copy_((torch.rand(weight.shape, generator=rng) * 2 - 1) * bound)
