"""A key that the chosen algorithm does not use is refused by name: an option that does nothing is a wrong result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rewarddance.alignment.algorithms import ALGORITHMS
from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.runtime.config import keep_recipe, load_recipe, parse_recipe

RUN = {"generator": "g", "prompts": "p.txt", "output": "o"}
ASKING = sorted(ALGORITHMS.keys() - {"refl", "dpo"})
TWO = {"a": {"judge": "x"}, "b": {"judge": "y"}}


def run(**keys: Any) -> AlignRun:
    judge = {} if keys.get("algorithm") == "dpo" or "rewards" in keys else {"judge": "j"}
    return parse_recipe(AlignRun, RUN | judge | keys, "the test")


@pytest.mark.parametrize("algorithm", [*ASKING, "dpo"])
def test_settings_of_references_are_refused_where_there_are_none(algorithm):
    with pytest.raises(InputError, match=f"references are for refl.*{algorithm} has none here"):
        run(algorithm=algorithm, references={"candidates": 8})


@pytest.mark.parametrize("algorithm", ASKING)
def test_settings_of_references_are_taken_where_samples_are_judged_by_them(algorithm):
    given = run(algorithm=algorithm, references={"candidates": 8}, **{algorithm: {"judging": "references"}})
    assert given.references.candidates == 8
    assert run(references={"candidates": 8}).asks_references and not run(algorithm=algorithm).asks_references


UNUSED = {
    "judge_options": {"algorithm": "dpo", "judge_options": {"kind": "pointwise"}},
    "judge_dtype": {"algorithm": "dpo", "judge_dtype": "bfloat16"},
    "judge_device": {"algorithm": "dpo", "judge_device": "cpu"},
    "judge_sharded": {"algorithm": "dpo", "judge_sharded": True},
    "offload": {"algorithm": "dpo", "offload": ["judge"]},
    "judge_options are of": {"rewards": TWO, "judge_options": {"kind": "pointwise"}},
    "criteria_average": {"rewards": {"a": {"judge": "x", "criteria_average": "probability"}}},
    "refl.gate": {"refl": {"gate": False}},
    "cap": {"refl": {"loss": "linear", "cap": 0.5}},
    "refresh_from": {"refl": {"refresh_from": "current"}},
    "decay_rise": {"algorithm": "nft", "nft": {"ema_decay": 0, "decay_rise": 0.1}},
    "clip_range": {"algorithm": "awm", "awm": {"clip_range": 0.2}},
    "cannot stop": {"refl": {"alarms": {"stop_on": ["drift"], "off": ["drift"]}}},
    "cannot ring here: there is no held-out": {"refl": {"alarms": {"stop_on": ["held_out"]}}},
    "cannot ring here: there are not several": {"refl": {"alarms": {"stop_on": ["collapse", "traded"]}}},
    "cannot ring here: it compares two windows of 16 steps": {"refl": {"steps": 31, "alarms": {"stop_on": ["drift"]}}},
    "cannot ring here: group_size is 1": {"refl": {"group_size": 1, "alarms": {"stop_on": ["diversity_within"]}}},
    "cannot ring here: prompts_per_step is 1": {
        "algorithm": "nft",
        "nft": {"prompts_per_step": 1, "alarms": {"stop_on": ["spread_across"]}},
    },
    "cannot ring here: grpo measures": {"algorithm": "grpo", "grpo": {"kl": 0, "alarms": {"stop_on": ["distance"]}}},
    "cannot ring here: dpo draws": {"algorithm": "dpo", "dpo": {"preferences": "x", "alarms": {"stop_on": ["drift"]}}},
    "advantage_clip": {"algorithm": "online_dpo", "online_dpo": {"advantage_clip": 1.0}},
    "online_dpo.spread": {"algorithm": "online_dpo", "online_dpo": {"spread": "global"}},
    "jitter_copies": {"refl": {"jitter_copies": 2}},
    "choice": {"references": {"keep": 1, "choice": "best"}},
    "clip_range says": {"algorithm": "dgpo", "dgpo": {"ema_decay": 0, "decay_rise": None, "clip_range": 0.1}},
    "clip_range says nothing with one": {"algorithm": "grpo", "grpo": {"clip_range": 0.1}},
    "lora_alpha": {"refl": {"lora_rank": 0, "lora_alpha": 8}},
    "distance are off, so most_distance": {"refl": {"alarms": {"off": ["distance"], "most_distance": 0.9}}},
    "alarms.disagreement is of held_out, which cannot ring": {"refl": {"alarms": {"disagreement": 0.5}}},
    "its weight says nothing": {"rewards": {"a": {"judge": "x", "weight": 3.0}}},
    "ddim step": {"algorithm": "grpo", "grpo": {"kind": "ddim", "noise_level": 2.0}},
}


@pytest.mark.parametrize("named", UNUSED)
def test_a_key_that_says_nothing_is_refused_by_name(named):
    with pytest.raises(InputError, match=named):
        run(**UNUSED[named])


USED: list[dict[str, Any]] = [
    {"refl": {"gate": False}, "held_out": "h"},
    {"refl": {"loss": "hinge", "cap": 0.5}},
    {"refl": {"refresh_every": 2, "refresh_from": "current"}},
    {"algorithm": "awm", "awm": {"ema_decay": 0.5, "clip_range": 0.2}},
    {"algorithm": "awm", "awm": {"updates": 2, "clip_range": 0.2}},
    {"algorithm": "dgpo", "dgpo": {"ema_decay": 0}},
    {"algorithm": "dgpo", "dgpo": {"ema_decay": 0, "decay_rise": None, "updates": 2, "clip_range": 0.1}},
    {"algorithm": "online_dpo", "online_dpo": {"spread": "global"}, "rewards": TWO},
    {"refl": {"alarms": {"stop_on": ["held_out", "distance"]}}, "held_out": "h"},
    {"refl": {"alarms": {"stop_on": ["traded"]}}, "rewards": TWO},
    {"algorithm": "grpo", "grpo": {"kl": 0.1, "alarms": {"stop_on": ["distance"]}}},
    {"refl": {"jitter_copies": 2, "jitter_noise": 0.1}},
    {"algorithm": "grpo", "grpo": {"clip_range": 0.1, "updates": 2}},
    {"refl": {"alarms": {"off": ["spread_within"], "least_spread": 0.1}}},
    {"refl": {"alarms": {"disagreement": 0.5}}, "held_out": "h"},
    {"refl": {"steps": 8, "alarms": {"stop_on": ["distance", "spread_within"]}}},
    {"rewards": TWO | {"a": {"judge": "x", "weight": 3.0}}},
    {"rewards": {"a": {"judge": "x", "criteria": "edit", "criteria_average": "probability"}}},
]


@pytest.mark.parametrize("keys", USED, ids=str)
def test_the_same_keys_are_taken_where_they_are_used(keys, tmp_path):
    given = run(**keys)
    keep_recipe(given, tmp_path / "config.yaml")
    keep_recipe(given, tmp_path / "config.yaml")  # all defaults written out say nothing either
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["output"] == str(Path("o"))


TOO_MUCH: list[tuple[str, dict[str, Any]]] = [
    ("refl.prompts_per_step", {"refl": {"prompts_per_step": 10**9}}),
    ("nft.group_size", {"algorithm": "nft", "nft": {"group_size": 10**9}}),
    ("references.candidates", {"references": {"candidates": 10**9}}),
    ("refl.surrogate.noised_copies", {"refl": {"surrogate": {"active": "last", "noised_copies": 10**9}}}),
    ("refl.surrogate.late_bias", {"refl": {"surrogate": {"active": "late", "late_bias": 1e30}}}),
]


@pytest.mark.parametrize(("key", "content"), TOO_MUCH)
def test_what_would_fill_the_memory_with_its_numbers_alone_is_refused(key, content):
    with pytest.raises(InputError, match=f"the key '{key}' .*less than or equal to"):
        run(**content)


def test_a_quickstart_without_nft_is_its_recipe_with_one_key():
    path = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    assert load_recipe(QuickstartRecipe, path, ["nft=null", "refl.loss=linear"]).algorithms == ("refl",)
