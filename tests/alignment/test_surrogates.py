"""ReFL's surrogates: each gradient is its paper's formula, written out; and each aligns as ReFL does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from several import in_processes
from test_alignment_processes import align as align_shared
from test_alignment_processes import assert_alike
from test_failed_groups import BAD, Blind, Failing, gradient
from test_refl_tail import PROMPTS, bank_of, flow
from test_refl_training import BANK, RECIPE
from tiny import BrightnessJudge, TinyGenerator, judge_folder
from tiny_alignment import WatchedJudge, align_by_refl, assert_same_run, logged, moved, with_lora
from tiny_pipelines import fresh

from rewarddance.alignment.active_steps import ActiveSteps
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_batch import with_noised_copies
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.relay import LastSteps
from rewarddance.alignment.surrogate import PRESETS, Route, Surrogate, Term, quadrature, times_of
from rewarddance.errors import InputError
from rewarddance.generators.sampling import rollout
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Prompt

STEPS = 8


def preset(name: str, **changes) -> Surrogate:
    return Surrogate.model_validate({"like": name, **changes})


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradients_of(route_or_steps, generator, weights, at_once: int = 3):
    """What is seen of three samples, and the weights' gradients of the mean square distance to an aim."""
    for weight in weights:
        weight.grad = None
    parts = torch.arange(3).split(at_once)
    conditions = [generator.encode([PROMPTS[int(row)] for row in rows]) for rows in parts]
    if isinstance(route_or_steps, Route):
        way, first = ActiveSteps(generator, conditions, parts, route_or_steps), route_or_steps.first
    else:
        first, length = route_or_steps
        way = LastSteps(generator, conditions, parts, first, length)
    x_0 = way.forward(rollout(generator, PROMPTS, [3, 1, 4], first).x_t)
    aim = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(9))
    away = way.backward(2 * (x_0 - aim) / aim.numel(), 0.3)
    return x_0, away, [weight.grad.clone() for weight in weights]


def assert_close(found, expected, size: float = 1e-5) -> None:
    scale = max(float(one.abs().max()) for one in expected)
    assert scale > 0
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= size * scale


@pytest.mark.parametrize("make", [flow, lambda: fresh("sd15-ddim"), lambda: fresh("sdxl-euler")])
@pytest.mark.parametrize(("length", "at_once"), [(1, 2), (2, 3), (3, 2)])
def test_refl_and_draft_k_are_routes_too(make, length, at_once):
    generator = make()
    torch.manual_seed(1)
    weights, end, times = moved(generator.add_lora(2, 4), 0.2), generator.num_steps, times_of(generator)
    first = end - length
    steps = range(first, end)
    terms = [Term(step, times[step + 1] - times[step], 1.0) for step in steps]
    route = Route(tuple(terms), end) if length > 1 else Route((Term(first, -times[first]),), first)
    x_0, away, found = gradients_of(route, generator, weights, at_once)
    x_0_too, away_too, expected = gradients_of((first, length), generator, weights, at_once)
    torch.testing.assert_close(x_0, x_0_too, rtol=1e-5, atol=1e-5)
    assert away == pytest.approx(away_too, rel=1e-5)
    # DDIM's schedule may end a little above 0, where the route ends at 0
    assert_close(found, expected, 2.5e-2 if type(generator._scheduler).__name__ == "DDIMScheduler" else 1e-5)


def trajectory(generator, condition):
    """Latents and velocities of a rollout."""
    x_t, latents, velocities = generator.init_noise([3, 1, 4]), [], []
    with torch.no_grad():
        for step in range(STEPS):
            latents.append(x_t)
            velocities.append(generator.predict(x_t, step, condition))
            x_t = generator.advance(x_t, velocities[-1], step)
    return [*latents, x_t], velocities


def euler(x, velocities, sigmas, steps, active, scale=1.0):
    """Euler's steps, of which the active velocities alone carry a gradient."""
    for i in steps:
        v = active.get(i, velocities[i])
        x = x + (sigmas[i + 1] - sigmas[i]) * (v.detach() + scale * (v - v.detach()))
    return x


def written_out(name: str, generator, route: Route):
    """The surrogate as the paper, or FlowBP's code for it, writes it: what is seen, and the samples' weights."""
    condition, sigmas = generator.encode(PROMPTS), generator.sigmas
    x, v = trajectory(generator, condition)

    def predict(step, x_t=None):
        return generator.predict(x[step] if x_t is None else x_t, step, condition)

    steps = [term.step for term in route.terms]
    if name == "drtune":  # x_{t-1} = x_t + h v(sg x_t), v with a gradient at spaced steps
        active = {i: predict(i) for i in steps}
        x_stop = euler(x[0], v, sigmas, range(route.stop), active)
        return x_stop - sigmas[route.stop] * active.get(route.stop, v[route.stop]), None
    if name == "flowbp_sparse":
        widths = [a - b for a, b in itertools.pairwise(sigmas)]
        scale = 1 + 0.5 * (sum(widths) / sum(widths[i] for i in steps) - 1)
        return euler(x[0], v, sigmas, range(STEPS), {i: predict(i) for i in steps}, scale), None
    j = next(term.step for term in route.terms if term.share)
    if name == "flowbp_bridge":
        x_j = euler(x[0], v, sigmas, range(j), {i: predict(i) for i in steps if i < j})
        mixed = 0.5 * x_j + 0.5 * x_j.detach()
        active = {i: predict(i, mixed if i == j else None) for i in steps if i >= j}
        return euler(x_j, v, sigmas, range(j, STEPS), active), None
    k, share, least = steps[0], {"leapalign": 0.3, "flowbp_lagrange": 0.1}[name], preset(name).least_distance
    leaps = [dict(quadrature(sigmas, a, b, preset(name).count)) for a, b in ((k, j), (j, STEPS))]
    x_j_hat = x[k]
    for node, weight in leaps[0].items():
        scale = 1.0 if node == k else 0.25
        u = predict(node) if node in steps else v[node]
        x_j_hat = x_j_hat + weight * (u.detach() + scale * (u - u.detach()))
    x_j = x_j_hat + (x[j] - x_j_hat).detach()
    x_0_hat = x_j
    for node, weight in leaps[1].items():
        scale = 1.0 if node == j else 0.25
        u = predict(node, share * x_j + (1 - share) * x_j.detach() if node == j else None) if node in steps else v[node]
        x_0_hat = x_0_hat + weight * (u.detach() + scale * (u - u.detach()))
    distances = [(hat - real).abs().flatten(1).mean(1).detach().clamp_min(least)
                 for hat, real in ((x_j_hat, x[j]), (x_0_hat, x[STEPS]))]  # fmt: skip
    return x_0_hat + (x[STEPS] - x_0_hat).detach(), 1 / sum(distances)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "draft_lv"])
@pytest.mark.parametrize("at_once", [3, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_presets_gradient_is_its_formula_in_plain_autograd(name, at_once, seed):
    generator = TinyGenerator(STEPS)
    torch.manual_seed(1)
    weights = moved(generator.add_lora(2, 4), 0.2)
    route = preset(name).route(times_of(generator), np.random.default_rng(seed))
    seen, away, found = gradients_of(route, generator, weights, at_once)
    x_0, of_samples = written_out(name, generator, route)
    torch.testing.assert_close(seen, x_0.detach(), rtol=1e-4, atol=1e-5)
    aim = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(9))
    towards = 2 * (x_0.detach() - aim) / aim.numel()
    if of_samples is not None:
        assert len(set(of_samples.tolist())) > 1
        towards = towards * of_samples[:, None, None, None]
    far = torch.zeros(())
    x, _ = trajectory(generator, generator.encode(PROMPTS))
    for term in route.terms:  # the distance to the base has paths of its own, which these weights do not have
        v = generator.predict(x[term.step], term.step, generator.encode(PROMPTS))
        with generator.as_before_training():
            far = far + (v - generator.predict(x[term.step], term.step, generator.encode(PROMPTS))).square().mean()
    far = far / len(route.terms)
    assert away == pytest.approx(far.item(), rel=1e-4)
    nested = any(term.share for term in route.terms)
    if not nested:
        assert_close(found, torch.autograd.grad((x_0 * towards).sum() + 0.3 * far, weights))
    else:  # the same without it
        way = ActiveSteps(generator, [generator.encode(PROMPTS)], [torch.arange(3)], route)
        for weight in weights:
            weight.grad = None
        way.forward(x[route.first])
        way.backward(2 * (x_0.detach() - aim) / aim.numel(), 0.0)
        assert_close([weight.grad for weight in weights], torch.autograd.grad((x_0 * towards).sum(), weights))


def test_noised_copies_are_noised_anew_from_each_samples_own_picture():
    generator, _ = with_lora(num_steps=STEPS)
    x_t = rollout(generator, PROMPTS, [3, 1, 4], STEPS - 1).x_t
    prompts = [Prompt(text) for text in PROMPTS]
    found = with_noised_copies(generator, x_t, prompts, [[10, 11], [12, 13], [14, 15]]).unflatten(0, (3, 3))
    alpha, sigma = generator.scales(STEPS - 1)
    x_0 = rollout(generator, PROMPTS, [3, 1, 4], STEPS).x_t
    torch.testing.assert_close(found[:, 0], x_t)
    eps = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(13))
    torch.testing.assert_close(found[1, 2], alpha * x_0[1] + sigma * eps)


# -- draws -------------------------------------------------------------------------------------------------------------


def test_a_leaps_quadrature_integrates_polynomials_of_its_order():
    times = [1.0, 0.9, 0.7, 0.6, 0.45, 0.2, 0.0]
    for order, power in ((1, 0), (2, 1), (3, 2)):
        nodes = quadrature(times, 1, 6, order)
        assert nodes[0][0] == 1 and len(nodes) == order
        exact = (times[6] ** (power + 1) - times[1] ** (power + 1)) / (power + 1)
        assert sum(weight * times[step] ** power for step, weight in nodes) == pytest.approx(exact)
    assert quadrature(times, 4, 5, 3) == ((4, pytest.approx(-0.25)),)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("num_steps", [5, 25])
def test_every_draw_lies_within_the_schedule(name, num_steps):
    times, rng = np.linspace(1, 0, num_steps + 1).tolist(), np.random.default_rng(0)
    drawn = [preset(name).route(times, rng) for _ in range(200)]
    for route in drawn:
        steps = [term.step for term in route.terms]
        assert steps == sorted(set(steps)) and steps[0] >= 0 and steps[-1] < num_steps
        assert steps[-1] <= route.stop <= num_steps and sum(term.coefficient for term in route.terms) < 0
    firsts = {route.first for route in drawn}
    assert len(firsts) > 1 or name == "draft_lv" or num_steps == 5


def test_bridge_has_an_active_step_on_both_sides_of_its_joint():
    rng = np.random.default_rng(0)
    for _ in range(200):
        route = preset("flowbp_bridge").route(np.linspace(1, 0, 9).tolist(), rng)
        (joint,) = [place for place, term in enumerate(route.terms) if term.share]
        assert joint > 0 and len(route.terms) == 5


def test_late_steps_are_likelier_the_larger_the_bias():
    rng, times = np.random.default_rng(0), np.linspace(1, 0, 26).tolist()
    means = [
        np.mean([[t.step for t in preset("flowbp_sparse", late_bias=bias).route(times, rng).terms] for _ in range(300)])
        for bias in (0.0, 1.0, 4.0)
    ]
    assert means[0] == pytest.approx(12, abs=0.6) and means[0] + 2 < means[1] < means[2] - 2


# -- whole steps and runs ----------------------------------------------------------------------------------------------


SMALL = ReflRecipe(prompts_per_step=2, group_size=2, lora_rank=2, loss="margin", velocity_mse=0.1)


@pytest.mark.parametrize("family", ["sd3", "sd15-ddim"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_of_each_preset_on_a_pipeline_gives_a_finite_gradient(family, name):
    generator, judge = fresh(family), load_reward(str(judge_folder()))
    torch.manual_seed(0)
    weights = moved(generator.add_lora(2, 4), 0.2)
    surrogate = preset(name, **({"count": 2} if "count" in PRESETS[name] else {}))
    surrogate = surrogate.model_copy(update={"segments": None, "last_leap": 1.0})  # for schedules of two steps
    recipe = SMALL.model_copy(update={"surrogate": surrogate})
    figures = refl_step(generator, judge, bank_of(generator), recipe, seed=3, step=7)
    assert all(np.isfinite(value) for value in figures.values()) and figures["velocity_mse"] > 0
    gradient_ = torch.cat([weight.grad.flatten() for weight in weights])
    assert torch.isfinite(gradient_).all() and gradient_.abs().max() > 0


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_raises_what_the_judge_rewards(tmp_path, name):
    generator = TinyGenerator(STEPS)
    recipe = RECIPE.model_copy(update={"grad_step_range": (0.5, 1.0), "surrogate": preset(name), "steps": 10})
    align_by_refl(generator, BrightnessJudge(), BANK, recipe, tmp_path)
    rewards = [row["reward"] for row in logged(tmp_path) if row["kind"] == "step"]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.1


class Shifted(TinyGenerator):
    """The exact velocity of x_0 ~ N(0.3, 0.2^2), and one learnt number that is added to it."""

    def predict(self, x_t, step, condition):
        sigma, variance = self.sigmas[step], 0.04
        away = (x_t - (1 - sigma) * 0.3) / ((1 - sigma) ** 2 * variance + sigma**2)
        v = sigma * away - (0.3 + (1 - sigma) * variance * away)
        return v + (self.whole - 0.5 if self.trained else 0)


@pytest.mark.parametrize("name", PRESETS)
def test_on_a_gaussian_each_presets_gradient_vanishes_where_the_mean_is_right(name):
    """The loss is (mean of what is seen - c)^2 / 2: there is a shift that solves it, and descent must end there."""
    generator = Shifted(STEPS)
    (weight,) = generator.train_all()
    prompts, seeds, aim = ["p"] * 32, list(range(32)), 0.8
    # One route for all steps, so that the optimum does not move
    route = preset(name).route(times_of(generator), np.random.default_rng(5))

    def seen() -> ActiveSteps:
        return ActiveSteps(generator, [generator.encode(prompts)], [torch.arange(32)], route)

    for _ in range(120):
        weight.grad = None
        way = seen()
        x_0 = way.forward(rollout(generator, prompts, seeds, route.first).x_t)
        way.backward(torch.full_like(x_0, float(x_0.mean() - aim) / x_0.numel()), 0.0)
        with torch.no_grad():
            weight -= 0.05 * weight.grad.sign() * min(1.0, float((x_0.mean() - aim).abs()) * 4)
    assert x_0.mean().item() == pytest.approx(aim, abs=0.01)


WAYS_BACK = {name: {"grad_step_range": (0.5, 1.0), "surrogate": preset(name)} for name in PRESETS}
WAYS_BACK["draft_k"] = {"grad_step_range": (0.5, 1.0), "last_steps": 2}
each_way_back = pytest.mark.parametrize("changes", WAYS_BACK.values(), ids=WAYS_BACK)


@each_way_back
def test_two_processes_align_by_each_way_back_as_one_does(tmp_path, changes):
    changes = changes | {"refresh_every": None}
    align_shared("refl", tmp_path / "one", **changes)
    in_processes(2, lambda: align_shared("refl", tmp_path / "two", **changes))
    assert_alike(tmp_path / "two", tmp_path / "one")


@each_way_back
def test_an_interrupted_run_by_each_way_back_ends_as_the_whole_one(tmp_path, changes):
    recipe = RECIPE.model_copy(update=changes | {"steps": 8})
    align_by_refl(TinyGenerator(STEPS), BrightnessJudge(), BANK, recipe, tmp_path / "whole")
    calls = 6 * -(-24 * recipe.copies // recipe.judge_batch)  # within the seventh step
    with pytest.raises(KeyboardInterrupt):
        align_by_refl(TinyGenerator(STEPS), WatchedJudge(calls), BANK, recipe, tmp_path / "again")
    assert (tmp_path / "again" / "checkpoint-4" / "complete").exists()
    align_by_refl(TinyGenerator(STEPS), BrightnessJudge(), BANK, recipe, tmp_path / "again")
    assert_same_run(tmp_path / "again", tmp_path / "whole")


@pytest.mark.parametrize("name", ["draft_lv", "leapalign"])
def test_pictures_that_are_not_finite_leave_a_surrogates_gradient_finite(name):
    changes = {"prompts_per_step": 3, "grad_step_range": (0.5, 1.0), "surrogate": preset(name), "velocity_mse": 0.3}
    recipe = RECIPE.model_copy(update=changes)
    found, _ = gradient(BrightnessJudge(), recipe, Blind)
    expected, _ = gradient(Failing(BAD), recipe)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_a_surrogate_is_a_name_or_a_preset_with_changes_and_is_read_back():
    recipe = parse_recipe(ReflRecipe, {"surrogate": "leapalign"}, "recipe.yaml")
    assert recipe.surrogate == preset("leapalign") and recipe.surrogate.nested == 0.3
    recipe = parse_recipe(ReflRecipe, {"surrogate": {"like": "flowbp_sparse", "count": 7}}, "recipe.yaml")
    assert recipe.surrogate is not None and (recipe.surrogate.count, recipe.surrogate.rescale) == (7, 0.5)
    assert parse_recipe(ReflRecipe, recipe.model_dump(mode="json"), "config.yaml") == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surrogate": "draft_vl"}, "there is no surrogate 'draft_vl'; there are draft_lv, drtune"),
        ({"surrogate": {"like": ["draft_lv"]}}, r"there is no surrogate \['draft_lv'\]; there are draft_lv, drtune"),
        ({"surrogate": {"like": "leapalign", "segments": [1, 0, 1]}}, "'surrogate.segments.1' .* greater than 0"),
        ({"surrogate": {"like": "draft_lv", "count": 2}}, "count says nothing here"),
        ({"surrogate": {"like": "leapalign", "node_share": 0.5}}, "node_share says nothing here"),
        ({"surrogate": {"like": "drtune", "sees": "picture", "stop_range": 0.4}}, "a prediction is seen with"),
        ({"surrogate": {"like": "flowbp_lagrange", "leap_terms": 4}}, "a leap has 3 nodes"),
        ({"surrogate": {"like": "flowbp_bridge", "count": 1}}, "a count of 2 or more"),
        ({"surrogate": "draft_lv", "last_steps": 2}, "last_steps says nothing beside a surrogate"),
        ({"surrogate": "draft_lv", "grad_step_range": [0, 1]}, "grad_step_range says nothing beside a surrogate"),
        ({"surrogate": {"active": "late", "bias": 2}}, "unknown key 'surrogate.bias'"),
    ],
)
def test_choices_that_say_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(ReflRecipe, changes, "recipe.yaml")


def test_a_surrogate_of_more_steps_than_there_are_is_refused(tmp_path):
    recipe = RECIPE.model_copy(update={"surrogate": preset("flowbp_sparse", count=9)})
    with pytest.raises(InputError, match=r"refl\.surrogate wants 9 steps, and the generator takes 8"):
        align_by_refl(TinyGenerator(STEPS), BrightnessJudge(), BANK, recipe, tmp_path)
