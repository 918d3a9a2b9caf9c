"""What the bundled checkpoints are held to."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogView4Pipeline, DiffusionPipeline, FluxKontextPipeline, WanPipeline
from edit_exam import EditExam
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.data.frame_sampling import spread
from rewarddance.evaluation.agreement import accuracy
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.reward.instructions import Picture
from rewarddance.reward.loading import load_reward
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.edits.oracle import judge_edits
from rewarddance.shapeworld.edits.preferences import edit_prompts
from rewarddance.shapeworld.edits.specs import KINDS
from rewarddance.shapeworld.motion.preferences import MotionRecipe
from rewarddance.shapeworld.motion.scripts import FRAMES, sample_script
from rewarddance.shapeworld.motion.specs import motion_near_miss, sample_motion
from rewarddance.shapeworld.motion.videos import render_video, video_pixels
from rewarddance.shapeworld.oracle import judge_pixels
from rewarddance.shapeworld.render import render, to_pixels
from rewarddance.shapeworld.scenes import near_miss, prompt_set, sample_scene, sample_spec
from rewarddance.shapeworld.tasks import task_of
from rewarddance.shapeworld.training.exam import Exam
from rewarddance.shapeworld.training.judge_sizes import SIZES
from rewarddance.types import Preference

LEFT_OUT = "shapeworld-judge-*m"
"""Of the wheel: only experiments need them, which are not in it either."""


def of_experiments(file: Path) -> bool:
    return any(fnmatch(part, LEFT_OUT) for part in file.parts)


def test_the_bundled_checkpoints_are_safetensors_and_a_wheel_has_less_than_40_mb_of_them():
    files = [file for file in BUNDLED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if not of_experiments(file)) < 40_000_000
    assert f"shapeworld/bundled/{LEFT_OUT}" in (BUNDLED.parents[3] / "pyproject.toml").read_text()
    assert {file.parent.name for file in files if of_experiments(file)} == {*SIZES}
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_judge_base_is_a_standard_transformers_folder():
    folder = BUNDLED / "shapeworld-judge"
    assert isinstance(InternVLForConditionalGeneration.from_pretrained(folder), InternVLForConditionalGeneration)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and tokenizer.context_image_token == "<IMG_CONTEXT>"
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == "InternVLProcessor"
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]


def test_the_trained_judge_knows_what_is_better_and_stands_there_as_it_was_saved(tmp_path):
    judge = load_reward("shapeworld-reward", dtype=torch.float16)
    judge.save(tmp_path)
    bundled = BUNDLED / "shapeworld-reward"
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in bundled.iterdir()}
    rng, pairs = np.random.default_rng(5), []
    while len(pairs) < 60:
        spec = sample_spec(rng)
        good, bad = (to_pixels([render(sample_scene(s, rng))])[0] for s in (spec, near_miss(spec, rng)))
        pairs.append(Preference(spec.text, *((bad, good, 1.0) if len(pairs) % 2 else (good, bad, 0.0))))
    assert accuracy(load_reward("shapeworld-reward"), pairs).mean > 0.75


def test_the_generator_base_is_a_standard_diffusers_pipeline():
    pipeline = DiffusionPipeline.from_pretrained(BUNDLED / "shapeworld-generator")
    assert isinstance(pipeline, CogView4Pipeline)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (32, 32)


@pytest.fixture(scope="module", params=["shapeworld-generator", "shapeworld-unet"])
def pictures(request):
    generator = load_generator(request.param, num_inference_steps=10)
    prompts = [text for text, _ in prompt_set("held_out", 24, 0) for _ in range(4)]
    return prompts, sample(generator, prompts, list(range(len(prompts))))


def test_a_generator_base_is_able_but_imperfect(pictures):
    prompts, pixels = pictures
    alignment = np.mean([score.alignment for score in judge_pixels(pixels, prompts)])
    assert 0.45 < alignment < 0.78, alignment


def test_a_generator_base_draws_one_prompt_in_many_ways(pictures):
    groups = pictures[1].unflatten(0, (24, 4))
    distance = (groups[:, 0] - groups[:, 1]).square().mean((1, 2, 3, 4)).sqrt()
    assert (distance > 0.05).sum() >= 22  # two empty pictures of one prompt do occur


def says_yes(vlm: VisionLanguageModel, prompt: str, pixels: torch.Tensor) -> bool:
    """Whether the base finds that a picture or video matches a prompt."""
    parts = (f"Prompt: {prompt}\nCandidate:", Picture("candidate"), "Does the candidate match the prompt?")
    with torch.no_grad():
        state = vlm.last_states([JudgeInput(parts, (pixels,))])
        return vlm.margin(state, vlm.answer_tokens(["yes"]), vlm.answer_tokens(["no"])).item() > 0


def test_the_judge_base_knows_the_world():
    """It says whether a picture shows a prompt far more often right than not."""
    vlm, rng, right = VisionLanguageModel("shapeworld-judge"), np.random.default_rng(0), []
    for index in range(120):
        spec = sample_spec(rng)
        shown = spec if index % 2 else near_miss(spec, rng)
        pixels = to_pixels([render(sample_scene(shown, rng))])[0]
        right.append(says_yes(vlm, spec.text, pixels) == bool(index % 2))
    assert np.mean(right) > 0.65


def test_the_judge_base_has_no_preferences():
    """Asked which picture is better, it is not right more often than chance before training."""
    judge = load_reward("shapeworld-judge", instruction="t2i-brief")
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(200):
        spec = sample_spec(rng)
        good, bad = (to_pixels([render(sample_scene(s, rng))])[0] for s in (spec, near_miss(spec, rng)))
        pairs.append(Preference(spec.text, *((bad, good, 1.0) if index % 2 else (good, bad, 0.0))))
    assert accuracy(judge, pairs).mean < 0.65


def test_the_small_judge_base_is_half_the_large_one_and_has_its_tokenizer():
    large, small = BUNDLED / "shapeworld-judge", BUNDLED / "shapeworld-judge-small"
    assert (small / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()
    models = [InternVLForConditionalGeneration.from_pretrained(folder) for folder in (small, large)]
    assert models[0].num_parameters() < 0.6 * models[1].num_parameters()


def test_the_clip_base_tells_a_caption_from_its_near_miss():
    rng = np.random.default_rng(5)
    judge = load_reward("shapeworld-clip", kind="clip")
    right = []
    for _ in range(100):
        spec = sample_spec(rng)
        other = near_miss(spec, rng)
        own, near = (judge.score(s.text, list(to_pixels([render(sample_scene(spec, rng))]))) for s in (spec, other))
        right.append(bool(own.margin > near.margin))
    assert np.mean(right) > 0.85


VIDEOS = {"height": 32, "width": 32, "num_frames": FRAMES, "max_sequence_length": 24}


def test_the_video_base_is_a_standard_diffusers_pipeline():
    pipeline = DiffusionPipeline.from_pretrained(BUNDLED / "shapeworld-video-generator")
    assert isinstance(pipeline, WanPipeline)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline("a red circle moves left", num_inference_steps=2, guidance_scale=1.0, **VIDEOS).frames[0]
    assert video.shape == (FRAMES, 32, 32, 3)


@pytest.mark.parametrize(
    ("task", "options", "least"), [("t2v", {}, 0.12), ("i2v", {"pipeline": "WanImageToVideoPipeline"}, 0.25)]
)
def test_the_video_base_is_able_but_imperfect(task, options, least):
    generator = load_generator("shapeworld-video-generator", num_inference_steps=10, **VIDEOS, **options)
    world = task_of(task, MotionRecipe(task=task))
    prompts = [prompt for prompt in world.prompts("held_out", 30, 0) for _ in range(2)]
    videos = sample(generator, prompts, list(range(60)))
    seen = [world.score(video[None], prompt)[0].alignment for video, prompt in zip(videos, prompts, strict=True)]
    assert least < np.mean(seen) < 0.7, np.mean(seen)
    if task == "i2v":
        first = torch.stack([prompt.image[0] for prompt in prompts if prompt.image is not None])
        assert (videos[:, 0] - first).square().mean() < 0.01, "they begin as they were asked to"


def videos_of_pairs(n: int) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Prompts with a video that shows them and one that nearly does."""
    rng, found = np.random.default_rng(1), []
    for _ in range(n):
        spec = sample_motion(rng)
        scripts = [sample_script(s, FRAMES, rng) or () for s in (spec, motion_near_miss(spec, rng))]
        found.append((spec.paraphrase(rng), *(video_pixels(render_video(script)) for script in scripts)))
    return found


def test_the_video_judge_base_knows_what_videos_show():
    vlm, frames, right = VisionLanguageModel("shapeworld-video-judge"), spread(FRAMES, 4), []
    for text, good, bad in videos_of_pairs(60):
        right += [says_yes(vlm, text, good[frames]), not says_yes(vlm, text, bad[frames])]
    assert np.mean(right) > 0.65


def test_the_video_judge_base_has_no_preferences():
    judge = load_reward("shapeworld-video-judge", instruction="t2v-brief", frames=4, fps=8.0)
    pairs = [
        Preference(text, *((bad, good, 1.0) if index % 2 else (good, bad, 0.0)), fps=(8.0, 8.0))
        for index, (text, good, bad) in enumerate(videos_of_pairs(100))
    ]
    assert accuracy(judge, pairs).mean < 0.65


@pytest.mark.parametrize(("size", "least"), [("0.7m", 0.72), ("1m", 0.78), ("1.4m", 0.83), ("5m", 0.82)])
def test_a_judge_size_knows_what_its_curve_says(size, least):
    """On four batches of conversations that it has not seen; docs/results/scaling.md has eight."""
    folder = BUNDLED / f"shapeworld-judge-{size}"
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    exam = Exam(AutoTokenizer.from_pretrained(folder), 16, 0, pairs=1, batches=4)
    with torch.no_grad():
        assert exam.figures(model)["yes_no"] > least


EDITS: Any = {"height": 32, "width": 32, "max_sequence_length": 24}


def test_the_editor_is_a_standard_diffusers_pipeline():
    assert isinstance(DiffusionPipeline.from_pretrained(BUNDLED / "shapeworld-editor"), FluxKontextPipeline)


def test_the_editor_is_able_but_imperfect_in_both_figures():
    generator = load_generator("shapeworld-editor", num_inference_steps=10, **EDITS)
    prompts = edit_prompts("held_out", 48, 0)
    scores = judge_edits(sample(generator, prompts, list(range(48))), prompts)
    following, keeping = (np.mean([getattr(score, part) for score in scores]) for part in ("following", "keeping"))
    assert 0.3 < following < 0.85 and 0.6 < keeping < 0.95, (following, keeping)


def test_the_edit_judge_base_knows_what_edits_show():
    folder = BUNDLED / "shapeworld-edit-judge"
    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    figures = EditExam(AutoTokenizer.from_pretrained(folder), 16, 0, tasks=4).figures(model)
    shares = {name: np.mean([figures[name][kind] for kind in KINDS]) for name in figures}
    assert min(shares.values()) > 0.65, shares
