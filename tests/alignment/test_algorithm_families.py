"""Every way to align takes two steps on every family of generators, or is refused by name."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BrightnessJudge
from tiny_pipelines import fresh, frozen, pipeline_folder, prompts_of

from rewarddance.alignment.algorithms import ALGORITHMS, algorithm_of, align_generator
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, References, build_references
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.surrogate import PRESETS
from rewarddance.alignment.train import Alignment
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import ADAPTERS, load_generator
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference

LOOP = {"steps": 2, "group_size": 2, "learning_rate": 1e-3, "lora_rank": 2, "lora_alpha": 2}
SHORT = {"flowbp_sparse": {"count": 2}, "flowbp_bridge": {"count": 3}, "flowbp_lagrange": {"count": 2}}
"""Of three steps, which these pipelines take, the published counts are too many."""
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "refl": ("refl", {"loss": "linear"}),
    "draft_k": ("refl", {"loss": "linear", "last_steps": 2}),
    **{name: ("refl", {"surrogate": {"like": name, **SHORT.get(name, {})}, "loss": "linear"}) for name in PRESETS},
    **{kind: ("grpo", {"kind": kind, "window": 1}) for kind in ("flow", "dance", "cps", "precise", "ddim")},
    "guard": ("grpo", {"guard": True, "window": 1}),
    **{name: (name, {}) for name in ("nft", "awm", "dgpo", "crd", "online_dpo", "dpo")},
}
DIFFUSION = {"sd15-ddim", "sdxl-euler"}
"""No flows."""
ENCODED = DIFFUSION | {"sd3", "flux-dev", "flux-kontext", "z-image"}
"""Whose pictures Diffusion-DPO can learn."""
ALL_WAYS = ("sd3", "sd15-ddim", "wan")
"""A flow, a diffusion, and videos."""
FORWARD = ("nft", "awm", "dgpo", "crd", "online_dpo")
"""They ask a generator for the same things, and differ in their losses."""
FEWER = ("refl", "leapalign", "ddim", "flow", "dpo")
"""On the other families, beside two of FORWARD: what differs beside these is no more than numbers to a generator."""
TAKEN = (
    *("sd15-ddim", "sdxl-euler", "sd3", "flux-dev", "flux2-klein", "qwen-image", "z-image", "wan", "ltx"),
    *("wan-i2v", "ltx-i2v", "flux-kontext", "qwen-image-edit", "qwen-image-edit-plus"),
)
"""One of each class of generators."""


def ways_of(family: str) -> tuple[str, ...]:
    """All, or on the families that are not in ALL_WAYS some; each of FORWARD has its turn."""
    if family in ALL_WAYS:
        return tuple(WAYS)
    turn = TAKEN.index(family)
    return (*FEWER, *(FORWARD[(2 * turn + more) % len(FORWARD)] for more in (0, 1)))


@functools.cache
def bank_of(family: str, folder: Path) -> list[References]:
    recipe = ReferenceRecipe(candidates=2, keep=1)
    return build_references(fresh(family), BrightnessJudge(), prompts_of(family), recipe, folder=folder, seed=0)


def refusal(family: str, way: str) -> str:
    """What is said where a family cannot do it; "" where it can."""
    algorithm, changes = WAYS[way]
    if algorithm == "grpo" and changes.get("kind") != "ddim" and family in DIFFUSION:
        return "the generator is no flow"
    return f"pictures are not encoded for a {frozen(family).kind}" if way == "dpo" and family not in ENCODED else ""


@pytest.fixture(scope="module")
def banks(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("banks")


def test_every_algorithm_and_every_class_of_generators_is_among_them():
    assert {algorithm for algorithm, _ in WAYS.values()} == set(ALGORITHMS)
    turns = Counter(way for family in TAKEN for way in ways_of(family))
    assert {WAYS[way][0] for way, times in turns.items() if times >= 6} == set(ALGORITHMS)
    kinds = {frozen(family).kind for family in TAKEN}
    assert kinds == set(ADAPTERS) - {"CogView4Pipeline"}, "the bundled generator is CogView4's, and is trained all over"


@pytest.mark.parametrize("family", TAKEN)
def test_every_algorithm_aligns_the_family_or_is_refused_by_name(tmp_path, banks, family):
    size = {"prompts_per_step": 2 if family in ALL_WAYS else 1}
    for way in ways_of(family):
        algorithm, changes = WAYS[way]
        content = LOOP | size | changes | ({"preferences": "votes.jsonl"} if way == "dpo" else {})
        recipe: Any = parse_recipe(ALGORITHMS[algorithm].recipe, content, way)
        generator, prompts = fresh(family), prompts_of(family)
        rewards, bank, votes = [Reward(BrightnessJudge(), "group")], None, None
        if algorithm == "refl":
            bank, rewards = ReferenceBank(bank_of(family, banks / family)), [Reward(BrightnessJudge(), "references")]
        if algorithm == "dpo":
            pictures = torch.rand(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
            rewards, votes = [], [Preference(prompt, pictures[0], pictures[1], 1.0) for prompt in prompts]
        run = Alignment(generator, rewards, prompts, recipe, 3, bank, preferences=votes)
        folder = tmp_path / way
        if said := refusal(family, way):
            with pytest.raises(InputError, match=said):
                align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
            continue
        align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
        moved = [weight for name, weight in generator.network.named_parameters() if "lora_B" in name]
        assert moved and all(torch.isfinite(weight).all() for weight in moved), (family, way)
        assert any(weight.any() for weight in moved), f"nothing of {family} learned by {way}"


@pytest.mark.parametrize("algorithm", FORWARD)
def test_guidance_is_in_the_samples_and_not_in_what_is_fitted_to_them(monkeypatch, algorithm):
    generator = load_generator(str(pipeline_folder("sd3")), 3, 3.0, height=32, width=48)
    ema = Ema(generator.add_lora(2, 2), 0.5)
    recipe: Any = parse_recipe(ALGORITHMS[algorithm].recipe, LOOP | {"prompts_per_step": 1, "levels": 1}, algorithm)
    predict, guided = generator.predict, []

    def noted(*asked: Any) -> torch.Tensor:
        guided.append(generator.branch_scale is not None)
        return predict(*asked)

    monkeypatch.setattr(generator, "predict", noted)
    run = Alignment(generator, [Reward(BrightnessJudge(), "group")], prompts_of("sd3"), recipe, 3)
    (figures,) = algorithm_of(recipe).updates(run, 0, ema)
    assert guided == [True] * 3 + [False] * (len(guided) - 3) and len(guided) > 3
    assert all(np.isfinite(value) for value in figures.values())
