"""No network, two threads, one seed, and every shape in a signature checked while the tests run."""

from __future__ import annotations

import os
import threading

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from jaxtyping import install_import_hook
from tqdm import tqdm

# Before anything imports rewarddance: the hook rewrites modules as they load.
install_import_hook("rewarddance", "beartype.beartype")
torch.set_num_threads(1)
# tqdm's own lock is one semaphore for a process and all that it forks: a child that is killed while
# it holds it would stop them all.
tqdm.set_lock(threading.RLock())


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
