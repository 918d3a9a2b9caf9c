"""Trackers that a run reports to besides its own files (TensorBoard, Weights & Biases and the like), by accelerate."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, flatten
from rewarddance.runtime.process_group import is_main_process

_TAKE_PICTURES = ("tensorboard", "wandb", "swanlab")
"""Those of accelerate's that take a list of pictures; to the others only figures go."""


@runtime_checkable
class Tracker(Protocol):
    """As accelerate's GeneralTracker. One that has `log_images`, too, is given pictures by it."""

    name: str

    def log(self, values: dict, step: int | None = None) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for a name that no tracker has, or one whose library is missing."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # heavy, and seldom needed

    known, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise InputError(f"there is no tracker {name!r}.", f"Known are {', '.join(known)}.")
        if name not in installed:
            raise InputError(f"the tracker {name!r} is not installed.", f"pip install {name}, or leave it out.")


@contextmanager
def reporting(names: Sequence[str], folder: Path, recipe: Recipe) -> Iterator[list[Tracker]]:
    """The trackers of a run: they get its recipe when it begins, and are closed at the end of the block.

    Of several processes only the first has any. Files that they write are under `folder`/trackers. A resumed
    run goes on as the same one in TensorBoard and Weights & Biases; others begin a second one. Raises InputError
    as `check_trackers` does.
    """
    check_trackers(names)
    if not names or not is_main_process():
        yield []
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's loggers ask for it
    files, title = folder / "trackers", folder.resolve().name
    files.mkdir(parents=True, exist_ok=True)
    id_file = files / "id"
    is_new = not id_file.exists()
    run_id = secrets.token_hex(8) if is_new else id_file.read_text()
    project = os.environ.get("WANDB_PROJECT", "rewarddance")
    options: dict[str, Any] = {"wandb": {"name": title, "id": run_id, "resume": "allow"}}
    trackers: list[Any] = []
    try:
        for name in dict.fromkeys(names):
            kind = LOGGER_TYPE_TO_CLASS[name]
            names_of_run = (title, str(files)) if kind.requires_logging_directory else (project,)
            tracker = kind(*names_of_run, **options.get(name, {}))
            try:
                tracker.start()
            except Exception as error:  # each library has its own: no login, no network, no right to write
                raise InputError(
                    f"the tracker {name!r} does not open: {error}.", "Set it up, or leave it out."
                ) from error
            trackers.append(tracker)
            if is_new:
                tracker.store_init_configuration(_plain(recipe))
        id_file.write_text(run_id)
        yield trackers
    finally:
        for tracker in trackers:
            tracker.finish()


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as one level of plain values, as trackers take it."""
    values = flatten(recipe.model_dump(mode="json"))
    return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in values.items()}


def show_pictures(tracker: Tracker, name: str, step: int, pixels: Float[Tensor, "T C H W"]) -> None:
    """Send a picture, or the frames of a video, to a tracker that takes pictures."""
    log_images = getattr(tracker, "log_images", None)
    is_accelerates = type(tracker).__module__.startswith("accelerate.")
    if log_images is None or (is_accelerates and tracker.name not in _TAKE_PICTURES):
        return
    frames = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    log_images({name: frames}, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))
