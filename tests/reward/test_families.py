"""Every fast path against the naive one: the family's own image processor and one `model(**inputs)` a question."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import FAMILIES, INTERNVL_LLAMA, family_folder, pictures
from torch.utils.flop_counter import FlopCounterMode
from transformers import AddedToken
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewarddance.errors import InputError, RewardError
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.instructions import Picture
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.types import Pixels, Preference, Question

PROMPTS = ("a red circle left of a blue square", "two crosses")


@pytest.fixture(params=(*FAMILIES, INTERNVL_LLAMA))
def vlm(request) -> VisionLanguageModel:
    return VisionLanguageModel(str(family_folder(request.param)))


def drawn(frames: int, height: int, width: int, seed: int) -> Pixels:
    """Smooth random frames, values whole 255ths: the families' own processors go through 8 bits."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 5, 5, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def processor(vlm: VisionLanguageModel):
    """The family's own image processor of this checkpoint, which needs no torchvision."""
    kind = GotOcr2ImageProcessorPil if vlm.model.config.model_type == "internvl" else Qwen2VLImageProcessorPil
    return kind.from_pretrained(vlm.folder)


def naive_margin(vlm: VisionLanguageModel, question: Question) -> torch.Tensor:
    """One question through the family's own processor, tokenizer and whole forward: no code of ours."""
    config = RewardConfig(instruction="t2i-brief")
    text = (
        f"<|im_start|>user\nPrompt: {question.prompt.text}\nCriteria: alignment with the prompt, visual quality.\n"
        "Reference:@@\nCandidate:@@\nIs the candidate better than the reference? Answer yes or no.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    frames = [*question.reference, *question.candidate]
    arrays = [(f * 255).round().byte().permute(1, 2, 0).numpy() for f in frames]
    found = [processor(vlm)(array, return_tensors="pt") for array in arrays]
    inputs = {name: torch.cat([one[name] for one in found]) for name in found[0] if name != "num_patches"}
    if "image_grid_thw" in inputs:
        text = text.replace("@@\n", "@@")
        written = [
            f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
            for grid in inputs["image_grid_thw"]
        ]
        join = ""
    else:
        written, join = ["<img>" + "<IMG_CONTEXT>" * 16 + "</img>"] * len(frames), "\n"
    for part in (written[: len(question.reference)], written[len(question.reference) :]):
        text = text.replace("@@", join.join(part), 1)
    ids = vlm.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == vlm.model.config.image_token_id).int()
    vlm.model.model.language_model.config._attn_implementation = "eager"
    with torch.no_grad():
        logits = vlm.model(input_ids=ids, **inputs).logits[0, -1]
    vlm.model.model.language_model.config._attn_implementation = "rewarddance_prefix"
    yes, no = vlm.answer_tokens(config.yes), vlm.answer_tokens(config.no)
    return logits[yes].logsumexp(0) - logits[no].logsumexp(0)


def questions_of(vlm: VisionLanguageModel) -> list[Question]:
    """Pictures of several sizes and videos, two prompts, shared and unshared references."""
    one, two, three = drawn(1, 32, 32, 0), drawn(1, 24, 40, 1), drawn(1, 32, 32, 2)
    video, other = drawn(3, 24, 24, 3), drawn(2, 24, 24, 4)
    found = [Question(p, c, r) for p in PROMPTS for c, r in itertools.permutations((one, two, three), 2)]
    return [*found, Question(PROMPTS[0], video, other), Question(PROMPTS[1], other, video)]


def test_margins_equal_the_naive_path(vlm):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief"))
    # the frames are at the family's own size, so that both read the very same pixels
    same = [drawn(1, 32, 32, seed) for seed in range(3)]
    asked = [Question(p, c, r) for p in PROMPTS for c, r in itertools.permutations(same, 2)]
    asked.append(Question(PROMPTS[0], drawn(3, 32, 32, 7), drawn(2, 32, 32, 8)))
    ours = judge(asked).margin
    theirs = torch.stack([naive_margin(vlm, question) for question in asked])
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_language_model_that_looks_back_over_a_window_only_does_so_here_too(tmp_path):
    folder = Path(shutil.copytree(family_folder(INTERNVL_LLAMA), tmp_path / "windowed"))
    content = json.loads((folder / "config.json").read_text())
    content["text_config"] |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(content))
    vlm = VisionLanguageModel(str(folder))
    candidate, *references = (drawn(1, 32, 32, seed) for seed in range(3))
    questions = [Question(PROMPTS[0], candidate, reference) for reference in references]
    margins = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief"))(questions).margin
    torch.testing.assert_close(margins, torch.stack([naive_margin(vlm, question) for question in questions]))
    whole = VisionLanguageModel(str(family_folder(INTERNVL_LLAMA)))
    assert (margins - PairwiseReward(whole, RewardConfig(instruction="t2i-brief"))(questions).margin).abs().max() > 0.01


def test_margins_do_not_depend_on_batch_order_or_budget(vlm):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief"))
    asked = questions_of(vlm)
    alone = torch.cat([judge([question]).margin for question in asked])
    order = np.random.default_rng(0).permutation(len(asked)).tolist()
    shuffled = [asked[i] for i in order]
    torch.testing.assert_close(judge(shuffled).margin, alone[order], atol=1e-5, rtol=1e-5)
    for budget in (1, 150, 700):
        vlm.max_batch_tokens = budget
        torch.testing.assert_close(judge(asked).margin, alone, atol=1e-5, rtol=1e-5)


def test_pixel_gradients_equal_those_without_sharing_checkpointed_or_not(vlm):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief")).freeze()
    reference = drawn(1, 32, 32, 0)
    candidates = [drawn(1, 32, 32, seed).requires_grad_() for seed in (1, 2, 3)]
    alone = [torch.autograd.grad(judge([Question(PROMPTS[0], c, reference)]).margin.sum(), c)[0] for c in candidates]
    for vlm.checkpointing in (False, True):
        margin = judge([Question(PROMPTS[0], c, reference) for c in candidates]).margin
        together = torch.autograd.grad(margin.sum(), candidates)
        for ours, theirs in zip(together, alone, strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_a_gradient_reaches_the_reference_too(vlm):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief")).freeze()
    reference = drawn(1, 32, 32, 0).requires_grad_()
    candidates = [drawn(1, 32, 32, seed) for seed in (1, 2, 3)]
    together = judge([Question(PROMPTS[0], c, reference) for c in candidates]).margin.sum()
    (ours,) = torch.autograd.grad(together, reference)
    alone = sum(judge([Question(PROMPTS[0], c, reference)]).margin.sum() for c in candidates)
    (theirs,) = torch.autograd.grad(alone, reference)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_a_forward_is_not_left_with_checkpoints(vlm):
    vlm.checkpointing = True
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief")).freeze()
    judge([Question(PROMPTS[0], drawn(1, 32, 32, 1).requires_grad_(), drawn(1, 32, 32, 2))])
    layers = [*vlm._vision_layers, *vlm.model.model.language_model.layers]
    assert not any("forward" in vars(layer) for layer in layers)


def hard_edges(height: int, width: int) -> Pixels:
    """Random boxes of full colours, as a drawing has them."""
    rng, canvas = np.random.default_rng(0), torch.zeros(1, 3, height, width)
    for _ in range(30):
        top, left = rng.integers(0, height), rng.integers(0, width)
        canvas[..., top : top + height // 4, left : left + width // 7] = torch.from_numpy(
            rng.integers(0, 2, (3, 1, 1))
        ).float()
    return canvas


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (130, 90), (17, 20), (130, 30), (90, 140)])
def test_preprocessing_is_the_familys_own_to_a_255th_and_a_half(vlm, size):
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.integers(0, 256, (1, 3, *size)) / 255).float()
    for pixels in (drawn(1, *size, seed=1), noise, hard_edges(*size)):
        array = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
        theirs = processor(vlm)(array, return_tensors="pt")["pixel_values"]
        ours = vlm.family.picture_inputs([pixels])["pixel_values"]
        assert ours.shape == theirs.shape
        deviation = torch.tensor(vlm.family.image["image_std"]).min()
        assert ((ours - theirs).abs().max() * deviation) < 1.5 / 255


def test_what_was_said_is_read_on_from(vlm):
    parts = ("Prompt: two crosses", Picture("candidate"))
    pixels = drawn(1, 32, 32, 0)
    said = "yes. The candidate"
    count = len(vlm.response_prefix_tokens(said))
    (states,) = vlm.response_states([JudgeInput(parts, (pixels,), said)])
    assert len(states) == count + 1 > 2
    torch.testing.assert_close(states[0], vlm.last_states([JudgeInput(parts, (pixels,))])[0], atol=1e-5, rtol=1e-5)
    assert vlm.head(states).shape == (count + 1, vlm.model.config.text_config.vocab_size)


def test_several_questions_about_one_picture_share_it(vlm):
    pixels = drawn(1, 32, 32, 0)
    parts = [("Prompt: two crosses", Picture("candidate"), question) for question in ("Is it red?", "Is it a cross?")]
    asked = [JudgeInput(part, (pixels,)) for part in parts]
    with FlopCounterMode(display=False) as shared:
        together = vlm.last_states(asked)
    with FlopCounterMode(display=False) as apart:
        alone = torch.cat([vlm.last_states([one]) for one in asked])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert shared.get_total_flops() < 0.9 * apart.get_total_flops()


def test_writing_greedily_is_the_likeliest_token_each_time(vlm):
    parts = ("Prompt: two crosses", Picture("candidate"))
    asked = [JudgeInput(parts, (drawn(1, 32, 32, seed),)) for seed in range(2)]
    said = vlm.write(asked, max_new_tokens=1)
    best = vlm.head(vlm.last_states(asked)).argmax(-1)
    assert said == [text.strip() for text in vlm.tokenizer.batch_decode(best[:, None], skip_special_tokens=True)]
    assert vlm.write(asked, 5, temperature=2.0, seed=1) == vlm.write(asked, 5, temperature=2.0, seed=1)


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(vlm, monkeypatch):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief"))
    asked = questions_of(vlm)
    expected = judge(asked).margin
    whole = type(vlm.model.model.language_model).forward

    def forward(self, *, inputs_embeds, **kwargs):
        if inputs_embeds.shape[0] * inputs_embeds.shape[1] > 300:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(type(vlm.model.model.language_model), "forward", forward)
    torch.testing.assert_close(judge(asked).margin, expected, atol=1e-5, rtol=1e-5)
    assert vlm.max_batch_tokens < 16_384


def test_a_question_too_large_for_memory_is_named(vlm, monkeypatch):
    def forward(self, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(vlm.model.model.language_model), "forward", forward)
    with pytest.raises(RewardError, match="single question"):
        vlm.last_states([JudgeInput(("Hello", Picture("candidate")), (drawn(1, 32, 32, 0),))])


def test_other_errors_of_a_forward_are_not_swallowed(vlm, monkeypatch):
    def forward(self, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(vlm.model.model.language_model), "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        vlm.last_states([JudgeInput(("Hello", Picture("candidate")), (drawn(1, 32, 32, 0),))])


def test_a_question_needs_as_many_pictures_as_it_names(vlm):
    with pytest.raises(InputError, match="names 1 pictures, and 2"):
        vlm.last_states([JudgeInput(("Hello", Picture("candidate")), tuple(pictures(2)))])


def test_a_question_longer_than_the_model_reads_is_refused_and_never_guessed_at(vlm):
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief")).freeze()
    longest = vlm.model.config.get_text_config().max_position_embeddings
    first, second = drawn(1, 32, 32, 0), drawn(1, 32, 32, 1)
    with pytest.raises(InputError, match=rf"the question 'Prompt: a red .* tokens, and this judge reads {longest}"):
        judge([Question("a red circle " * longest, first, second)])
    # then it was stretched to read that much
    vlm.model.config.get_text_config().rope_parameters |= {"rope_type": "linear", "factor": 100.0}
    assert judge([Question("a " * longest, first, second)]).margin.isfinite().all()


def test_a_token_that_the_tokenizer_does_not_list_may_stand_in_no_prompt_either(vlm):
    vlm.tokenizer.add_tokens([AddedToken("<|secret|>", special=True)])
    assert "<|secret|>" not in vlm.tokenizer.all_special_tokens
    judge = PairwiseReward(vlm, RewardConfig(instruction="t2i-brief"))
    with pytest.raises(InputError, match=r"'.*a <\|secret\|> cat.*' contains the token '<\|secret\|>'"):
        judge([Question("a <|secret|> cat", drawn(1, 32, 32, 0), drawn(1, 32, 32, 1))])


def test_max_pixels_bounds_a_frame_where_the_family_keeps_its_shape():
    vlm = VisionLanguageModel(str(family_folder("qwen3_vl")), max_pixels=24 * 24)
    high, wide = vlm.family.size(400, 200)
    assert high * wide <= 24 * 24
    with pytest.raises(InputError, match="tiles of fixed size"):
        VisionLanguageModel(str(family_folder("internvl")), max_pixels=24 * 24)


def test_a_reward_records_its_pixel_budget_and_takes_its_precision(tmp_path):
    judge = load_reward(str(family_folder("qwen3_vl")), dtype=torch.bfloat16, max_pixels=576, instruction="t2i-brief")
    margin = judge([Question(PROMPTS[0], drawn(1, 40, 60, 0), drawn(1, 40, 60, 1))]).margin
    assert judge.model.dtype == torch.bfloat16 and margin.dtype == torch.float32
    judge.save(tmp_path)
    again = load_reward(str(tmp_path))
    assert again.config.max_pixels == 576 and again.vlm.family.max_pixels == 576
    with pytest.raises(InputError, match="max_pixels"):
        load_reward(str(family_folder("qwen3_vl")), kind="clip", max_pixels=576)


def test_checkpointing_while_training_gives_the_same_gradient():
    pairs = [Preference(PROMPTS[0], drawn(1, 32, 32, 0), drawn(1, 32, 32, 1), 1.0)]
    gradients = []
    for checkpointing in (False, True):
        config = RewardConfig(instruction="t2i-brief", checkpointing=checkpointing)
        reward = build_reward(str(family_folder("qwen3_vl")), config)
        reward.loss(pairs).backward()
        gradients.append([w.grad for w in reward.model.parameters() if w.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5)


def test_a_picture_two_hundred_times_as_long_as_wide_is_refused():
    vlm = VisionLanguageModel(str(family_folder("qwen3_vl")))
    with pytest.raises(InputError, match="too long"):
        vlm.last_states([JudgeInput(("Hello", Picture("candidate")), (torch.zeros(1, 3, 2, 500),))])
