"""Flow-GRPO (2505.05470): a policy gradient over denoising steps. The judge needs no gradient: people can be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from rewarddance.alignment.grpo import kl_to_base, log_prob, surrogate
from rewarddance.alignment.policy import PolicyRecipe, judged, sample_step, summary
from rewarddance.alignment.references import References
from rewarddance.alignment.rewards import Reward
from rewarddance.alignment.rollouts import Noising, refuse_kind, sde_rollouts
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Figures, Trainable, train
from rewarddance.errors import InputError
from rewarddance.protocols import Generator
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import local_shard
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt, as_prompts

GRAPH = "the generator, whose window's graph is kept", "Set grpo.keep_graph to false."
"""What is said where a rollout runs out of memory because of it."""


class GrpoRecipe(PolicyRecipe):
    """How Flow-GRPO runs (and `PolicyRecipe`). Defaults are ours where they are not the authors'.

    kind: "flow" is the authors' random step, "ddim" one for every generator. noise_level: its a, or eta. window: how
    many steps of a rollout are random and trained; window_range: where it may begin, as shares of the schedule (0 pure
    noise). shared_prefix: a group's samples begin from one noise and part ways at the window. clip_range: of the ratio
    (of per-value log-probabilities, hence so small). kl: weight of the distance to the base. keep_graph: the window's
    graph is kept from the rollout until the judge has answered, so that the update need not compute it again: the same
    gradient in less time, for the memory of the whole window at once.
    """

    kind: Literal["flow", "ddim"] = "flow"
    noise_level: float = Field(default=0.7, gt=0)
    window: int = Field(default=2, ge=1)
    window_range: tuple[float, float] = (0.0, 0.5)
    shared_prefix: bool = True
    clip_range: float = Field(default=1e-4, gt=0)
    kl: float = Field(default=0.01, ge=0)
    keep_graph: bool = False

    @model_validator(mode="after")
    def _window_range_is_one(self) -> GrpoRecipe:
        if not 0 <= self.window_range[0] <= self.window_range[1] <= 1:
            raise ValueError("window_range must be two shares between 0 and 1, the first no larger")
        return self

    @model_validator(mode="after")
    def _the_graph_is_of_these_weights(self) -> GrpoRecipe:
        for name in ("generator_batch", "checkpointing", "sharded"):
            if self.keep_graph and getattr(self, name):
                raise ValueError(f"keep_graph keeps what {name} would save the memory of: leave one of them out")
        if self.keep_graph and self.updates > 1:
            raise ValueError(f"keep_graph is for one update a step, and updates is {self.updates}")
        return self

    def check(self, generator: Generator) -> None:
        """Raises InputError where the window does not fit the schedule, or the generator is of another kind."""
        if self.window > generator.num_steps - 1:
            raise InputError(
                f"window is {self.window}, and {generator.num_steps} steps have {generator.num_steps - 1} that can be "
                "random (the last cannot).",
                "Lower window or raise num_inference_steps.",
            )
        refuse_kind(generator, self.kind)


def train_grpo(
    generator: Trainable,
    rewards: Sequence[Reward],
    prompts: Sequence[str | Prompt],
    recipe: GrpoRecipe,
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    probe: Callable[[], Figures] = dict,
    bank: Sequence[References] | None = None,
) -> Path:
    """Flow-GRPO on `prompts`. bank: their references, where a reward is judged against them. See `train` for the
    rest.

    Raises InputError as `GrpoRecipe.check` does.
    """
    recipe.check(generator)

    def updates(step: int, _: Ema) -> Iterator[Figures]:
        return grpo_updates(generator, rewards, prompts, recipe, seed, step, bank)

    return train(generator, updates, recipe, folder=folder, metrics=metrics, title="GRPO", seed=seed, probe=probe)


def grpo_updates(
    generator: Trainable,
    rewards: Sequence[Reward],
    prompts: Sequence[str | Prompt],
    recipe: GrpoRecipe,
    seed: int,
    step: int,
    bank: Sequence[References] | None = None,
) -> Iterator[Figures]:
    """One iteration: sample, ask, and for each of its updates leave the gradient on the weights and say how it went.

    Of several processes each takes its share of every update's prompts.
    """
    prompts = as_prompts(prompts)
    draws = sample_step(step, len(prompts), recipe, seed)
    if recipe.shared_prefix:  # then a group has one noise, which none of its references may have
        draws = draws._replace(seeds=[own[:1] * recipe.group_size for own in draws.seeds])
    low, high = (round(share * (generator.num_steps - 1)) for share in recipe.window_range)
    last = generator.num_steps - 1 - recipe.window
    start = int(draws.rng.integers(min(low, last), min(high, last) + 1))
    noising = Noising(recipe.kind, recipe.noise_level, start, recipe.window, recipe.shared_prefix)
    mine = local_shard(draws.chosen, recipe.updates)
    batches = recipe.batches(len(mine))
    parts = [rows for batch in batches for rows in batch]
    asked, seeds = [prompts[i] for i in mine], local_shard(draws.seeds, recipe.updates)
    graph = memory_for(*GRAPH) if recipe.keep_graph else nullcontext()
    with graph:
        drawn = sde_rollouts(
            generator, asked, seeds, noising, draws.noise_rng, parts, recipe.updates, recipe.keep_graph
        )
    found = judged(rewards, prompts, drawn.pixels, draws, recipe, bank)
    place = 0  # of the part among all
    advantage = local_shard(found.advantages.values.flatten(), recipe.updates).to(drawn.x.device)
    for batch in batches:
        n = sum(len(rows) for rows in batch) * recipe.window
        told = {"loss": 0.0, "kl": 0.0, "ratio_away": 0.0, "clipped": 0.0}
        with recipe.learning(generator):
            for rows in batch:
                condition, share = drawn.told[place], len(rows) / n
                for k, at in enumerate(range(start, start + recipe.window)):
                    x_t = drawn.x[k][rows]
                    if recipe.keep_graph:
                        now = drawn.steps[k][place]
                    else:
                        now = noising.step(generator, x_t, at, generator.predict(x_t, at, condition))
                    new, old = log_prob(drawn.x[k + 1][rows], now), drawn.log_prob[k][rows]
                    loss = surrogate(new, old, advantage[rows], recipe.clip_range)
                    if recipe.kl:
                        with generator.as_before_training(), torch.no_grad():
                            base = noising.step(generator, x_t, at, generator.predict(x_t, at, condition))
                        away = kl_to_base(now, base)
                        loss = loss + recipe.kl * away
                        told["kl"] += share * away.item()
                    (share * loss).backward()
                    ratio = torch.exp(new.detach() - old)
                    told["loss"] += share * loss.item()
                    told["ratio_away"] += share * (ratio - 1).abs().mean().item()
                    told["clipped"] += share * ((ratio - 1).abs() > recipe.clip_range).float().mean().item()
                place += 1
        yield {**summary(found), **told, "window_start": start}
