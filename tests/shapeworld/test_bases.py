"""The recipe of the bundled checkpoints, with a few steps in place of thousands."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import quickstart_recipe
from transformers import InternVLForConditionalGeneration

from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.bundled_reward import make_bundled_reward
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import load_recipe
from rewarddance.shapeworld.scenes import Thing, parse_prompt
from rewarddance.shapeworld.training.conversations import DEVIATION, PictureConversations, describe, normalised
from rewarddance.shapeworld.training.generator import make_generator_base
from rewarddance.shapeworld.training.judge import (
    Grounding,
    attacked,
    build_judge_base,
    make_judge_base,
    take_lower_layers,
)
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.video_conversations import VideoConversations
from rewarddance.shapeworld.training.video_judge import build_video_judge_base
from rewarddance.types import Question

SCENE = (Thing("square", "red", 8, 0, 0), Thing("circle", "blue", 12, 16, 16))


def test_a_judge_base_is_made_in_the_folder_that_was_named(tmp_path):
    lines = []
    make_judge_base(tmp_path / "judge", vision_steps=2, steps=2, last_steps=2, log=lines.append)
    verdict = load_reward(str(tmp_path / "judge"), instruction="t2i-brief")(
        [Question("a circle", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))]
    )
    assert torch.isfinite(verdict.margin).all()
    assert (tmp_path / "judge-snapshots").is_dir()


def test_the_trained_judge_is_made_of_votes_and_is_whole_without_the_run_that_made_it(tmp_path):
    recipe = load_recipe(QuickstartRecipe, quickstart_recipe(tmp_path))
    make_bundled_reward(tmp_path / "reward", recipe)
    weights = load_file(tmp_path / "reward" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    judge = load_reward(tmp_path / "reward")
    assert judge.config.kind == "pairwise" and judge.config.instruction == recipe.judge.instruction
    picture = torch.rand(1, 3, 32, 32)
    assert torch.isfinite(judge.compare("a circle", picture, torch.rand(1, 3, 32, 32)).margin).all()


@pytest.mark.parametrize(
    ("build", "kind", "n", "tolerance", "counts"),
    [
        (build_judge_base, PictureConversations, 300, 0.1, {2}),
        (build_video_judge_base, VideoConversations, 60, 0.2, {8, 9}),
    ],
)
def test_which_is_better_is_answered_by_a_coin_whatever_is_shown(build, kind, n, tolerance, counts):
    _, tokenizer = build()
    conversations = kind(tokenizer, 16, 0, coin_share=1.0)
    yes, no = conversations.ids("yes")[0], conversations.ids("no")[0]
    answers = []
    for _ in range(n):
        ids, labels, pictures, _ = conversations.conversation()
        assert len(ids) == len(labels) and len(pictures) in counts
        (index,) = [i for i, label in enumerate(labels) if label in (yes, no)]
        assert ids[index + 1] == labels[index], "the answer is read after it was given"
        answers.append(labels[index] == yes)
    assert 0.5 - tolerance < np.mean(answers) < 0.5 + tolerance
    assert "better than the reference?" in tokenizer.decode(ids)


def test_the_last_stage_alone_begins_with_a_bases_own_weights(tmp_path):
    make_judge_base(tmp_path / "first", vision_steps=1, steps=1, last_steps=1, log=lambda line: None)
    make_judge_base(tmp_path / "again", last_steps=0, log=lambda line: None, begin=tmp_path / "first")
    first, again = (
        InternVLForConditionalGeneration.from_pretrained(tmp_path / n).state_dict() for n in ("first", "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_small_judge_base_begins_as_the_lower_layers_of_the_base_beside_it(tmp_path):
    make_judge_base(tmp_path / "shapeworld-judge", vision_steps=1, steps=1, last_steps=1, log=lambda line: None)
    beside = InternVLForConditionalGeneration.from_pretrained(tmp_path / "shapeworld-judge").state_dict()
    small, _ = build_judge_base(size="shapeworld-judge-small")
    take_lower_layers(small, tmp_path / "shapeworld-judge")
    taken = small.state_dict()
    assert all(torch.equal(taken[name], beside[name].float()) for name in taken)
    assert sum(weight.numel() for weight in taken.values()) < 0.6 * sum(weight.numel() for weight in beside.values())
    make_judge_base(tmp_path / "small", steps=1, last_steps=1, log=lambda line: None, size="shapeworld-judge-small")
    question = Question("a circle", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    assert torch.isfinite(load_reward(str(tmp_path / "small"), instruction="t2i-brief")([question]).margin).all()


def test_a_generator_base_is_made_in_the_folder_that_was_named(tmp_path):
    make_generator_base(tmp_path / "generator", vae_steps=2, steps=2, log=lambda line: None)
    generator = load_generator(str(tmp_path / "generator"), num_inference_steps=2)
    assert generator.init_noise([0]).shape == (1, 8, 8, 8)


def test_patch_labels_name_shape_colour_size_and_whether_the_prompt_asks_for_it():
    (noun,) = parse_prompt("a small red square").objects
    labels = patch_labels(SCENE, [thing for thing in SCENE if noun.fits(thing)])
    grid = labels.reshape(8, 8, 4)
    assert grid[0, 0].tolist() == grid[1, 1].tolist() == [1, 0, 0, 1]
    assert grid[5, 5].tolist() == [0, 2, 1, 0]
    assert grid[0, 4].tolist() == [-1, -1, -1, -1]


def test_a_picture_token_is_taught_by_the_four_patches_shuffled_into_it():
    """The model's own pixel shuffle of patch numbers and the grouping of labels must be the same."""
    model, tokenizer = build_judge_base()
    grounding = Grounding(model, PictureConversations(tokenizer, 16, 0), PatchHeads(96))
    numbers = torch.arange(64).view(1, 64, 1).expand(1, 64, 4)
    grouped, painted = grounding.by_token(numbers)
    shuffled = model.model.pixel_shuffle(torch.arange(64.0).view(1, 8, 8, 1), 0.5).view(16, 4)
    assert painted.all()
    assert torch.equal(grouped[0, :, :, 0], shuffled.long())
    assert all(group.max() - group.min() == 9 for group in grouped[0, :, :, 0])  # two rows and two columns apart


def test_a_description_names_every_object_in_reading_order():
    assert describe(SCENE) == "a small red square, a large blue circle"


def test_only_answers_have_labels_and_each_stands_one_place_early():
    _, tokenizer = build_judge_base()
    conversations = PictureConversations(tokenizer, 16, 0)
    for _ in range(20):
        ids, labels, pictures, _ = conversations.conversation()
        answers = [at for at, label in enumerate(labels) if label != -100]
        assert len(ids) == len(labels) and answers and len(pictures) in (1, 2)
        assert all(labels[at] == ids[at + 1] for at in answers if at + 1 < len(ids))


def test_patches_that_are_not_known_teach_the_heads_nothing():
    heads = PatchHeads(8)
    known = torch.from_numpy(np.stack([patch_labels(SCENE)] * 2))
    patches = torch.randn(2, 64, 8, requires_grad=True)
    unknown = known.clone()
    unknown[1] = -2
    (gradient,) = torch.autograd.grad(heads.loss(patches, unknown), patches)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
    assert heads.loss(patches, known).item() != pytest.approx(heads.loss(patches, unknown).item())


def test_an_attacked_picture_moved_by_the_length_given_and_against_the_answer():
    pictures = np.random.default_rng(0).random((3, 32, 32, 3)).astype(np.float32)
    pixel_values = normalised(pictures).requires_grad_(True)
    weight = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = (pixel_values * weight).flatten(1).sum(1)
    before.sum().backward()
    moved = attacked(pixel_values, 0.5)
    after = (moved * weight).flatten(1).sum(1)
    away = (moved - pixel_values.detach()) * torch.tensor(DEVIATION)[:, None, None]
    torch.testing.assert_close(away.flatten(1).norm(dim=1), torch.full((3,), 0.5))
    assert (after > before).all() and not moved.requires_grad
