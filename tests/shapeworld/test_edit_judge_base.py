"""The recipe of the edit judge base, with a few steps in place of thousands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from edit_exam import EditExam
from tiny import killed_after_save
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.errors import InputError
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.edits.oracle import EditScore
from rewarddance.shapeworld.edits.preferences import EDITED
from rewarddance.shapeworld.edits.specs import KINDS
from rewarddance.shapeworld.scenes import Thing
from rewarddance.shapeworld.training import edit_judge
from rewarddance.shapeworld.training.edit_conversations import EditConversations, became, compared, judged
from rewarddance.shapeworld.training.edit_judge import BEGIN, build_edit_judge_base, make_edit_judge_base
from rewarddance.types import Prompt, Question

RED, BLUE = Thing("circle", "red", 8, 2, 2), Thing("square", "blue", 12, 16, 16)
SCORE = EditScore(1.0, 0.8, 1.0, "move", ())
make = partial(make_edit_judge_base, steps=8, adversarial_steps=2, last_steps=1, batch=2, log=lambda line: None)


@pytest.fixture(scope="module")
def base():
    return build_edit_judge_base()


def test_an_edit_judge_is_made_and_killed_it_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_judge, "SAVE_EVERY", 4)
    make(tmp_path / "whole")
    with killed_after_save(1), pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    with pytest.raises(InputError, match="another training"):
        make(tmp_path / "killed", seed=1)
    make(tmp_path / "killed")
    whole, again = (
        InternVLForConditionalGeneration.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not (tmp_path / "killed-training.pt").exists()
    source, first, second = torch.rand(3, 1, 3, 32, 32)
    judge = load_reward(str(tmp_path / "whole"), instruction="edit-brief")
    asked = Question(Prompt("make the circle red", image=source), first, second)
    assert torch.isfinite(judge([asked]).margin).all()


def test_it_begins_with_another_judges_weights_and_words(base):
    model, tokenizer = base
    theirs = InternVLForConditionalGeneration.from_pretrained(find_checkpoint(BEGIN), dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(find_checkpoint(BEGIN)).get_vocab()
    ours, old = model.state_dict(), theirs.state_dict()
    assert all(torch.equal(ours[name], old[name]) for name in old if "embed" not in name and "lm_head" not in name)
    for word in ("yes", "Ġred", "Ġcircle"):
        new = model.get_input_embeddings().weight[tokenizer.vocab[word]]
        assert torch.equal(new, theirs.get_input_embeddings().weight[words[word]])
    text = "please replace the small circle with a blue cross Source: Is all else in the candidate as in the source?"
    assert len(tokenizer(text).input_ids) == len(text.replace(":", " :").replace("?", " ?").split())


def test_a_conversation_opens_as_the_template_does(base):
    model, tokenizer = base
    conversations = EditConversations(tokenizer, model.config.image_seq_length, 0)
    parts = load_instruction("edit-brief").question("remove the cross")
    asked = "".join(
        "<img>" + "<IMG_CONTEXT>" * 16 + "</img>\n" if isinstance(part, Picture) else part for part in parts
    )
    opening = tokenizer.decode(conversations.opening("remove the cross", ["reference", "candidate"], True))
    assert ("<|im_start|>user\n" + asked).startswith(opening)


def test_a_conversation_is_about_a_source_and_its_edits(base):
    model, tokenizer = base
    conversations, asked = EditConversations(tokenizer, model.config.image_seq_length, 0), set()
    for _ in range(40):
        ids, labels, pictures, patches = conversations.conversation()
        text = tokenizer.decode(ids)
        assert len(ids) == len(labels) and len(pictures) == len(patches) in (2, 3)
        assert text.count("<IMG_CONTEXT>") == 16 * len(pictures) and "better" not in text
        kinds = ("change made", "all else in", "become of", "new in", "gone from", "wrong", "follow the prompt more")
        asked |= {kind for kind in kinds if kind in text}
    assert len(asked) == 7
    coins = EditConversations(tokenizer, model.config.image_seq_length, 0, coin_share=1.0)
    texts = [tokenizer.decode(coins.conversation().token_ids) for _ in range(12)]
    assert all(text.count("Is the candidate better than the reference?") == 1 for text in texts)


def test_what_became_of_an_object_is_told_in_words():
    scene = (RED, BLUE)
    changes = {
        "nothing": RED,
        "gone": None,
        "green": replace(RED, colour="green"),
        "a red cross": replace(RED, shape="cross"),
        "larger": replace(RED, side=12, x=0, y=0),
        "moved right": replace(RED, x=12),
        "moved down": replace(RED, y=20),
    }
    for answer, thing in changes.items():
        assert became(RED, scene, ((thing, BLUE) if thing else (BLUE,))) == answer


def test_following_and_keeping_are_asked_apart_and_compared_where_they_differ():
    answers = dict(judged("candidate", SCORE))
    assert answers["Is the change made in the candidate?"] == "yes"
    assert answers["Is all else in the candidate as in the source?"] == "no"
    assert answers["Does the candidate match the prompt?"] == "no"
    assert answers["How much of all else does the candidate keep?"] == "most"
    assert compared(SCORE, replace(SCORE, keeping=0.2)) == [("Does the candidate keep more than the reference?", "yes")]


def test_the_exam_knows_every_kind_of_edit_and_asks_in_the_right_order(base):
    model, tokenizer = base
    exam = EditExam(tokenizer, model.config.image_seq_length, 0, tasks=1)
    assert [case.edited for case in exam.cases] == [*EDITED] * len(KINDS)
    truths = {case.edited: case.truth for case in exam.cases}
    assert truths["right"] == {"change": True, "kept": True, "match": True}
    assert not truths["untouched"]["change"] and truths["untouched"]["kept"]
    figures = exam.figures(model)
    assert set(figures["change"]) == set(figures["match"]) == {*KINDS, *EDITED}
    assert set(figures["pairs"]) >= set(KINDS) and "right" not in figures["pairs"]
    assert all(0 <= share <= 1 for of in figures.values() for share in of.values())
