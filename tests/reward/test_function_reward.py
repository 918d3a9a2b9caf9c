"""Any callable is a reward: what it is given, what it may return, and what is refused."""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from rewarddance.errors import InputError, RewardError
from rewarddance.reward.function_reward import FunctionReward, as_reward, is_factory, load_function
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.loading import load_reward
from rewarddance.reward.pixel_gradient import pixel_gradient
from rewarddance.reward.ranking import tournament
from rewarddance.types import Prompt, Question

CALLS: list[tuple] = []


def brightness(images, prompts, metadata):
    CALLS.append((images, prompts, metadata))
    return images.mean((1, 2, 3))


def factory(weight: float = 1.0, device: str = "nowhere"):
    assert device == "cpu"
    return lambda images, prompts, metadata: (weight * images.mean((1, 2, 3)), {"weight": weight})


def picture(value: float, size: int = 8) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_a_function_sees_images_prompts_and_metadata():
    prompt = Prompt("a dog", metadata={"tag": "counting"})
    verdict = as_reward(brightness)([Question(prompt, picture(0.25)), Question("a cat", picture(0.5))])
    torch.testing.assert_close(verdict.margin, torch.tensor([0.25, 0.5]))
    ((images, prompts, metadata),) = CALLS
    assert images.shape == (2, 3, 8, 8) and prompts == ["a dog", "a cat"] and metadata == [{"tag": "counting"}, {}]


def test_a_reference_is_answered_by_the_difference_of_scores():
    verdict = as_reward(brightness)([Question("a dog", picture(0.75), picture(0.5))])
    torch.testing.assert_close(verdict.margin, torch.tensor([0.25]))


def test_each_distinct_picture_is_scored_once():
    pictures = [picture(value) for value in (0.1, 0.9, 0.5)]
    (ranking,) = tournament(as_reward(brightness), ["a dog"], [pictures])
    assert ranking.order.tolist() == [1, 2, 0] and sum(len(images) for images, *_ in CALLS) == 3


def test_pictures_of_two_sizes_and_videos_are_scored_apart():
    questions = [Question("a dog", picture(0.1, 4)), Question("a dog", picture(0.2, 8))]
    torch.testing.assert_close(as_reward(brightness)(questions).margin, torch.tensor([0.1, 0.2]))
    reward = as_reward(lambda images, *_: images.mean((1, 2, 3, 4)) + images.shape[1])
    assert reward([Question("a dog", torch.zeros(5, 3, 4, 4))]).margin.item() == 5


def test_a_function_of_videos_is_shown_a_video_of_one_frame_too():
    frame = [Question("a dog", torch.rand(1, 3, 4, 4))]
    shapes = []

    def seen(images, *_):
        shapes.append(tuple(images.shape) if isinstance(images, torch.Tensor) else [len(video) for video in images])
        return [0.5] * len(images)

    for options in ({}, {"videos": True}, {"videos": True, "images": "pil"}):
        as_reward(seen, **options)(frame)
    assert shapes == [(1, 3, 4, 4), (1, 1, 3, 4, 4), [1]]
    with pytest.raises(InputError, match="videos is 'yes'"):
        as_reward(seen, videos="yes")


def test_a_changed_function_is_known_by_its_code(tmp_path):
    file = tmp_path / "own.py"
    digests = set()
    for sign in ("", "-"):
        file.write_text(f"def make():\n    return lambda images, texts, rows: {sign}images.mean((1, 2, 3))\n")
        digests |= {reward_digest(f"{file}:make"), reward_digest("", load_reward(f"{file}:make"))}
    assert len(digests) == 4
    assert reward_digest("os.path:join") != reward_digest("json:loads")


class Scaled:
    def __init__(self, scale, layer=None):
        self.scale, self.layer, self._calls = scale, layer, 0

    def __call__(self, images, prompts, metadata):
        self._calls += 1
        return self.scale * images.mean((1, 2, 3))


class OwnReward(Scaled):
    needs_reference = False


def test_an_object_is_known_by_its_code_and_what_it_holds():
    def closed_over(scale):
        return lambda images, prompts, metadata: scale * images.mean((1, 2, 3))

    layers = [torch.nn.Linear(2, 1) for _ in range(2)]
    different = [closed_over(1), closed_over(2), *(partial(closed_over(1), metadata=value) for value in (1, 2))]
    different += [Scaled(1), Scaled(2), Scaled(1, layers[0]), Scaled(1, layers[1]), OwnReward(1), OwnReward(2)]
    different += [lambda images, *_: images.mean(1), lambda images, *_: -images.mean(1), np.mean, np.max]
    digests = [reward_digest("", as_reward(reward)) for reward in different]
    assert len(set(digests)) == len(different)
    assert digests[0] == reward_digest("", as_reward(closed_over(1)))
    used = as_reward(Scaled(1))
    used([Question("a dog", picture(0.5))])
    assert digests[4] == reward_digest("", used)  # what begins with an underscore is its own affair


def test_pil_pictures_are_given_where_they_are_wanted():
    def red(images, prompts, metadata):
        assert all(isinstance(image, Image.Image) for image in images)
        return [np.asarray(image)[..., 0].mean() / 255 for image in images]

    assert as_reward(red, images="pil")([Question("a dog", picture(1.0))]).margin.tolist() == [1.0]


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda values: torch.tensor(values)[:, None]])
def test_scores_may_be_a_list_an_array_or_a_tensor(kind):
    reward = as_reward(lambda images, prompts, metadata: kind([1.0, 2.0]))
    questions = [Question("a dog", picture(value)) for value in (0.0, 1.0)]
    assert reward(questions).margin.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ([1.0, None], "no score for sample 1 ('a cat')"),
        ([1.0, float("nan")], "sample 1 ('a cat') the score nan"),
        ([1.0], "shape [1] for 2 images"),
        (None, "no score for sample 0"),
        (["good", "bad"], "no numbers"),
        ({"scores": [1, 2]}, "returned a dict"),
        (torch.zeros(2, 2), "shape [2, 2]"),
        (np.ma.masked_array([1.0, 2.0], mask=[False, True]), "no score for sample 1"),
        ([1.0, np.ma.masked], "no score for sample 1"),
        (b"50", "returned bytes"),
        (torch.ones(2).to_sparse(), "sparse tensor"),
        (torch.ones(2, device="meta"), "meta tensor"),
    ],
)
def test_a_score_that_cannot_be_had_is_an_error(answer, named):
    reward = as_reward(lambda images, prompts, metadata: answer)
    with pytest.raises(RewardError) as caught:
        reward([Question("a dog", picture(0.0)), Question("a cat", picture(1.0))])
    assert named in caught.value.what and caught.value.remedy


def test_what_the_function_raises_is_told_with_the_prompt():
    def broken(images, prompts, metadata):
        raise KeyError("tag")

    with pytest.raises(RewardError, match="failed on 1 pictures, the first for 'a dog': KeyError"):
        as_reward(broken)([Question("a dog", picture(0.0))])


def test_a_function_that_ends_the_process_is_told_with_the_prompt():
    def leaves(images, prompts, metadata):
        raise SystemExit(0)

    with pytest.raises(RewardError, match="failed on 1 pictures, the first for 'a dog': SystemExit"):
        as_reward(leaves)([Question("a dog", picture(0.0))])


def test_a_gradient_comes_back_through_a_function_of_torch():
    questions = [Question("a dog", picture(0.5), picture(0.1))]
    found = pixel_gradient(as_reward(brightness), questions, lambda margin: margin.mean())
    torch.testing.assert_close(found.gradients[0], torch.full((1, 3, 8, 8), 1 / 192))


def test_a_function_without_gradient_is_refused_where_one_is_wanted():
    reward = as_reward(lambda images, prompts, metadata: images.mean((1, 2, 3)).tolist())
    with pytest.raises(RewardError, match="gives no gradient"):
        pixel_gradient(reward, [Question("a dog", picture(0.5))], lambda margin: margin.mean())
    assert reward.differentiable is None and as_reward(brightness, images="pil").differentiable is False


def test_a_judge_is_returned_as_it_is_and_what_is_no_reward_refused():
    reward = FunctionReward(brightness)
    assert as_reward(reward) is reward and not reward.needs_reference
    for wrong in (3, "a name", FunctionReward):
        with pytest.raises(InputError):
            as_reward(wrong)
    with pytest.raises(InputError, match="no form of images named 'jpeg'"):
        as_reward(brightness, images="jpeg")


def test_a_factory_is_loaded_by_name_with_its_options(tmp_path, monkeypatch):
    reward = load_reward("test_function_reward:factory", weight=4.0)
    assert reward([Question("a dog", picture(0.5))]).margin.tolist() == [2.0]
    (tmp_path / "mine.py").write_text(
        "def make():\n    return lambda images, prompts, metadata: [7.0] * len(prompts)\n"
    )
    assert load_function(f"{tmp_path}/mine.py:make")([Question("a dog", picture(0.5))]).margin.tolist() == [7.0]
    monkeypatch.chdir(tmp_path)
    assert load_reward("mine:make")([Question("a dog", picture(0.5))]).margin.tolist() == [7.0]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("nowhere.at_all:make", {}, "cannot be imported"),
        ("nowhere.py:make", {}, "cannot be imported"),
        ("test_function_reward:nothing", {}, "no factory 'nothing'"),
        ("test_function_reward:factory", {"wait": 1}, "takes no option 'wait'"),
        ("test_function_reward:picture", {}, "cannot be called"),
        ("test_function_reward:picture", {"value": 0.0}, "is no reward"),
    ],
)
def test_a_factory_that_gives_no_reward_is_refused_by_name(name, options, named):
    with pytest.raises(InputError) as caught:
        load_reward(name, **options)
    assert named in caught.value.what


@pytest.mark.parametrize("fault", ["raise SystemExit(0)", "1 / 0", "def make(:", "import nowhere_at_all"])
def test_a_module_or_factory_that_fails_is_refused_by_its_name(tmp_path, fault):
    (tmp_path / "bad.py").write_text(fault + "\n")
    with pytest.raises(InputError, match=r"the reward '.*bad.py:make' cannot be imported"):
        load_function(f"{tmp_path}/bad.py:make")
    (tmp_path / "worse.py").write_text("def make():\n    raise SystemExit(3)\n")
    with pytest.raises(InputError, match=r"the factory .*worse.py:make failed: SystemExit: 3"):
        load_function(f"{tmp_path}/worse.py:make")


def test_a_file_may_stand_anywhere_and_hold_what_a_module_may(tmp_path):
    folder = tmp_path / "my files (2)+"
    folder.mkdir()
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
    text += "@dataclass\nclass Scale:\n    by: float\n"
    text += (
        "\ndef make(by: float):\n    return lambda images, prompts, metadata: Scale(by).by * images.mean((1, 2, 3))\n"
    )
    (folder / "json.py").write_text(text)  # which hides no module of that name
    reward = load_reward(f"{folder / 'json.py'}:make", by=2.0)
    assert reward([Question("a dog", torch.ones(1, 3, 4, 4))]).margin.item() == 2
    assert json.loads("[1]") == [1] and "json" in sys.modules and hasattr(sys.modules["json"], "loads")


def test_an_error_within_a_factory_is_not_taken_for_a_missing_option(tmp_path):
    (tmp_path / "r.py").write_text("def make(by=1):\n    return len(by)\n\ndef wants(by):\n    return by\n")
    with pytest.raises(InputError, match="make failed: TypeError"):
        load_reward(f"{tmp_path / 'r.py'}:make")
    with pytest.raises(InputError, match=r"wants cannot be called: missing .*'by'"):
        load_reward(f"{tmp_path / 'r.py'}:wants")


def test_a_score_without_a_dimension_is_that_of_the_one_picture():
    reward = as_reward(lambda images, prompts, metadata: images.mean().numpy())
    assert reward([Question("a dog", torch.ones(1, 3, 4, 4))]).margin.item() == 1
    with pytest.raises(RewardError, match=r"shape \[1\] for 2"):
        reward([Question("a dog", torch.ones(1, 3, 4, 4)), Question("a cat", torch.ones(1, 3, 4, 4))])


def test_folders_and_ids_are_no_factories(tmp_path):
    assert is_factory("package.module:factory") and is_factory("rewards/mine.py:make")
    assert not any(map(is_factory, ("OpenGVLab/InternVL3-1B-hf", str(tmp_path), "shapeworld-judge", "C:\\judges\\x")))
