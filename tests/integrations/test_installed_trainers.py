"""Plug-ins inside the trainers themselves, where they are installed; elsewhere `test_trainers` has their calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import stand_ins
import torch
from tiny import BrightnessJudge, judge_folder, pictures

from rewarddance.integrations import scorer as scoring
from rewarddance.integrations.ms_swift import judge_orm
from rewarddance.integrations.scorer import Scorer
from rewarddance.integrations.trl import judge_reward

SHOTS = pictures(4)
PROMPTS = ["a red circle", "two crosses", "a red circle", "two crosses"]
REFERENCES = {"a red circle": SHOTS[1], "two crosses": SHOTS[2]}
EXPECTED = pytest.approx(Scorer(BrightnessJudge(), REFERENCES)(SHOTS, PROMPTS), abs=1e-5)
RATES = pytest.approx(Scorer(BrightnessJudge(), group=True)(SHOTS, ["a red circle"] * 4), abs=1e-5)


@pytest.fixture(autouse=True)
def named(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "load_reward", lambda name, *where, **options: BrightnessJudge())


def render(text: str) -> Any:
    """The picture of a text's length."""
    return SHOTS[len(text) % 4]


def test_trls_grpo_trainer_learns_from_it(tmp_path):
    trl = pytest.importorskip("trl", "1.0")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(judge_folder())
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    seen: list[float] = []
    reward = judge_reward(BrightnessJudge(), render, REFERENCES)

    def kept(**given: Any) -> list[float]:
        seen.extend(reward(**given))
        return seen[-len(given["prompts"]) :]

    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    data = datasets.Dataset.from_dict({"prompt": PROMPTS})
    trainer = trl.GRPOTrainer(policy, kept, config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert len(seen) == 4 and all(0 < score < 1 for score in seen)
    (logged,) = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == pytest.approx(sum(seen) / 4, abs=1e-5)


def test_ms_swifts_grpo_asks_it(tmp_path):
    pytest.importorskip("swift")
    from swift.rewards import orms
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import compute_rewards_per_func

    orms["rewarddance"] = judge_orm(BrightnessJudge(), render, REFERENCES)
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "-" * number}]}
        for number, text in enumerate(PROMPTS)
    ]
    samples = [GRPOSample.from_row(row) for row in rows]
    rewards = compute_rewards_per_func(samples, [orms["rewarddance"](args=None)], [None], torch.device("cpu"))
    assert rewards[:, 0].tolist() == EXPECTED


def test_verl_finds_the_function_and_hands_it_its_options(monkeypatch):
    pytest.importorskip("verl")
    omegaconf = pytest.importorskip("omegaconf")
    from verl.trainer.ppo.reward import get_custom_reward_fn

    monkeypatch.setattr("rewarddance.integrations.verl_omni._scorers", {})
    options = {"judge": "http://localhost:8000", "options": {"kind": "pairwise"}, "references": None}
    monkeypatch.setattr(scoring, "load_reward", lambda name, **options: lambda questions: None)
    monkeypatch.setattr(scoring, "as_reward", lambda judge: judge)
    own = {"path": "pkg://rewarddance.integrations.verl_omni", "name": "compute_score", "reward_kwargs": options}
    function = get_custom_reward_fn(omegaconf.OmegaConf.create({"reward": {"custom_reward_function": own}}))
    asked = []
    monkeypatch.setattr(
        "rewarddance.integrations.verl_omni.Scorer",
        lambda *given, **named: asked.append((given, named)) or (lambda images, prompts: [0.25]),
    )
    pixels = (SHOTS[0, 0] * 255).round().byte()
    sample = {"data_source": "x", "solution_image": pixels, "ground_truth": PROMPTS[0], "extra_info": {}}
    assert function is not None and function(**sample) == {"score": 0.25}
    assert asked == [(("http://localhost:8000", None), {"kind": "pairwise"})]


def test_flow_factorys_processor_gives_each_sample_its_score(monkeypatch):
    pytest.importorskip("flow_factory")
    from accelerate import Accelerator
    from flow_factory.hparams import RewardArguments
    from flow_factory.rewards.reward_processor import RewardProcessor
    from flow_factory.samples import T2ISample

    accelerator = Accelerator(cpu=True)
    models = {}
    for name, own in (("PointwiseReward", {"references": REFERENCES}), ("GroupwiseReward", {})):
        given = {"name": name, "device": "cpu", "dtype": "float32", "judge": "http://localhost:8000"} | own
        made = stand_ins.provide(monkeypatch, "flow_factory", name)
        models[name] = made(RewardArguments.from_dict(given), accelerator)
    processor = RewardProcessor(accelerator, models, group_on_same_rank=True, verbose=False)
    samples = [T2ISample(image=shot[0], prompt=text) for shot, text in zip(SHOTS, PROMPTS, strict=True)]
    rewards = processor.compute_rewards(samples)
    assert rewards["PointwiseReward"].tolist() == EXPECTED
    assert (rewards["GroupwiseReward"][:2] + rewards["GroupwiseReward"][2:]).tolist() == pytest.approx([1, 1])


def test_unirls_backend_answers_its_own_request(monkeypatch):
    pytest.importorskip("unirl")
    from unirl.types.primitives import Images, Texts, Video, Videos
    from unirl.types.reward import RewardRequest

    made = stand_ins.provide(monkeypatch, "unirl", "JudgeReward")
    text = {"text": Texts(texts=PROMPTS)}
    request = RewardRequest(primitives=text, generated={"image": Images(pixels=SHOTS[:, 0])})
    assert made("http://localhost:8000", REFERENCES).compute_rewards(request).rewards == EXPECTED
    videos = Videos.from_list([Video(frames=shot.repeat(3, 1, 1, 1)) for shot in SHOTS])
    request = RewardRequest(primitives=text, generated={"video": videos})
    assert made("http://localhost:8000", REFERENCES, input_kind="video").compute_rewards(request).rewards == EXPECTED
    group = RewardRequest(
        primitives={"text": Texts(texts=["a red circle"] * 4)},
        generated={"image": Images(pixels=SHOTS[:, 0])},
        group_ids=["g"] * 4,
    )
    answer = made("http://localhost:8000", group=True).compute_rewards(group)
    assert answer.rewards == RATES and answer.successes == [True] * 4


def test_flow_grpos_own_multi_score_has_it(monkeypatch):
    """Their file with the one entry that the guide adds."""
    rewards = pytest.importorskip("flow_grpo.rewards")
    import inspect

    source = inspect.getsource(rewards.multi_score)
    assert "score_functions = {" in source
    from rewarddance.integrations.flow_grpo import judge_score

    names = dict(vars(rewards)) | {"ours": judge_score("http://localhost:8000", REFERENCES)}
    exec(source.replace("score_functions = {", 'score_functions = {"rewarddance": ours, ', 1), names)
    made = names["multi_score"](torch.device("cpu"), {"rewarddance": 0.5, "jpeg_compressibility": 0.0})
    scores, _ = made(SHOTS[:, 0], tuple(PROMPTS), [{}] * 4, only_strict=True)
    assert scores["rewarddance"] == EXPECTED and len(scores["avg"]) == 4


def test_pref_grpos_own_dispatcher_has_it(tmp_path):
    dispatcher = pytest.importorskip("fastvideo.rewards.dispatcher")
    from rewarddance.integrations.pref_grpo import register

    register(dispatcher, "http://localhost:8000")
    made = dispatcher.RewardDispatcher(args=SimpleNamespace(), device="cpu", reward_weights={"rewarddance": 1.0})
    inputs = made.build_reward_inputs()
    for path in stand_ins.written(tmp_path, SHOTS):
        inputs["rewarddance"].append({"path": path, "prompt": "a red circle"})
    rewards, _ = made.compute_rewards(inputs)
    assert rewards["rewarddance"].tolist() == RATES
    own = {"gather_tensor": None, "use_group": True, "num_generations": 4}
    advantages, _ = dispatcher.compute_weighted_advantages(rewards, {"rewarddance": 1.0}, **own)
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
