"""The hierarchical reward: weighted means over a tree, and leaves that are questions like any other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import judge_folder, pictures

from rewarddance.errors import InputError
from rewarddance.reward.criteria import CriteriaReward, averaged
from rewarddance.reward.instructions import Criterion, load_tree
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import tournament
from rewarddance.types import Question, Verdict

TREE = {
    "alignment": Criterion(
        weight=3, criteria={"count": Criterion(meaning="as many"), "colour": Criterion(meaning="as said", weight=4)}
    ),
    "quality": Criterion(meaning="clean"),
}


OWN_TREE = """name: mine
version: 1
criteria: {form: {meaning: the outline is right}}
pairwise: "{prompt}{reference}{candidate}{criteria} Is the candidate better? {answer}"
"""


class LeafJudge:
    """Margin = the number that stands for the leaf, times the candidate's mean. Keeps what it was asked."""

    needs_reference = True

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.asked += questions
        leaves = list(load_tree("t2i").leaves)
        numbers = [leaves.index(str(q.instruction).partition("#")[2]) for q in questions]
        return Verdict(torch.stack([n * q.candidate.mean() for n, q in zip(numbers, questions, strict=True)]))


def of(value: float) -> torch.Tensor:
    return torch.tensor([value])


def test_a_node_is_the_weighted_mean_of_those_right_below_it():
    leaves = {"alignment/count": of(-1.0), "alignment/colour": of(2.0), "quality": of(0.5)}
    found = averaged(TREE, leaves, "margin")
    assert found["alignment"].item() == pytest.approx((1 * -1 + 4 * 2) / 5)
    assert found[""].item() == pytest.approx((3 * found["alignment"].item() + 0.5) / 4)
    assert set(found) == {"", "alignment", *leaves}
    probable = averaged(TREE, leaves, "probability")
    alignment = (of(-1.0).sigmoid() + 4 * of(2.0).sigmoid()) / 5
    torch.testing.assert_close(probable["alignment"].sigmoid(), alignment)
    torch.testing.assert_close(probable[""].sigmoid(), (3 * alignment + of(0.5).sigmoid()) / 4)


@given(st.floats(-8, 8, width=32), st.sampled_from(["margin", "probability"]))
def test_leaves_that_agree_are_the_verdict(value, average):
    found = averaged(TREE, {path: of(value) for path in ("alignment/count", "alignment/colour", "quality")}, average)
    assert all(margin.item() == pytest.approx(value, abs=1e-3) for margin in found.values())


def test_one_fault_outweighs_in_margins_and_has_its_share_in_probabilities():
    leaves = {"alignment/count": of(-30.0), "alignment/colour": of(3.0), "quality": of(3.0)}
    assert averaged(TREE, leaves, "margin")[""].item() < 0 < averaged(TREE, leaves, "probability")[""].item()


def test_all_leaves_of_a_question_are_asked_in_a_row_and_make_the_whole():
    judge = LeafJudge()
    reward = CriteriaReward(judge, "t2i")
    shown = pictures(3)
    asked = [Question("a red circle", one, shown[2]) for one in shown[:2]]
    verdict = reward(asked)
    leaves = list(load_tree("t2i").leaves)
    assert [q.instruction for q in judge.asked] == [f"t2i#{leaf}" for leaf in leaves] * 2
    assert [q.candidate is asked[0].candidate for q in judge.asked] == [True] * len(leaves) + [False] * len(leaves)
    parts = reward.by_criterion(asked)
    assert set(parts) == {"alignment", "quality", *leaves}
    for number, leaf in enumerate(leaves):
        torch.testing.assert_close(parts[leaf].margin, number * torch.stack([q.candidate.mean() for q in asked]))
    whole = (2 * parts["alignment"].margin + parts["quality"].margin) / 3
    torch.testing.assert_close(verdict.margin, whole)


@pytest.mark.parametrize("average", ["margin", "probability"])
def test_one_criterion_of_a_tree_is_asked_alone_and_is_the_trees_own(average):
    judge, shown = LeafJudge(), pictures(3)
    asked = [Question("a red circle", one, shown[2]) for one in shown[:2]]
    whole = CriteriaReward(LeafJudge(), "t2i", average).by_criterion(asked)
    for name in ("alignment", "quality", "alignment/count"):
        reward, before = CriteriaReward(judge, f"t2i#{name}", average), len(judge.asked)
        torch.testing.assert_close(reward(asked).margin, whole[name].margin)
        assert set(reward.by_criterion(asked)) == {
            path for path in whole if path == name or path.startswith(f"{name}/")
        }
        new = judge.asked[before:]
        assert {q.instruction for q in new} == {f"t2i#{leaf}" for leaf in reward.leaves}
    with pytest.raises(InputError, match=r"tree of criteria 't2i' has no criterion 'beauty'.*alignment/count"):
        CriteriaReward(judge, "t2i#beauty")


def test_a_leafs_verdict_is_the_judges_own_on_that_question():
    judge = load_reward(str(judge_folder()))
    shown = pictures(4)
    asked = [Question("a red circle", shown[i], shown[i + 2]) for i in range(2)]
    parts = CriteriaReward(judge, "t2i").by_criterion(asked)
    for leaf in ("alignment/count", "quality/sharpness"):
        own = judge([Question(q.prompt, q.candidate, q.reference, f"t2i#{leaf}") for q in asked])
        torch.testing.assert_close(parts[leaf].margin, own.margin, atol=1e-5, rtol=1e-5)
    found = torch.stack([parts[leaf].margin for leaf in load_tree("t2i").leaves])
    assert found.std(0).min() > 1e-3  # the criteria are different questions


def test_it_is_a_reward_model_like_any_other():
    judge = load_reward(str(judge_folder()))
    reward = CriteriaReward(judge, "t2i", average="probability")
    shown = list(pictures(3))
    (ranking,) = tournament(reward, ["a red circle"], [shown])
    assert sorted(ranking.order.tolist()) == [0, 1, 2]
    candidate = shown[0].clone().requires_grad_()
    reward([Question("a red circle", candidate, shown[1])]).margin.sum().backward()
    assert candidate.grad is not None and candidate.grad.abs().sum() > 0
    assert reward([]).margin.shape == (0,) and reward.by_criterion([]) == {}


def test_a_pointwise_judge_is_asked_the_trees_pointwise_questions():
    judge = load_reward(str(judge_folder()), kind="pointwise")
    (picture,) = pictures(1)
    parts = CriteriaReward(judge, "t2i").by_criterion([Question("a red circle", picture)])
    own = judge([Question("a red circle", picture, instruction="t2i#quality/artefacts")])
    torch.testing.assert_close(parts["quality/artefacts"].margin, own.margin, atol=1e-5, rtol=1e-5)


def test_a_users_own_tree_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN_TREE)
    judge = load_reward(str(judge_folder()))
    a, b = pictures(2)
    found = CriteriaReward(judge, str(path))([Question("a red circle", a, b)])
    own = judge([Question("a red circle", a, b, f"{path}#form")])
    torch.testing.assert_close(found.margin, own.margin, atol=1e-5, rtol=1e-5)


def test_what_a_tree_cannot_be_asked_is_refused_by_name():
    with pytest.raises(InputError, match=r"no average named 'median'.*margin or probability"):
        CriteriaReward(LeafJudge(), "t2i", average="median")
    with pytest.raises(InputError, match="no tree of criteria named 't2x'"):
        CriteriaReward(LeafJudge(), "t2x")
    a, b = pictures(2)
    with pytest.raises(InputError, match=r"question 1 \('x'\) names the instruction 't2i'"):
        CriteriaReward(LeafJudge(), "t2i")([Question("x", a, b), Question("x", a, b, "t2i")])


def test_load_reward_gives_a_tree_by_one_key_and_its_folder_keeps_it(tmp_path):
    asked = [Question("a red circle", *pictures(2))]
    reward = load_reward(str(judge_folder()), criteria="t2i", criteria_average="probability")
    own = CriteriaReward(load_reward(str(judge_folder())), "t2i", "probability")
    assert isinstance(reward, CriteriaReward) and reward.needs_reference
    torch.testing.assert_close(reward(asked).margin, own(asked).margin)
    assert "criteria='t2i'" in repr(reward) and repr(reward).startswith("CriteriaReward(kind='pairwise'")
    reward.save(tmp_path)
    again = load_reward(tmp_path)
    torch.testing.assert_close(again(asked).margin, own(asked).margin)
    assert not load_reward(str(judge_folder()), kind="pointwise", criteria="t2i").needs_reference


def test_a_users_own_tree_is_saved_with_its_reward(tmp_path):
    path, asked = tmp_path / "mine.yaml", [Question("a red circle", *pictures(2))]
    path.write_text(OWN_TREE)
    reward = load_reward(str(judge_folder()), criteria=str(path))
    expected = reward(asked).margin
    reward.save(tmp_path / "reward")
    load_reward(str(judge_folder()), criteria=f"{path}#form").save(tmp_path / "form")
    path.unlink()
    torch.testing.assert_close(load_reward(tmp_path / "reward")(asked).margin, expected)
    torch.testing.assert_close(load_reward(tmp_path / "form")(asked).margin, expected)


def test_a_tree_scores_ranks_and_serves_other_loops_but_is_not_trained():
    reward, shown = load_reward(str(judge_folder()), criteria="t2i"), list(pictures(3))
    assert reward.score("a red circle", shown).margin.shape == reward.rank("a red circle", shown).order.shape == (3,)
    scores, _ = reward.reward_fn()(shown, ["a red circle"] * 3, None)
    assert scores.shape == (3,)
    with pytest.raises(InputError, match="not trained"):
        reward.loss([])
    with pytest.raises(InputError, match="no reasons"):
        reward.explain([])


@pytest.mark.parametrize(
    "changes", [{"criteria": "t3i"}, {"criteria": "t2i#beauty"}, {"criteria": "t2i", "kind": "clip"}]
)
def test_a_tree_that_there_is_not_or_that_a_kind_cannot_answer_is_refused(changes):
    with pytest.raises(InputError, match="criteria"):
        load_reward(str(judge_folder()), **changes)


@pytest.mark.parametrize("part", ["keeping", "keeping/objects", "quality"])
def test_a_part_of_a_tree_has_its_leaves_at_the_same_shares(part):
    whole, tree = load_tree("edit"), load_tree(f"edit#{part}")
    below = {leaf: weight for leaf, weight in whole.leaf_weights.items() if f"{leaf}/".startswith(f"{part}/")}
    assert list(tree.leaves) == list(below)
    total = sum(below.values())
    assert tree.leaf_weights == pytest.approx({leaf: weight / total for leaf, weight in below.items()})


def test_a_part_that_a_tree_has_not_is_refused_with_those_it_has():
    with pytest.raises(InputError, match=r"'edit' has no criterion 'kept'.* keeping"):
        load_tree("edit#kept")
