"""The recipes of the video bases, with a few steps in place of thousands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import command
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.data.frame_sampling import one_of_each, spread
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.motion.scripts import FRAMES, sample_script
from rewarddance.shapeworld.motion.specs import parse_motion, sample_motion
from rewarddance.shapeworld.scenes import Thing
from rewarddance.shapeworld.training import video_conversations
from rewarddance.shapeworld.training.conversations import DEVIATION
from rewarddance.shapeworld.training.generator import train_generator
from rewarddance.shapeworld.training.patch_heads import patch_labels
from rewarddance.shapeworld.training.video_conversations import (
    VideoConversations,
    describe_action,
    describe_motion,
    describe_place,
    plays,
)
from rewarddance.shapeworld.training.video_generator import (
    TEXT_LENGTH,
    build_video_pipeline,
    caption_of,
    encode_videos,
    make_video_generator_base,
    sample_task,
    token_labels,
    video_objective,
)
from rewarddance.shapeworld.training.video_judge import build_video_judge_base, make_video_judge_base, train_video_judge
from rewarddance.types import Prompt, Question


def silent(line: str) -> None:
    """Drops a progress line."""


def test_a_video_judge_base_is_made_in_the_folder_that_was_named(tmp_path):
    make_video_judge_base(tmp_path / "judge", steps=1, adversarial_steps=1, last_steps=1, log=silent)
    video = torch.rand(9, 3, 32, 32)
    judge = load_reward(str(tmp_path / "judge"), instruction="i2v-brief", frames=4, fps=8.0)
    verdict = judge([Question(Prompt("a red circle moves left", image=video[:1]), video, video.flip(0))])
    assert torch.isfinite(verdict.margin).all()
    assert (tmp_path / "judge-snapshots").is_dir()


def test_the_video_judge_begins_with_the_picture_judges_weights_and_words():
    model, tokenizer = build_video_judge_base()
    theirs = InternVLForConditionalGeneration.from_pretrained(find_checkpoint("shapeworld-judge"), dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(find_checkpoint("shapeworld-judge")).get_vocab()
    ours, old = model.state_dict(), theirs.state_dict()
    assert all(torch.equal(ours[name], old[name]) for name in old if "embed" not in name and "lm_head" not in name)
    for word in ("yes", "Ġred", "Ġcircle", "<IMG_CONTEXT>"):
        new = model.get_input_embeddings().weight[tokenizer.vocab[word]]
        assert torch.equal(new, theirs.get_input_embeddings().weight[words[word]])
    assert len(tokenizer("a video of a red circle moving left").input_ids) == 8, "every word is one token"


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_vision_tower_learns_where_training_is_adversarial(monkeypatch, adversarial):
    model, tokenizer = build_video_judge_base()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shown = []
    get_image_features = model.model.get_image_features

    def recording(pixel_values, **kwargs):
        shown.append(pixel_values.detach().clone())
        return get_image_features(pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", recording)
    conversations = VideoConversations(tokenizer, 16, 0)
    train_video_judge(model, conversations, 2, learning_rate=1e-3, log=silent, batch=2, adversarial=adversarial)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert any("language_model" in name for name in changed)
    assert any("vision_tower" in name for name in changed) == adversarial
    first, second = shown
    if adversarial:  # the same pictures again, each by at most 1 of pixels in [0, 1]
        away = ((second - first) * torch.tensor(DEVIATION)[:, None, None]).flatten(1).norm(dim=1)
        assert (away > 0).all() and (away < 1.001).all() and torch.allclose(away, away[0].expand_as(away), atol=1e-4)
    else:
        assert first.shape != second.shape or not torch.equal(first, second)


def test_a_conversation_can_show_a_frame_out_of_each_quarter(monkeypatch):
    _, tokenizer = build_video_judge_base()
    conversations = VideoConversations(tokenizer, 16, 0, scattered=1.0)
    drawn = []
    monkeypatch.setattr(video_conversations, "one_of_each", lambda *args: drawn.append(one_of_each(*args)) or drawn[-1])
    for _ in range(20):
        conversations.conversation()
    assert len({tuple(numbers) for numbers in drawn}) > 5


def test_a_conversation_is_about_videos_and_answers_what_they_show():
    model, tokenizer = build_video_judge_base()
    conversations = VideoConversations(tokenizer, model.config.image_seq_length, 0)
    asked = set()
    for _ in range(40):
        ids, labels, pictures, _ = conversations.conversation()
        assert len(ids) == len(labels) and len(pictures) in (4, 5, 8, 9)
        text = tokenizer.decode(ids)
        assert text.count("<IMG_CONTEXT>") == 16 * len(pictures)
        assert "better" not in text
        asked |= {kind for kind in ("match the prompt", "happens", "wrong", "begin with", "end in") if kind in text}
    assert len(asked) == 5


def test_what_a_video_shows_is_described_in_words():
    spec = parse_motion("a small red circle passes behind a large blue square")
    script = sample_script(spec, FRAMES, np.random.default_rng(0))
    assert script is not None
    roles = list(zip(spec.roles, script, strict=True))
    assert describe_motion(roles) == "a small red circle passes behind the square, a large blue square stands"
    assert describe_action(spec.roles[1], roles) == "stands"
    assert plays(*roles[0], spec.roles[0]) and not plays(*roles[0], parse_motion("a circle grows").roles[0])
    assert describe_place(Thing("circle", "red", 8, 0, 24)) == "bottom left"


def test_a_video_generator_base_draws_videos_from_a_text_and_from_a_picture(tmp_path):
    make_video_generator_base(
        tmp_path / "video", stills=1, vae_steps=1, decoder_steps=1, videos=40, steps=10, log=silent
    )
    size = {"height": 32, "width": 32, "num_frames": FRAMES, "max_sequence_length": TEXT_LENGTH}
    plain = load_generator(str(tmp_path / "video"), 2, **size)
    begins = load_generator(str(tmp_path / "video"), 2, **size, pipeline="WanImageToVideoPipeline")
    assert plain.dtype == torch.float32, "half precision is on disk only"
    for generator, image in ((plain, None), (begins, torch.rand(1, 3, 32, 32))):
        video = sample(generator, [Prompt("a red circle moves left", image=image)], [0])
        assert video.shape == (1, FRAMES, 3, 32, 32) and torch.isfinite(video).all()
    assert {path.name for path in (tmp_path / "video-snapshots").iterdir()} >= {"0.10", "1.00"}
    assert sum(file.stat().st_size for file in (tmp_path / "video").rglob("*") if file.is_file()) < 8e6


def test_half_of_a_batch_has_its_first_latent_frame_clean_at_time_0(monkeypatch):
    pipeline, seen = build_video_pipeline(), []
    videos = encode_videos(pipeline.vae, 8, 0, silent)
    forward = type(pipeline.transformer).forward

    def recording(self, hidden_states, timestep, *args, **kwargs):
        seen.append((hidden_states, timestep))
        return forward(self, hidden_states, timestep, *args, **kwargs)

    monkeypatch.setattr(type(pipeline.transformer), "forward", recording)
    train_generator(pipeline, video_objective(pipeline, videos), 1, 0, log=silent, batch=8)
    ((x_t, time),) = seen
    assert time.shape == (8, 80)
    times = time.view(8, 5, 16)
    assert (times[1::2, 0] == 0).all() and (times[:, 1:] > 0).all() and (times[::2, 0] > 0).all()
    clean = [bool((first == videos.latents.float()[:, :, 0]).flatten(1).all(1).any()) for first in x_t[:, :, 0]]
    assert clean == [False, True] * 4


def test_a_tokens_labels_are_those_of_its_own_patches_in_the_last_of_its_frames():
    scene = (Thing("square", "red", 8, 8, 16),)
    labels = token_labels(np.stack([patch_labels(()), patch_labels(scene)]))
    assert labels.shape == (128, 4) and (labels[:64] == -1).all()
    painted = labels[64:].reshape(4, 4, 4, 4)[..., 0] > -1  # token rows, token columns, patches of a token
    assert painted[2, 1].all() and painted.sum() == 4


def test_captions_are_wrong_in_a_share_of_the_videos_and_empty_in_another():
    rng = np.random.default_rng(0)
    specs = [spec for spec in (sample_task(rng) for _ in range(2500)) if len(spec.roles) == 1]  # all are English
    said = [caption_of(spec, rng) for spec in specs]
    empty = [not text for text in said]
    wrong = [parse_motion(text).roles != spec.roles for text, spec in zip(said, specs, strict=True) if text]
    assert 0.07 < np.mean(empty) < 0.13 and 0.21 < np.mean(wrong) < 0.29


def test_a_judge_reads_the_frames_that_it_was_trained_on():
    _, tokenizer = build_video_judge_base()
    assert VideoConversations(tokenizer, 16, 0).frame_numbers == spread(FRAMES, 4) == [0, 3, 5, 8]
    assert sample_motion(np.random.default_rng(0)).text


@pytest.mark.parametrize("which", ["video", "nothing"])
def test_a_base_that_there_is_not_is_refused_with_those_that_there_are(which, tmp_path):
    done = command("bases", which, "--output", tmp_path)
    assert done.code == 2 and "edit-judge, editor, reward or all" in done.err
