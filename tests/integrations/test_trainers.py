"""Each plug-in by its trainer's own call: the same answers as the judge's, whole groups, and failures that are raised.

Where a trainer is installed its own classes are used, else stand-ins written from its code (`stand_ins`).
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
import stand_ins
import torch
from PIL import Image
from stand_ins import uint8, written
from tiny import BrightnessJudge, comparing, pictures

from rewarddance.errors import InputError, RewardError
from rewarddance.integrations import scorer as scoring
from rewarddance.integrations.flow_grpo import judge_score
from rewarddance.integrations.miles_diffusion import judge_rm
from rewarddance.integrations.ms_swift import judge_orm
from rewarddance.integrations.pref_grpo import register
from rewarddance.integrations.trl import judge_reward
from rewarddance.integrations.verl_omni import compute_score
from rewarddance.types import Question, Verdict

SHOTS = pictures(4)
PROMPTS = ["a red circle", "two crosses", "a red circle", "two crosses"]
REFERENCES = {"a red circle": SHOTS[1], "two crosses": SHOTS[2]}
AGAINST = BrightnessJudge()([Question(p, s, REFERENCES[p]) for p, s in zip(PROMPTS, SHOTS, strict=True)]).probability
EXPECTED = pytest.approx(AGAINST.tolist(), abs=1e-5)
GROUP = ["a red circle"] * 4
RATES = pytest.approx(scoring.Scorer(BrightnessJudge(), group=True)(SHOTS, GROUP), abs=1e-5)


@pytest.fixture
def named(monkeypatch) -> BrightnessJudge:
    """What `load_reward` gives in this test, for any name; trainers that read a file can only name a judge."""
    judge = BrightnessJudge()
    monkeypatch.setattr(scoring, "load_reward", lambda name, *where, **options: judge)
    return judge


@comparing
def failing(questions: Any) -> Verdict:
    raise RewardError(f"no answer for {questions[0].prompt.text!r}.", "Ask again.")


# -- flow_grpo, DiffusionNFT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [SHOTS[:, 0], uint8(SHOTS)], ids=["NCHW", "NHWC"])
def test_flow_grpo_makes_it_by_device_and_adds_it_up(images):
    functions = {
        "rewarddance": judge_score(BrightnessJudge(), REFERENCES),
        "fixed": lambda: lambda *given: ([1.0] * 4, {}),
    }
    made = stand_ins.multi_score(torch.device("cpu"), {"rewarddance": 2.0, "fixed": 1.0}, functions)
    scores, _ = made(images, tuple(PROMPTS), ({},) * 4, only_strict=True)
    assert scores["rewarddance"] == EXPECTED
    assert torch.as_tensor(scores["avg"]).float().tolist() == pytest.approx((2 * AGAINST + 1).tolist(), abs=1e-5)


def test_flow_grpo_loads_a_judge_once_for_training_and_evaluation(monkeypatch):
    loaded = []
    monkeypatch.setattr(scoring, "load_reward", lambda name, *where: loaded.append((name, *where)) or BrightnessJudge())
    factory = judge_score("my-judge", REFERENCES, dtype="bfloat16")
    assert factory(torch.device("cpu"))(SHOTS, PROMPTS)[0] == factory(torch.device("cpu"))(SHOTS, PROMPTS)[0]
    assert loaded == [("my-judge", "cpu", "bfloat16")]


def test_flow_grpos_source_pictures_belong_to_the_prompt():
    sources = [Image.fromarray(array) for array in uint8(SHOTS)]
    seen: list[Question] = []

    @comparing
    def judge(questions: Any) -> Verdict:
        seen.extend(questions)
        return Verdict(torch.zeros(len(questions)))

    judge_score(judge, REFERENCES)("cpu")(SHOTS[:, 0], PROMPTS, {}, ref_images=sources)
    assert all(torch.allclose(q.prompt.image, shot) for q, shot in zip(seen, SHOTS, strict=True))


def test_flow_grpo_hears_of_a_failure():
    made = stand_ins.multi_score("cpu", {"r": 1.0}, {"r": judge_score(failing, REFERENCES)})
    with pytest.raises(RewardError, match="a red circle"):
        made(SHOTS[:, 0], PROMPTS, {})


# -- Pref-GRPO ---------------------------------------------------------------------------------------------------------


def test_pref_grpo_has_it_beside_its_own_rewards(tmp_path):
    dispatcher = stand_ins.pref_grpo_dispatcher()
    register(dispatcher, BrightnessJudge())
    weights = {"rewarddance": 1.0, "clip": 0.5}
    made = dispatcher.RewardDispatcher(args=None, device="cpu", reward_weights=weights)
    inputs = made.build_reward_inputs()
    for path in written(tmp_path, SHOTS):
        for items in inputs.values():
            items.append({"path": path, "prompt": GROUP[0]})
    rewards, by_dimension = made.compute_rewards(inputs)
    assert rewards["rewarddance"].tolist() == RATES and rewards["clip"].tolist() == [0.25] * 4
    assert set(by_dimension) == {"CLIP_score", "rewarddance_score"}
    with pytest.raises(ValueError, match="Unsupported"):
        dispatcher.RewardDispatcher(args=None, device="cpu", reward_weights={"another": 1.0})
    with pytest.raises(InputError, match="'rewarddance' already"):
        register(dispatcher, BrightnessJudge())


def test_pref_grpo_edits_are_grouped_by_source_and_instruction(tmp_path):
    dispatcher, judge = stand_ins.pref_grpo_dispatcher(), BrightnessJudge()
    register(dispatcher, judge, name="edits")
    made = dispatcher.RewardDispatcher(args=None, device="cpu", reward_weights={"edits": 1.0})
    paths = written(tmp_path, SHOTS)
    items = [
        {"source_path": paths[number % 2], "edited_path": path, "instruction": "let it snow"}
        for number, path in enumerate(paths)
    ]
    rewards, _ = made.compute_rewards({"edits": items})
    assert judge.asked == 4 and (rewards["edits"][:2] + rewards["edits"][2:]).tolist() == pytest.approx([1, 1])


def test_pref_grpo_hears_of_a_failure(tmp_path):
    dispatcher = stand_ins.pref_grpo_dispatcher()
    register(dispatcher, failing, REFERENCES)
    made = dispatcher.RewardDispatcher(args=None, device="cpu", reward_weights={"rewarddance": 1.0})
    with pytest.raises(InputError, match=r"none\.png"):
        made.compute_rewards({"rewarddance": [{"path": str(tmp_path / "none.png"), "prompt": "a red circle"}]})
    with pytest.raises(RewardError, match="a red circle"):
        made.compute_rewards({"rewarddance": [{"path": written(tmp_path, SHOTS)[0], "prompt": "a red circle"}]})


# -- Flow-Factory ------------------------------------------------------------------------------------------------------


def flow_factory(monkeypatch: Any, name: str, **extra: Any) -> Any:
    made = stand_ins.provide(monkeypatch, "flow_factory", name)
    from flow_factory.rewards import abc  # type: ignore[import-not-found]

    assert issubclass(made, getattr(abc, f"{name}Model"))
    return made(stand_ins.reward_arguments(**extra), stand_ins.accelerator())


def test_flow_factory_has_a_pointwise_reward_against_references(monkeypatch, named):
    reward = flow_factory(monkeypatch, "PointwiseReward", judge="http://localhost:8000", references=REFERENCES)
    for media in ({"image": list(SHOTS[:, 0])}, {"video": list(SHOTS)}):
        assert reward(prompt=PROMPTS, **media).rewards.tolist() == EXPECTED
    assert reward.use_tensor_inputs and set(reward.required_fields) == {"prompt", "image"}


def test_flow_factory_has_win_rates_of_a_group(monkeypatch, named):
    options = {"judge": "a-name", "required_fields": ["prompt", "image", "condition_images"]}
    reward = flow_factory(monkeypatch, "GroupwiseReward", **options)
    sources = [SHOTS[:1, 0]] * 4  # of each sample [1, C, H, W]
    assert reward(prompt=GROUP, image=list(SHOTS[:, 0]), condition_images=sources).rewards.tolist() == RATES
    assert named.asked == 12 and reward.required_fields[-1] == "condition_images"


def test_flow_factory_says_what_a_reward_lacks(monkeypatch, named):
    with pytest.raises(InputError, match="'judge' has no judge"):
        flow_factory(monkeypatch, "PointwiseReward")
    with pytest.raises(InputError, match="compares with a reference"):
        flow_factory(monkeypatch, "PointwiseReward", judge="a-name")
    reward = flow_factory(monkeypatch, "GroupwiseReward", judge="a-name")
    with pytest.raises(InputError, match="neither image nor video"):
        reward(prompt=GROUP)
    with pytest.raises(InputError, match="2 condition images"):
        reward(prompt=GROUP, image=list(SHOTS[:, 0]), condition_images=[SHOTS[:2, 0]] * 4)
    with pytest.raises(InputError, match="alone"):
        reward(prompt=GROUP[:1], image=[SHOTS[0, 0]])


# -- verl-omni ---------------------------------------------------------------------------------------------------------


def verl_sample(number: int, video: bool = False) -> dict[str, Any]:
    pixels = (SHOTS[number] * 255).round().byte()
    form = pixels.repeat(5, 1, 1, 1) if video else pixels[0]
    return {
        "data_source": "x",
        "solution_image": form,
        "ground_truth": PROMPTS[number],
        "extra_info": {"num_turns": None},
    }


@pytest.mark.parametrize("video", [False, True])
def test_verl_omni_scores_one_sample_at_a_time(named, video, monkeypatch):
    monkeypatch.setattr("rewarddance.integrations.verl_omni._scorers", {})
    given = {"judge": "http://localhost:8000", "references": REFERENCES}
    scores = [compute_score(**verl_sample(n, video), **given, reward_router_address=None)["score"] for n in range(4)]
    assert scores == EXPECTED
    late = verl_sample(0, video=True)
    late["solution_image"] = late["solution_image"].transpose(0, 1)
    assert compute_score(**late, **given)["score"] == pytest.approx(scores[0], abs=1e-5)


def test_verl_omni_makes_a_failure_zero_unless_it_is_required(monkeypatch):
    monkeypatch.setattr("rewarddance.integrations.verl_omni._scorers", {})
    monkeypatch.setattr(scoring, "load_reward", lambda name, **options: failing)
    extra = {"judge": "http://localhost:8000", "references": REFERENCES}
    with pytest.raises(RewardError, match="a red circle"):
        compute_score(**verl_sample(0), **extra)
    assert stand_ins.sub_reward(compute_score, extra, required=False, **verl_sample(0)) == 0.0  # theirs
    with pytest.raises(RuntimeError, match="a red circle"):
        stand_ins.sub_reward(compute_score, extra, required=True, **verl_sample(0))
    with pytest.raises(InputError, match="no prompt"):
        compute_score(**verl_sample(0) | {"ground_truth": ""}, **extra)


# -- UniRL -------------------------------------------------------------------------------------------------------------


def test_unirl_has_a_backend_for_pictures_and_videos(monkeypatch, named):
    made = stand_ins.provide(monkeypatch, "unirl", "JudgeReward")
    backend = made("a-name", REFERENCES, device="cpu")
    assert backend.compute_rewards(stand_ins.RewardRequest(PROMPTS, SHOTS[:, 0])).rewards == EXPECTED
    backend = made("a-name", REFERENCES, device="cpu", input_kind="video")
    assert backend.input_kind == "video"
    assert backend.compute_rewards(stand_ins.RewardRequest(PROMPTS, list(SHOTS))).rewards == EXPECTED


def test_unirls_groups_are_those_of_its_group_ids(monkeypatch, named):
    backend = stand_ins.provide(monkeypatch, "unirl", "JudgeReward")("a-name", group=True, device="cpu")
    request = stand_ins.RewardRequest(GROUP, SHOTS[:, 0], group_ids=["a", "b", "a", "b"], source=SHOTS[:, 0])
    scores = backend.compute_rewards(request).rewards
    assert named.asked == 4 and scores[0] + scores[2] == pytest.approx(1) and scores[1] + scores[3] == pytest.approx(1)
    with pytest.raises(InputError, match="alone"):
        backend.compute_rewards(stand_ins.RewardRequest(GROUP, SHOTS[:, 0], group_ids=["a", "b", "a", "a"]))


# -- miles_diffusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 255])
def test_miles_awaits_a_list_of_numbers(scale):
    samples = [stand_ins.miles_sample(text, scale * shot) for text, shot in zip(PROMPTS, SHOTS, strict=True)]
    judge = judge_rm(BrightnessJudge(), REFERENCES)
    assert asyncio.run(stand_ins.batched_async_rm(judge, samples)) == EXPECTED
    group = [stand_ins.miles_sample(text, scale * shot) for text, shot in zip(GROUP, SHOTS, strict=True)]
    assert asyncio.run(stand_ins.batched_async_rm(judge_rm(BrightnessJudge(), group=True), group)) == RATES
    with pytest.raises(RewardError, match="a red circle"):
        asyncio.run(stand_ins.batched_async_rm(judge_rm(failing, REFERENCES), samples))


# -- cosmos-rl ---------------------------------------------------------------------------------------------------------


def test_cosmos_rl_has_a_handler_that_pickle_finds(monkeypatch, named):
    made = stand_ins.provide(monkeypatch, "cosmos_rl", "JudgeReward")
    from cosmos_rl_reward.handler.registry import RewardRegistry  # type: ignore[import-not-found]

    assert RewardRegistry.get_reward_class("rewarddance") is made
    assert pickle.loads(pickle.dumps(made)) is made  # they are handed to worker processes
    monkeypatch.setattr(made, "references", REFERENCES)
    made.initialize(
        endpoint_url="http://localhost:8000", device="cpu", dtype="float32", download_path="", model_path=""
    )
    handler = made.get_instance()
    frames = (SHOTS * 255).round().byte()
    for images in (frames[:, 0].permute(0, 2, 3, 1), frames[:, 0], frames.transpose(1, 2).repeat(1, 1, 5, 1, 1)):
        answer = handler.calculate_reward(images, {"prompts": PROMPTS, "uuid": "u"})
        assert answer["scores"]["rewarddance"] == EXPECTED and answer["type"] == "rewarddance"
    with pytest.raises(InputError, match="0 prompts"):
        handler.calculate_reward(frames[:, 0], {})


# -- TRL, ms-swift -----------------------------------------------------------------------------------------------------


def render(text: str) -> Any:
    """The picture that a completion names by its number; none for "nothing"."""
    return None if text == "nothing" else SHOTS[int(text)]


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_is_given_the_scores_of_the_drawn_completions(conversational):
    prompts: list[Any] = list(PROMPTS)
    completions: list[Any] = list("0123")
    if conversational:
        parts = [[{"type": "image"}, {"type": "text", "text": text}] for text in PROMPTS]
        prompts = [[{"role": "system", "content": "Draw."}, {"role": "user", "content": part}] for part in parts]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    reward = judge_reward(BrightnessJudge(), render, REFERENCES)
    columns = {"completion_ids": [[1]] * 4, "trainer_state": None, "wanted": PROMPTS}
    assert reward(prompts=prompts, completions=completions, **columns) == EXPECTED
    reward = judge_reward(BrightnessJudge(), render, REFERENCES, prompt_column="wanted")
    assert reward(prompts=["?"] * 4, completions=completions, **columns) == EXPECTED


def test_a_completion_without_a_picture_is_worth_what_the_user_says():
    reward = judge_reward(BrightnessJudge(), render, REFERENCES, undrawable=-1.0)
    assert reward(prompts=PROMPTS, completions=["0", "nothing", "2", "3"])[1] == -1.0
    assert reward(prompts=PROMPTS[:1], completions=["nothing"]) == [-1.0]
    reward = judge_reward(BrightnessJudge(), render, REFERENCES)
    with pytest.raises(RewardError, match="'nothing' makes no picture"):
        reward(prompts=PROMPTS[:1], completions=["nothing"])
    with pytest.raises(RewardError, match="'<svg' could not be drawn: ValueError"):
        reward(prompts=PROMPTS[:1], completions=["<svg"])
    with pytest.raises(InputError, match="no column 'wanted'"):
        judge_reward(BrightnessJudge(), render, REFERENCES, prompt_column="wanted")(prompts=["a"], completions=["0"])


def test_ms_swift_makes_it_of_a_class_and_hands_on_messages():
    reward = judge_orm(BrightnessJudge(), render, REFERENCES)(args=None)
    messages = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": str(number)}]
        for number, text in enumerate(PROMPTS)
    ]
    columns = {"messages": messages, "prompt_id": ["p"] * 4, "trainer_state": None}
    assert reward(list("0123"), **columns) == EXPECTED
    with pytest.raises(InputError, match="no turn of a user"):
        reward(["0"], messages=[[{"role": "assistant", "content": "0"}]])


def test_what_may_be_read_in_two_ways_is_refused(named):
    with pytest.raises(InputError, match="three frames or three channels"):
        compute_score("set", torch.rand(3, 3, 8, 8), "a circle", judge="named")
    for highest, verdict in ((1.5, "0..1 or of 0..255"), (2.5, None)):
        video = torch.rand(3, 4, 8, 8)
        video[0, 0, 0, 0] = highest
        if verdict is None:
            assert scoring.channels_first(video).max() == pytest.approx(2.5 / 255)
            continue
        with pytest.raises(InputError, match=verdict):
            scoring.channels_first(video)


def test_trl_hears_of_prompts_and_completions_that_do_not_match():
    reward = judge_reward(BrightnessJudge(), render, group=True)
    with pytest.raises(InputError, match="3 prompts and 2 completions"):
        reward(prompts=["a", "a", "a"], completions=["x", "y"])
    with pytest.raises(InputError, match="undrawable"):
        judge_reward(BrightnessJudge(), render, group=True, undrawable=float("nan"))
