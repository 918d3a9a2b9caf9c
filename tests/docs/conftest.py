"""Who reads a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import ROOT
from tiny import colour_preferences, pictures

from rewarddance.data.media import write_picture
from rewarddance.data.preferences import write_preferences


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader who begins a page is taken to have: votes, pictures, prompts, and a clone around them."""
    folder = tmp_path_factory.mktemp("reader")
    for seed, (name, size) in enumerate({"votes": "small", "held_out": "large", "unseen": "wide"}.items()):
        rows = folder / f"{name}.jsonl"
        write_preferences(colour_preferences(8, seed), rows)
        rows.write_text(rows.read_text().replace("a small", f"a {size}"))  # a prompt is in one file alone
    shots = pictures(6)
    for name, pixels in zip("abc", shots, strict=False):
        write_picture(pixels, folder / f"{name}.png")
    for number, pixels in enumerate(shots[3:], start=1):
        write_picture(pixels, folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a red circle")
    (folder / "prompts.txt").write_text("a red circle\na blue cross\n")
    for name in ("recipes", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder
