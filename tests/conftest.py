"""No network, two threads, one seed, and every shape in a signature checked while the tests run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports rewarddance: the hook rewrites modules as they load.
install_import_hook("rewarddance", "beartype.beartype")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
