"""Where checkpoints are found, and how a folder is written so that a kill leaves the old one or the new one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarddance.errors import InputError
from rewarddance.runtime import process_group

BUNDLED = Path(__file__).parent.parent / "shapeworld" / "bundled"
_OF_A_CHECKPOINT = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
COMPLETE = "complete"
"""A file written last into every checkpoint folder: a folder without it was cut off and is not read."""


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download  # heavy, and seldom needed

    return snapshot_download(name, allow_patterns=_OF_A_CHECKPOINT)


def find_checkpoint(name: str, download: Callable[[str], str] = _download) -> Path:
    """The folder of a checkpoint: a path, the name of one that comes with the package, or an id of the model hub.

    A hub's checkpoint is downloaded once, into the cache that all its libraries share; with HF_HUB_OFFLINE=1 it is only
    looked for there. download: fetches it, for kinds of checkpoint that do not need all of their repository. Raises
    InputError naming what was looked for, why the hub did not give it, and the bundled names.
    """
    for folder in (Path(name), BUNDLED / name):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    told = ""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        try:
            return Path(download(name))
        except (OSError, ValueError, RuntimeError) as error:  # its own errors are these three
            told = f" (the model hub: {str(error).splitlines()[0]})"
    bundled = sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()) if BUNDLED.is_dir() else []
    raise InputError(
        f"there is no checkpoint at {name!r}{told}.",
        f"Give a folder written by save_pretrained, an id such as OpenGVLab/InternVL3-8B-hf where there is a network, "
        f"or one of the bundled names: {', '.join(bundled) or 'none'}.",
    )


def writable_folder(path: Path) -> Path:
    """Create `path` if need be and make sure that it can be written. Raises InputError naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the output folder {path} cannot be written: {error.strerror or error}.",
            "Choose another folder or correct its permissions.",
        ) from error
    return path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Write a folder anew: yields a scratch folder that takes its place, marked complete, when the block ends."""
    scratch = _scratch(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    (scratch / COMPLETE).touch()
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    shutil.rmtree(old, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextmanager
def replacing_together(folder: Path) -> Iterator[Path]:
    """`replacing` for all processes of a run: the first makes the folder and moves it, and all may write into it."""
    if process_group.is_main_process():
        with replacing(folder) as scratch:
            process_group.barrier()  # the scratch folder is there
            yield scratch
            process_group.barrier()  # all have written
    else:
        process_group.barrier()
        yield _scratch(folder)
        process_group.barrier()
    process_group.barrier()  # the folder is in its place


def newest_complete(parent: Path, pattern: str = "checkpoint-*", at_most: int | None = None) -> Path | None:
    """The complete `<name>-<step>` folder of the highest step (of those up to `at_most`) under `parent`, or None."""
    found = [folder for folder in parent.glob(pattern) if (folder / COMPLETE).exists()]
    steps = {int(step): folder for folder in found if (step := folder.name.rpartition("-")[2]).isdecimal()}
    wanted = [step for step in steps if at_most is None or step <= at_most]
    return steps[max(wanted)] if wanted else None


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader or a kill never sees half of it."""
    scratch = _scratch(path)
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
