"""Training a judge lowers its loss, and where a run is interrupted leaves no trace in its result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several import Interrupting
from tiny import clip_folder, colour_preferences, judge_folder, train_colours, trained_folder, training_recipe

from rewarddance.errors import InputError, RewardError
from rewarddance.evaluation import agreement
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.batches import MicroBatch, jittered
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.objectives import both_orders_cross_entropy
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import COMPLETE, OURS, newest_complete
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference, Question

RECIPE = training_recipe()
"""18 steps on 16 preferences."""
SCORING = pytest.mark.parametrize("kind", ["pointwise", "regressive", "clip"])


@pytest.fixture(scope="module")
def preferences() -> list[Preference]:
    return colour_preferences(16)


def train(folder: Path, preferences: list[Preference], evaluate=None, recipe: JudgeRecipe = RECIPE) -> PairwiseReward:
    return train_colours(folder, recipe, evaluate, preferences)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """With those of a head, if there is one."""
    return {name: w for file in (folder / "reward").glob("*.safetensors") for name, w in load_file(file).items()}


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_metrics(folder) == read_metrics(other)


def accuracy(judge: RewardModel) -> dict[str, float]:
    """Logged at each checkpoint: the mean margin of red over blue on pairs that are not trained on."""
    pairs = colour_preferences(4, seed=1)
    sign = [1 if pair.share else -1 for pair in pairs]
    margin = judge([Question(p.prompt, p.second, p.first) for p in pairs]).margin
    return {"red_over_blue": float((margin * torch.tensor(sign)).mean())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, preferences) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, preferences, accuracy)
    return folder


def test_training_lowers_the_loss(whole, preferences):
    def loss(judge: PairwiseReward) -> float:
        forward = judge([Question(p.prompt, p.second, p.first) for p in preferences]).margin
        backward = judge([Question(p.prompt, p.first, p.second) for p in preferences]).margin
        return both_orders_cross_entropy(forward, backward, torch.tensor([p.share for p in preferences])).item()

    before, after = loss(load_reward(RECIPE.base, instruction="t2i-brief")), loss(load_reward(str(whole / "reward")))
    assert after < 0.5 * before
    losses = [row["loss"] for row in read_metrics(whole) if row["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_of_one_step_learns(tmp_path, preferences):
    recipe = training_recipe(batch_size=16, epochs=1)
    before, after = build_reward(recipe.base, recipe.reward_config()), train(tmp_path, preferences, recipe=recipe)
    moved = zip(before.model.parameters(), after.model.parameters(), strict=True)
    assert any(not torch.equal(old.cpu(), new.cpu()) for old, new in moved)


def test_a_run_logs_its_loss_and_its_figures_at_every_checkpoint(whole):
    rows = read_metrics(whole)
    assert [row["step"] for row in rows if row["kind"] == "step"] == [5, 10, 15, 18]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [5, 10, 15, 18]
    assert {row["phase"] for row in rows} == {"judge"}
    assert accuracy(load_reward(str(whole / "reward")))["red_over_blue"] == pytest.approx(
        rows[-1]["red_over_blue"], abs=1e-4
    )


def test_the_reward_keeps_the_instruction_that_it_was_trained_with(whole):
    config = load_reward(str(whole / "reward")).config
    assert (config.instruction, config.instruction_version) == ("t2i-brief", 1)


@pytest.mark.parametrize(("error", "at"), [(KeyboardInterrupt, 2), (RuntimeError, 4)])
def test_an_interrupted_run_goes_on_to_the_very_same_weights_and_metrics(tmp_path, preferences, whole, error, at):
    with pytest.raises(error):
        train(tmp_path, preferences, Interrupting(accuracy, at, error))
    assert not (tmp_path / "reward").exists()
    train(tmp_path, preferences, accuracy)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("name", ["optimizer.pt", "progress.json"])
def test_a_checkpoint_that_is_damaged_is_named(tmp_path, preferences, name):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, preferences, Interrupting(accuracy, 3, KeyboardInterrupt))
    newest = newest_complete(tmp_path)
    assert newest is not None
    (newest / name).write_bytes(b"cut off")
    with pytest.raises(InputError, match=rf"the checkpoint {newest} cannot be read") as caught:
        train(tmp_path, preferences, accuracy)
    assert "Remove it" in caught.value.remedy


@SCORING
def test_training_teaches_each_kind_the_order(kind):
    trained = load_reward(str(trained_folder(kind) / "reward"))
    assert trained.config.kind == kind
    assert agreement.accuracy(trained, colour_preferences(12, seed=1)).mean == 1


@SCORING
def test_an_interrupted_run_of_each_kind_ends_with_the_same_weights(tmp_path, kind):
    def losses(folder: Path) -> list[dict]:
        return [row for row in read_metrics(folder) if row["kind"] == "step"]

    with pytest.raises(KeyboardInterrupt):
        train_colours(tmp_path, training_recipe(kind), Interrupting(lambda judge: {}))
    assert not (tmp_path / "reward").exists()
    train_colours(tmp_path, training_recipe(kind))
    ours, theirs = weights(tmp_path), weights(trained_folder(kind))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(tmp_path) == losses(trained_folder(kind)) != []


def test_a_run_that_was_cut_off_after_its_last_step_takes_no_further_one(tmp_path, preferences, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "reward")
    train(tmp_path, preferences, accuracy)
    assert_same_run(tmp_path, whole)


def test_a_checkpoint_without_its_mark_is_not_read(tmp_path, preferences, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "reward")
    newest = tmp_path / "checkpoint-18"
    (newest / OURS).touch()  # as where a kill came while it was removed
    (newest / COMPLETE).unlink()
    for file in newest.glob("*.safetensors"):
        file.write_bytes(b"cut off")
    train(tmp_path, preferences, accuracy)
    assert_same_run(tmp_path, whole)


def test_pixel_noise_is_that_of_seed_and_step_alone(preferences):
    def noisy(seed: int, step: int, deviation: float = 0.05) -> torch.Tensor:
        pairs = jittered(MicroBatch(tuple(preferences), step), deviation, seed).pairs
        assert [(pair.prompt, pair.share) for pair in pairs] == [(pair.prompt, pair.share) for pair in preferences]
        return torch.stack([pixels for pair in pairs for pixels in (pair.first, pair.second)])

    clean = noisy(1, 1, deviation=0.0)
    moved = noisy(1, 1)
    assert torch.equal(moved, noisy(1, 1))
    assert not torch.equal(moved, noisy(1, 2)) and not torch.equal(moved, noisy(2, 1))
    inside = (clean > 0.2) & (clean < 0.8)
    assert (moved - clean)[inside].std().item() == pytest.approx(0.05, rel=0.05)
    assert moved.min() >= 0 and moved.max() <= 1


def test_another_seed_gives_another_judge(tmp_path, preferences):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    short = RECIPE.model_copy(update={"epochs": 0.5})
    train_judge(short, preferences, tmp_path / "a", metrics, seed=1)
    train_judge(short, preferences, tmp_path / "b", metrics, seed=2)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["pairwise", "regressive", "clip"])
def test_a_frozen_vision_tower_does_not_move(tmp_path, kind):
    train_colours(tmp_path, training_recipe(kind, freeze_vision_tower=True, epochs=1))
    base, tower = (clip_folder(), "vision_model") if kind == "clip" else (judge_folder(), "vision_tower")
    before, after = load_file(base / "model.safetensors"), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and any(tower in name for name in before) and not any(tower in name for name in moved)


class Rising:
    """An evaluation whose figure rises, then falls: the second checkpoint is the best."""

    def __init__(self, *figures: float) -> None:
        self.figures = iter(figures)

    def __call__(self, judge: RewardModel) -> dict[str, float]:
        return {"accuracy_ood": next(self.figures)}


def test_the_best_checkpoint_becomes_the_reward_and_its_step_is_read_metrics(tmp_path, preferences, whole):
    recipe = RECIPE.model_copy(update={"keep_best": "accuracy_ood"})
    train(tmp_path, preferences, Rising(0.6, 0.9, 0.9, 0.7), recipe)
    assert [row["best_step"] for row in read_metrics(tmp_path) if row["kind"] == "evaluation"] == [5, 10, 10, 10]
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-10", "checkpoint-15", "checkpoint-18"]
    best, delivered = load_file(tmp_path / "checkpoint-10" / "model.safetensors"), weights(tmp_path)
    assert all(torch.equal(best[name], delivered[name]) for name in best)
    assert any(not torch.equal(delivered[name], weights(whole)[name]) for name in best)


def test_the_best_is_remembered_by_a_run_that_is_taken_up(tmp_path, preferences):
    recipe = RECIPE.model_copy(update={"keep_best": "accuracy_ood"})
    with pytest.raises(StopIteration):
        train(tmp_path, preferences, Rising(0.9, 0.5), recipe)
    train(tmp_path, preferences, Rising(0.6, 0.7), recipe)
    assert [row["best_step"] for row in read_metrics(tmp_path) if row["kind"] == "evaluation"] == [5, 5, 5, 5]
    best = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    assert all(torch.equal(best[name], weights(tmp_path)[name]) for name in best)


def test_a_figure_that_is_not_measured_cannot_choose_the_best(tmp_path, preferences):
    recipe = RECIPE.model_copy(update={"keep_best": "accuracy_odd", "epochs": 0.25})
    with pytest.raises(InputError, match="no figure 'accuracy_odd'") as caught:
        train(tmp_path, preferences, Rising(1.0), recipe)
    assert "accuracy_ood" in caught.value.remedy
    with pytest.raises(InputError, match="keep_best needs figures"):
        train(tmp_path, preferences, None, recipe)


def test_a_tracker_that_is_unknown_or_missing_is_refused_by_name(tmp_path, preferences, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    for name, told in (("wandbb", "no tracker 'wandbb'"), ("wandb", "'wandb' is not installed")):
        with pytest.raises(InputError, match=told):
            train(tmp_path, preferences, None, RECIPE.model_copy(update={"report_to": (name,)}))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, preferences):
    broken = preferences[0].first.clone()
    broken[0, 0, 0, 0] = float("nan")
    pairs = [Preference(p.prompt, broken, p.second, p.share) for p in preferences[:4]]
    with pytest.raises(RewardError, match="gradient of step 1 is not finite"):
        train(tmp_path, pairs, None, RECIPE.model_copy(update={"epochs": 1, "pixel_noise": 0.0}))
    assert not (tmp_path / "reward").exists()


def test_pictures_read_ahead_by_other_processes_give_the_same_run(tmp_path, preferences, whole):
    train(tmp_path, preferences, accuracy, RECIPE.model_copy(update={"workers": 1}))
    assert_same_run(tmp_path, whole)


def test_options_that_do_nothing_are_refused():
    with pytest.raises(ValueError, match="lora_alpha is used with a lora_rank"):
        JudgeRecipe(lora_alpha=8)
    with pytest.raises(ValueError, match="too small to be sharded"):
        JudgeRecipe(kind="clip", sharded=True)
