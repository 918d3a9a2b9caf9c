"""A tokenizer that lost the names of its picture tokens is refused when the judge is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny import judge_folder

from rewarddance.errors import InputError
from rewarddance.reward.loading import load_reward


def test_a_tokenizer_without_a_picture_token_is_refused_by_the_tokens_name(tmp_path):
    folder = shutil.copytree(judge_folder(), tmp_path / "judge")
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("end_image_token", "end_image_tokem"))
    assert "end_image_tokem" in json.loads(path.read_text())
    with pytest.raises(InputError, match="end_image_token"):
        load_reward(folder)
