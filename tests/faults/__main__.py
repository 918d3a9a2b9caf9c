"""The fault plan by hand: each fault at so many random places of a tiny quickstart.

    python -m tests.faults --places 20

Prints a line for each cell that does not hold, and in the end how many did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported

import torch

from tests.faults.plan import FAULTS, NEEDS_MOUNT, can_mount, cell, undisturbed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=FAULTS)
    given, held = parser.parse_args(), dict[str, list[int]]()
    torch.set_num_threads(1)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as base:
        place = Path(base)
        whole = undisturbed(place)
        kinds = [kind for kind in given.kinds if kind not in NEEDS_MOUNT or can_mount(place)]
        print(f"a whole run computes {whole.seconds:.1f} s and writes {whole.size:,} bytes", flush=True)
        for number in range(given.places):
            for kind in kinds:
                share = rng.random()
                wrong = cell(kind, whole, place / f"{kind} {number}", share)
                held.setdefault(kind, []).append(not wrong)
                if wrong:
                    print(f"{kind} at {share:.3f}: {wrong}", flush=True)
            print(json.dumps({kind: f"{sum(of)} of {len(of)}" for kind, of in held.items()}), flush=True)


if __name__ == "__main__":
    main()
