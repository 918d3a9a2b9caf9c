"""An iteration of Flow-GRPO: ours against the plain one, in one process, on the bundled generator with a LoRA.

Plain: guidance by two branches, 9 of 10 steps random and trained, old log-probabilities computed again before the
update. Ours: no guidance, a window of 2 random steps, the steps before it taken once a group, log-probabilities and the
window's graph kept from the rollout. The judge is free, so that the generator's part is what is measured.

python benchmarks/grpo_iteration.py    about 1 minute on 2 cores; the last line is JSON, figure name to number
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from judges import flops, interleaved

from rewarddance.alignment.flow_grpo import GrpoRecipe, grpo_updates, surrogate
from rewarddance.alignment.group_rewards import Reward, advantages, scores
from rewarddance.alignment.random_steps import RandomWindow, log_prob
from rewarddance.alignment.train import Alignment
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.runtime.allocator import keep_freed_memory
from rewarddance.types import Question, Verdict

PROMPTS = ["a red circle", "two small blue crosses", "a green square above a white circle", "three red squares"]
STEPS, GROUP = 10, 6


def brightness(questions: Sequence[Question]) -> Verdict:
    return Verdict(torch.stack([question.candidate.mean() for question in questions]))


brightness.needs_reference = False  # type: ignore[attr-defined]


def plain_iteration(generator: PipelineGenerator) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    window = RandomWindow("flow", 0.7, 0, STEPS - 1)
    with torch.no_grad():
        condition, x_t = generator.encode(prompts), generator.init_noise(range(len(prompts)))
        kept = [x_t]
        for step in range(STEPS - 1):
            following = window.distribution(generator, x_t, step, condition)
            x_t = following.mean + following.deviation * torch.randn(x_t.shape)
            kept.append(x_t)
        x_t = generator.advance(x_t, generator.predict(x_t, STEPS - 1, condition), STEPS - 1)
        groups = [list(group) for group in generator.decode(x_t).unflatten(0, (len(PROMPTS), GROUP))]
        advantage = advantages(scores(Reward(brightness, "alone"), PROMPTS, groups).values).values.flatten()
        old = [log_prob(kept[k + 1], window.distribution(generator, kept[k], k, condition)) for k in range(STEPS - 1)]
    for k in range(STEPS - 1):
        now = window.distribution(generator, kept[k], k, condition)
        (surrogate(log_prob(kept[k + 1], now), old[k], advantage, 1e-4) / (STEPS - 1)).backward()


def our_iteration(
    generator: PipelineGenerator, window: int = 2, shared_prefix: bool = True, keep_graph: bool = True
) -> None:
    recipe = GrpoRecipe(
        prompts_per_step=len(PROMPTS), group_size=GROUP, window=window, window_range=(0.3, 0.3), kl=0.0,
        shared_prefix=shared_prefix, keep_graph=keep_graph,
    )  # fmt: skip
    list(grpo_updates(Alignment(generator, [Reward(brightness, "alone")], PROMPTS, recipe), step=0))


def main() -> None:
    keep_freed_memory()
    guided, free = (load_generator("shapeworld-generator", STEPS, scale) for scale in (3.0, None))
    for generator in (guided, free):
        generator.add_lora(16, 16)
    variants = {
        "plain": lambda: plain_iteration(guided),
        "no_recompute_no_guidance_all_steps": lambda: our_iteration(free, STEPS - 1, False, False),
        "window": lambda: our_iteration(free, 2, False, False),
        "shared_prefix": lambda: our_iteration(free, 2, True, False),
        "ours": lambda: our_iteration(free),
    }
    operations = {name: flops(variant) for name, variant in variants.items()}
    best = interleaved(variants, rounds=5)
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    for name in variants:
        figures[f"{name}_seconds"] = round(best[name], 3)
        figures[f"{name}_time_ratio"] = round(best["plain"] / best[name], 2)
        figures[f"{name}_flop_ratio"] = round(operations["plain"] / operations[name], 2)
    figures |= {"time_ratio": figures["ours_time_ratio"], "flop_ratio": figures["ours_flop_ratio"]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
