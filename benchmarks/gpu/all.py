"""Everything that only a GPU can say, in one run of about ten minutes on one card, without network or checkpoints.

python benchmarks/gpu/all.py OUTPUT                       writes OUTPUT/gpu.json and OUTPUT/gpu.md
python benchmarks/gpu/all.py OUTPUT --parts scoring refl  some of its parts; those that are there already are kept

Each part is a process of its own with time of its own. One that fails, or that has no time left, costs itself: what it
found before is kept, and why it ended is written down. Models have random weights of the real shapes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that has looked for CUDA itself cannot be forked
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import torch
from card import Card
from claims import CLAIMS
from parts import PARTS, Part
from sizes import REAL, Sizes

from rewarddance.planning.hardware import GPUS

LONGEST = 570.0
"""Seconds of a whole run, where nothing else is said."""


def _work(part: Part, device: str, sizes: Sizes, path: Path) -> None:
    """In a process of its own: run a part, and keep what it finds in a file at once."""
    figures: dict[str, Any] = {}

    def found(**more: Any) -> None:
        figures.update(more)
        path.write_text(json.dumps({"figures": figures}))

    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        part.run(Card(device, GPUS["h200"].bf16), sizes, found)
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:600]}"
        where = traceback.format_exc().splitlines()[-8:]
        path.write_text(json.dumps({"figures": figures, "failed": told, "where": where}))


def run_part(part: Part, device: str, sizes: Sizes, seconds: float, path: Path) -> dict[str, Any]:
    """What a part found, its seconds, and how it failed, if it did."""
    path.unlink(missing_ok=True)
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(part, device, sizes, path))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"figures": {}}
    if late:
        told["failed"] = f"it was not done in {seconds:.0f} s"
    elif process.exitcode and "failed" not in told:
        told["failed"] = f"its process ended with {process.exitcode}"
    return told | {"seconds": round(time.monotonic() - began, 1)}


def run(output: Path, device: str, sizes: Sizes, names: Sequence[str], longest: float = LONGEST) -> dict[str, Any]:
    """Run parts one after the other, and write the JSON and the page after each."""
    output.mkdir(parents=True, exist_ok=True)
    path, end = output / "gpu.json", time.monotonic() + longest
    whole: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    whole |= {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "device": device, "torch": torch.__version__}
    whole["card"] = {"peak": GPUS["h200"].bf16, "name": _name(device)}
    for name in names:
        part, left = PARTS[name], end - time.monotonic()
        if left < 5:
            whole["parts"][name] = {"figures": {}, "failed": "no time was left", "seconds": 0.0}
        else:
            whole["parts"][name] = run_part(part, device, sizes, min(part.seconds, left), output / f".{name}.json")
        told = whole["parts"][name]
        print(f"{name}: {told['seconds']} s {told.get('failed', '')}", json.dumps(told["figures"]), flush=True)
        path.write_text(json.dumps(whole, indent=1) + "\n")
        (output / "gpu.md").write_text(page(whole))
    return whole


def _name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    asked = multiprocessing.get_context("fork").Pool(1)
    try:
        return asked.apply(torch.cuda.get_device_name, (device,))
    finally:
        asked.terminate()


def page(whole: dict[str, Any]) -> str:
    """The figures to reach and those that were measured, what failed, and all figures."""
    found = {name: part["figures"] for name, part in whole["parts"].items()} | {"card": whole["card"]}
    head = f"Measured on {whole['date']} on {whole['card']['name']}, torch {whole['torch']}, random weights."
    lines = ["# On a GPU", "", head, "", "| figure | to reach | measured |", "|---|---|---|"]
    lines += [f"| {claim.figure} | {claim.to_reach} | {_measured(claim.measured, found)} |" for claim in CLAIMS]
    failed = [f"- {name}: {part['failed']}" for name, part in whole["parts"].items() if "failed" in part]
    lines += ["", "## What failed", "", *failed] if failed else []
    lines += ["", "## All figures", ""]
    for name, part in whole["parts"].items():
        lines += [f"- {name} ({part['seconds']} s): {json.dumps(part['figures'])}"]
    return "\n".join(lines) + "\n"


def _measured(measured: Callable[[Any], str], found: Any) -> str:
    try:
        return measured(found)
    except KeyError:
        return "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=LONGEST, help="of the whole run")
    given = parser.parse_args()
    run(given.output, given.device, REAL, given.parts, given.seconds)


if __name__ == "__main__":
    main()
