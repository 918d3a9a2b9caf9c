"""`python -m rewarddance`: how torchrun and accelerate launch start a command."""

from __future__ import annotations

import os
import sys

from rewarddance.cli import main

try:
    main()
except SystemExit as done:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or isinstance(done.code, str):
        raise
    # The threads of a process group that a sharded model keeps are still there, and where one of them has a tensor
    # to let go of while the interpreter is taken down, the whole process aborts: leave without taking it down.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(done.code or 0)
