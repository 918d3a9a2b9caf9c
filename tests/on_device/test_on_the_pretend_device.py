"""The inner loops on a device that refuses what CUDA refuses; it is of a whole process, so these files have their own.

`python -m pytest tests/on_device/judging.py` runs one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pretend_device
import pytest

HERE = Path(__file__).parent
PARTS = ("device", "aligning", "judging", "searching")
"""The last two put the device into the commands, for all that comes after."""
missing = pretend_device.missing_compilers()


@pytest.mark.skipif(bool(missing), reason=f"the pretend device is built by {' and '.join(missing)}, not found here")
@pytest.mark.timeout(1220)
def test_the_loops_run_and_wait_for_what_they_may_only():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    line += [f"{HERE / part}.py" for part in PARTS]
    done = subprocess.run(line, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
