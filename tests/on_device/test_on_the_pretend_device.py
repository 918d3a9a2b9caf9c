"""The inner loops on a device that refuses what CUDA refuses; it is of a whole process, so each file has its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pretend_device
import pytest

HERE = Path(__file__).parent
missing = pretend_device.missing_compilers()


@pytest.mark.skipif(bool(missing), reason=f"the pretend device is built by {' and '.join(missing)}, not found here")
@pytest.mark.timeout(620)
@pytest.mark.parametrize("part", ["device", "judging", "aligning", "searching"])
def test_the_loops_run_and_wait_for_what_they_may_only(part):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"{HERE / part}.py"]
    done = subprocess.run(line, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
