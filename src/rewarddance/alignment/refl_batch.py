"""What a step of ReFL draws: prompts, noises and references, where its gradient begins, and which frames are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rewarddance.alignment.failed_groups import Faults, drawn_apart
from rewarddance.alignment.references import Reference, References
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.surrogate import Route, times_of
from rewarddance.alignment.train import Trainable, prompts_of_step
from rewarddance.data.frame_sampling import one_of_each
from rewarddance.errors import InputError
from rewarddance.generators.sampling import rollout
from rewarddance.protocols import Generator
from rewarddance.runtime.process_group import local_shard
from rewarddance.types import OtherPixels, PixelBatch, Pixels, Prompt


@dataclass(frozen=True, eq=False)
class ReflBatch:
    """What a step draws: this process's share of its B samples. All processes draw alike.

    references, seeds: of each sample, the one it is judged against and the seed of its noise.
    denoised: references on which the denoising loss is taken.
    first: the step at which the gradient begins.
    rng, noise_rng: for what is drawn later in the step.
    route: of a surrogate.
    renoised: seeds of each sample's noised copies [b][n], which follow it in references and seeds.
    """

    references: list[Reference]
    seeds: list[int]
    denoised: list[Reference]
    first: int
    rng: np.random.Generator
    noise_rng: torch.Generator
    route: Route | None = None
    renoised: list[list[int]] = field(default_factory=list)

    @property
    def prompts(self) -> list[Prompt]:
        return [reference.prompt for reference in self.references]


def draw_batch(bank: Sequence[References], recipe: ReflRecipe, generator: Generator, seed: int, step: int) -> ReflBatch:
    """Prompts, noises, references and the gradient's step. All depends on (seed, step) alone."""
    rng = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = [bank[i] for i in prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)]
    group = [references for references in chosen for _ in range(recipe.group_size)]
    seeds = rng.integers(2**31, size=len(group)).tolist()
    low, high = recipe.first_grad_steps(generator.num_steps)
    first, route, renoised = int(rng.integers(low, high + 1)), None, []
    if recipe.surrogate is not None:
        route = recipe.surrogate.route(times_of(generator), rng)
        first = route.first
        if recipe.surrogate.noised_copies:
            renoised = rng.integers(2**31, size=(len(group), recipe.surrogate.noised_copies)).tolist()
    references = [of_prompt.at(of_prompt.choose(rng, noise)) for of_prompt, noise in zip(group, seeds, strict=True)]
    denoised = references
    if recipe.reference_batch is not None and recipe.reference_batch < len(group):
        denoised = [references[i] for i in sorted(rng.permutation(len(group))[: recipe.reference_batch].tolist())]
    copies, own, renoised = recipe.copies, local_shard(denoised), local_shard(renoised) if renoised else []
    references = [reference for reference in local_shard(references) for _ in range(copies)]
    seeds = [noise for noise in local_shard(seeds) for _ in range(copies)]
    return ReflBatch(references, seeds, own, first, rng, noise_rng, route, renoised)


def sampled(
    generator: Trainable, batch: ReflBatch, bank: Sequence[References], *, check_first: bool
) -> tuple[Tensor, ReflBatch, Faults]:
    """The batch's latents where its gradient begins, the batch as it was drawn, and which samples are of no use.

    Those are of prompts that the generator cannot read: another prompt with a reference of its own stands there.
    """

    def draw(prompts: list[Prompt]) -> Tensor:
        if not batch.renoised:
            return rollout(generator, prompts, batch.seeds, batch.first).x_t
        copies = len(batch.renoised[0]) + 1
        x_t = rollout(generator, prompts[::copies], batch.seeds[::copies], batch.first).x_t
        return with_noised_copies(generator, x_t, prompts[::copies], batch.renoised)

    spare = (references.prompt for references in bank)
    x_t, prompts, faults = drawn_apart(generator, batch.prompts, draw, spare=spare, check_first=check_first)
    if not faults:
        return x_t, batch, faults
    instead = next(references.at(0) for references in bank if references.prompt is prompts[next(iter(faults))])
    unread = {id(batch.references[number].prompt) for number in faults}

    def readable(references: Iterable[Reference]) -> list[Reference]:
        return [instead if id(reference.prompt) in unread else reference for reference in references]

    return x_t, replace(batch, references=readable(batch.references), denoised=readable(batch.denoised)), faults


@torch.no_grad()
def with_noised_copies(
    generator: Trainable, x_t: Tensor, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
) -> Tensor:
    """Each sample's latent before the last step [b, ...], followed by alpha x_0 + sigma eps of its own x_0 and n new
    noises: [b * (1 + n), ...] (DRaFT-LV, 2309.17400)."""
    last = generator.num_steps - 1
    alpha, sigma = generator.scales(last)
    x_0 = generator.advance(x_t, generator.predict(x_t, last, generator.encode(prompts)), last)
    copies = [x_t]
    for of_copy in zip(*seeds, strict=True):
        eps = [torch.randn(x_t.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in of_copy]
        copies.append(alpha * x_0 + sigma * torch.stack(eps).to(x_0))
    return torch.stack(copies, 1).flatten(0, 1)


def judged_frames(
    generator: Trainable, references: Sequence[Pixels], wanted: int | None, draw: np.random.Generator
) -> tuple[Callable[[Tensor], PixelBatch], Sequence[OtherPixels]]:
    """What decodes the frames that are judged, and the same frames of the references; all of them where wanted is None.

    They are one at random out of each of `wanted` equal stretches: were they always the same, a generator might learn
    to be good in these alone. Raises InputError where the videos have fewer.
    """
    if wanted is None:
        return generator.decode, references
    if wanted > (length := len(references[0])):
        raise InputError(f"refl.frames is {wanted}, and the videos have {length} frames.", "Lower it.")
    numbers = one_of_each(length, wanted, draw)
    return partial(decode_frames, generator, numbers), select_frames(references, numbers)


def decode_frames(generator: Trainable, numbers: Sequence[int], x_0: Tensor) -> PixelBatch:
    """Some frames of what x_0 is decoded to; no more is decoded than they need, where the generator knows that."""
    decode = getattr(generator, "decode_frames", None)
    return decode(x_0, numbers) if decode else generator.decode(x_0)[:, list(numbers)]


def select_frames(videos: Sequence[Pixels], numbers: Sequence[int]) -> list[OtherPixels]:
    """These frames of each video; one tensor for what is one, so that it is encoded once."""
    selected = {id(video): video[list(numbers)] for video in videos}
    return [selected[id(video)] for video in videos]
