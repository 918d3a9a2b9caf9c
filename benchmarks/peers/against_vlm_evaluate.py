"""P(yes) of pictures: Flow-Factory's own reward `vllm_evaluate` against our judge, which has the same weights.

Its reward sends a request a picture, as JPEG in base64, to an OpenAI-compatible server and reads P(Yes) off the first
token's likelihoods. The server stands here in the same process: a forward of the whole model a request. Ours is asked
in the same order (picture, then question) about the pictures as the server saw them, and in our own order, in which
what is asked comes first and is computed once.
"""

from __future__ import annotations

import base64
import io
import types
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from judges import build_judge, candidates
from peers.against_flow_factory import importable
from peers.clones import clone_of
from peers.comparison import Comparison, Work
from PIL import Image
from torch import Tensor

from rewarddance.data.media import as_images
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.pointwise import PointwiseReward
from rewarddance.reward.prefill import parts_of
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.types import Question

COUNT = 4
TEMPLATE = """name: {name}
version: 1
pointwise: |-
  {text}
"""


def judge_asked(vlm: VisionLanguageModel, folder: Path, name: str, text: str) -> PointwiseReward:
    """The judge with a question of this form."""
    path = folder / f"{name}.yaml"
    path.write_text(TEMPLATE.format(name=name, text=text))
    return PointwiseReward(vlm, RewardConfig(kind="pointwise", instruction=str(path))).freeze()


class Server:
    """In place of the OpenAI client: answers a request by a forward of the whole model, its picture as it came."""

    def __init__(self, judge: PointwiseReward) -> None:
        self.judge, self.seen = judge, list[Tensor]()
        self.chat = types.SimpleNamespace(completions=types.SimpleNamespace(create=self.answer))

    @torch.no_grad()
    async def answer(self, messages: Any, **named: Any) -> Any:
        picture, question = (part[part["type"]] for part in messages[0]["content"])
        raw = base64.b64decode(picture["url"].partition(",")[2])
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(raw)))).permute(2, 0, 1)[None].float() / 255
        self.seen.append(pixels)
        vlm, config = self.judge.vlm, self.judge.config
        parts = tuple(load_instruction(config.instruction).pointwise_question(question))
        inputs = vlm.family.model_inputs(parts_of(JudgeInput(parts, (pixels,))), (pixels,), ())
        likely = self.judge.model(**inputs).logits[0, -1].log_softmax(0)
        top = [
            types.SimpleNamespace(token=token, logprob=float(likely[vlm.answer_tokens(words)].logsumexp(0)))
            for token, words in (("Yes", config.yes), ("No", config.no))
        ]
        first = types.SimpleNamespace(top_logprobs=top)
        return types.SimpleNamespace(choices=[types.SimpleNamespace(logprobs=types.SimpleNamespace(content=[first]))])


def comparison(peers: Path) -> Comparison:
    importable(clone_of("Flow-Factory", peers))
    from flow_factory.rewards.vllm_evaluate import VLMEvaluateRewardModel

    vlm, scratch = build_judge().vlm, Path(mkdtemp())
    same = judge_asked(vlm, scratch, "picture-first", "{candidate}\n  {prompt}")
    prompt_first = judge_asked(vlm, scratch, "picture-last", "{prompt}\n  {candidate}")
    server, text = Server(same), VLMEvaluateRewardModel.EVALUATE_PROMPT
    config = types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, extra_kwargs={"max_cache_size": 0})
    reward = VLMEvaluateRewardModel(config, types.SimpleNamespace(device=torch.device("cpu")))
    reward.client, reward._add_to_cache = server, lambda key, value: None
    pictures = [one for video in candidates(COUNT) for one in as_images(video)]

    def theirs() -> Tensor:
        return reward(prompt=[""] * COUNT, image=pictures).rewards

    answers = theirs()
    seen: Sequence[Tensor] = list(server.seen)

    def ours(judge: PointwiseReward) -> Work:
        return lambda: judge([Question(text, pixels) for pixels in seen]).probability

    works: dict[str, Work] = {f"Flow-Factory's vllm_evaluate, {COUNT} pictures": theirs}
    works |= {"ours, the same question": ours(same), "ours, the question before the picture": ours(prompt_first)}
    with torch.no_grad():
        found: Any = works["ours, the same question"]()
    return Comparison(works, {"P(yes)": float((found.cpu() - answers).abs().max())})
