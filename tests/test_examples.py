"""Every example runs as it stands, on the bundled checkpoints."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints_its_figures(path):
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    assert any(character.isdigit() for character in ran.stdout)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
