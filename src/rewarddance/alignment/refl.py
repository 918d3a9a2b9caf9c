"""ReFL: the gradient of the judge's P("yes") through the decoder and one late denoising step, or a choice of steps.

Paper, section 3 (cap after 2508.21066, regulariser after 2603.23500). A step: draw a batch, roll it out, judge it, and
send the judge's gradient back to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewarddance.alignment.active_steps import ActiveSteps
from rewarddance.alignment.denoising import denoise
from rewarddance.alignment.failed_groups import FailedGroups, Kept, Part
from rewarddance.alignment.group_rewards import joint_figures
from rewarddance.alignment.joint import joint_judge, rewards_of
from rewarddance.alignment.picture_loss import judge_batch, margin_figures
from rewarddance.alignment.references import ReadAhead, References
from rewarddance.alignment.refl_batch import ReflBatch, draw_batch, judged_frames, sampled
from rewarddance.alignment.refl_recipe import CheckpointedPart, ReflRecipe
from rewarddance.alignment.relay import LastSteps, decoder_vjp
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment, Figures, Trainable, prompts_of_step
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded
from rewarddance.protocols import RewardModel
from rewarddance.reward.pixel_gradient import checkpointing
from rewarddance.runtime.memory import memory_for
from rewarddance.types import Prompt

SAMPLING = "the generator, while it samples", "Lower refl.prompts_per_step or refl.group_size."
GENERATOR = "the generator", "Lower refl.generator_batch, or add generator to refl.checkpointing."
"""What is said where a part runs out of memory (the decoder's is in `relay`, the judge's in `picture_loss`)."""


def refl_updates(run: Alignment, step: int, ema: Ema) -> Iterator[Figures]:
    """One update a step, on references that are made anew where `refresh_every` says so."""
    assert isinstance(run.recipe, ReflRecipe) and run.bank is not None
    recipe, bank = run.recipe, run.bank
    if recipe.refresh_every and bank.redraw is None:
        raise InputError("refl.refresh_every is set, and nothing says how the bank is made anew.", "Leave it out.")
    due = step - step % recipe.refresh_every if recipe.refresh_every else 0
    if due != bank.step:
        with ema.applied() if recipe.refresh_from == "ema" else nullcontext():
            bank.move_to(due, now=due == step)
    yield refl_step(
        run.generator,
        joint_judge(run.rewards),
        bank.references,
        recipe,
        seed=run.seed,
        step=step,
        held_out=run.held_out,
        failed=run.failed,
    )


def refl_step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    *,
    seed: int,
    step: int,
    held_out: RewardModel | None = None,
    failed: FailedGroups | None = None,
) -> Figures:
    """One step's samples, verdicts, loss and backward; the gradient is left on the weights. Returns what to log.

    judge: several rewards are a `JointReward`, whose gradients in pixels are normalised each by itself (`blend`).
    held_out: a judge that is asked beside the first and gives no gradient; see `ReflRecipe.gate`. failed: takes down
    the groups that have no verdict, of which there is no gradient. Of several processes each takes its share of the
    samples, and the mean of their gradients is the step's; so are the means of their figures. Raises InputError naming
    the part that ran out of memory, and what to lower; for failed groups see `FailedGroups.add`.
    """
    batch = draw_batch(bank, recipe, generator, seed, step)
    references = ReadAhead(batch.references)
    recipe = recipe.model_copy(update={"group_size": recipe.group_size * recipe.copies})
    with checkpointed_parts(generator, judge, recipe.checkpointing):
        with memory_for(*SAMPLING):
            x_t, drawn, unread = sampled(generator, batch, bank, check_first=recipe.sharded)
        parts = torch.arange(len(x_t)).split(recipe.generator_batch or len(x_t))
        conditions = [encoded(generator, drawn.prompts, rows) for rows in parts]
        last_steps = way_back(generator, conditions, parts, batch, recipe.last_steps)
        with memory_for(*GENERATOR):
            x_0 = last_steps.forward(x_t)

        decode, pictures = judged_frames(generator, references.pictures(), recipe.frames, batch.rng)
        take_down = partial((failed or FailedGroups()).add, step)
        ask = partial(judge_batch, judge, held_out, batch, pictures, recipe, unread=unread, take_down=take_down)
        decoding = getattr(generator, "decoding", nullcontext)
        may_wait = not getattr(generator, "offloads_decoder", False)
        judged, gradient = decoder_vjp(decode, x_0, ask, recipe.decode_batch or len(x_0), decoding, may_wait)
        if judged.kept is not None:
            kept = int(judged.kept.everywhere.nonzero()[0]) // recipe.group_size
            instead = bank[prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)[kept]].prompt
            leave_out(last_steps, generator, drawn.prompts, judged.kept, instead)
            gradient[~judged.kept.local.to(gradient.device)] = 0  # their pictures may not be finite
        with memory_for(*GENERATOR):
            distance = last_steps.backward(gradient, recipe.velocity_mse if recipe.asks_base else None)
        figures = judged.figures
        figures |= {} if distance is None else {"velocity_mse": distance}
        if recipe.reference_mse:  # a graph of its own, after the reward's is gone
            with memory_for(*GENERATOR), generator.without_guidance():
                figures["reference_mse"] = denoise(generator, drawn, recipe, like=x_t)
    weights = {"velocity_mse": recipe.velocity_mse, "reference_mse": recipe.reference_mse}
    loss = judged.loss + sum(weight * figures.get(name, 0.0) for name, weight in weights.items())
    figures |= {"loss": loss, "stop": batch.first}
    of_each = [margin_figures(margins, recipe.group_size) for margins in judged.margins]
    return figures | joint_figures(rewards_of(judge), of_each)


def way_back(
    generator: Trainable, conditions: Sequence[Any], parts: Sequence[Tensor], batch: ReflBatch, last_steps: int
) -> LastSteps:
    """What the gradient goes through on its way from x_0 to the weights."""
    if batch.route is not None:
        return ActiveSteps(generator, conditions, parts, batch.route)
    return LastSteps(generator, conditions, parts, batch.first, last_steps)


def leave_out(
    last_steps: LastSteps, generator: Trainable, prompts: Sequence[Prompt], kept: Kept, instead: Prompt
) -> None:
    """Go back through the samples that are left alone. instead: a prompt of theirs, where one goes along (`Part`)."""
    prompts = [prompt if is_kept else instead for prompt, is_kept in zip(prompts, kept.local.tolist(), strict=True)]
    parts = [Part.of(rows, kept.local) for rows in last_steps.parts]
    conditions = [encoded(generator, prompts, part.rows) for part in parts]
    shares = [part.count * kept.weight for part in parts]
    last_steps.replace_parts([part.rows for part in parts], conditions, shares, without=~kept.local)


@contextmanager
def checkpointed_parts(generator: Trainable, judge: RewardModel, parts: Sequence[CheckpointedPart]) -> Iterator[None]:
    """Within the block these parts keep their layers' inputs only."""
    network, decoder = "generator" in parts, "decoder" in parts
    with ExitStack() as stack:
        if network or decoder:
            stack.enter_context(generator.checkpointed(network, decoder))
        if "judge" in parts:
            for part in {id(reward.judge): reward.judge for reward in rewards_of(judge)}.values():
                stack.enter_context(checkpointing(part))
        yield
