"""Ours beside the peers' own code: one tiny random pipeline, one process, one thread, in turn, at equal gradients.

python benchmarks/peers/all.py --peers DIR            all rows; the last line is JSON
python benchmarks/peers/all.py --peers DIR refl nft   some of them: those of ROWS

DIR holds the peers' clones, each in a folder of its name (`clones.CLONES` says of which commit). One that is absent
leaves its rows out, and it is said how to get it. Packages that a peer needs are also found in DIR/extra. What of a
peer had to be changed, so that it runs here, is said at the head of each `against_*.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import diffusers
import torch
from peers.comparison import Comparison, measured

from rewarddance.errors import InputError
from rewarddance.runtime.allocator import keep_freed_memory

ROWS = {
    "refl": ("against_imagereward", "comparison"),
    "grpo": ("against_flow_grpo", "without_guidance"),
    "grpo-guided": ("against_flow_grpo", "with_guidance"),
    "nft": ("against_diffusion_nft", "comparison"),
    "flow-factory": ("against_flow_factory", "comparison"),
    "judge": ("against_vlm_evaluate", "comparison"),
}


def built(row: str) -> Callable[[Path], Comparison]:
    module, name = ROWS[row]
    return getattr(import_module(f"peers.{module}"), name)


def report(rows: Sequence[str], peers: Path, rounds: int) -> dict[str, dict]:
    """Print and return the figures of each row, or why it is left out."""
    found: dict[str, dict] = {}
    for row in rows:
        try:
            comparison = built(row)(peers)
        except InputError as error:
            found[row] = {"left_out": error.what, "remedy": error.remedy}
            print(f"{row} is left out: {error.what}\n    {error.remedy}", flush=True)
            continue
        found[row] = {"away": dict(comparison.away), **measured(comparison, rounds)}
        for what, figures in found[row].items():
            print(f"{row}: {what}: {figures}", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR", help="the folder of the peers' clones")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; the best counts")
    given = parser.parse_args(arguments)
    if unknown := set(given.rows) - ROWS.keys():
        parser.error(f"there is no row {sorted(unknown)[0]}: there are {', '.join(ROWS)}")
    sys.path.append(str(given.peers / "extra"))
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    keep_freed_memory()
    print(json.dumps(report(given.rows or list(ROWS), given.peers, given.rounds)))


if __name__ == "__main__":
    main()
