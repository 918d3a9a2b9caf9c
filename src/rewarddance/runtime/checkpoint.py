"""Where checkpoints are found, and how a folder is written so that a kill leaves the old one or the new one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from rewarddance.errors import InputError, first_line
from rewarddance.runtime import process_group
from rewarddance.runtime.devices import digest_of
from rewarddance.runtime.files import is_there

BUNDLED = Path(__file__).parent.parent / "shapeworld" / "bundled"
_MADE = {f"shapeworld-judge-{size}m": "judge-sizes" for size in ("0.5", "0.7", "1", "1.4", "5")}
"""Bases that a wheel comes without, and what `rewarddance bases` calls them."""
OURS = ".unfinished"
"""A file in a folder that is being written, or being removed."""
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
    InputError naming what was looked for, why the hub did not give it, and the bundled names, or how a base that this
    package comes without is made.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise InputError(f"{name!r} names no checkpoint.", "Give a folder, a bundled name, or an id of the model hub.")
    for folder in (Path(name), BUNDLED / name):
        if is_there(folder) and folder.is_dir() and any(folder.iterdir()):
            return folder
    if name in _MADE:
        raise InputError(
            f"the base {name} does not come with this package.",
            f"Make it: `rewarddance bases {_MADE[name]} --output bases` (hours; it goes on where it was "
            f"cut off). Then give the folder bases/{name} in its place.",
        )
    hub_error = ""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        try:
            return Path(download(name))
        except (OSError, ValueError, RuntimeError) as error:  # its own errors are these three
            hub_error = f" (the model hub: {first_line(error)})"
    bundled = sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()) if BUNDLED.is_dir() else []
    raise InputError(
        f"there is no checkpoint at {name!r}{hub_error}.",
        f"Give a folder written by save_pretrained, an id such as OpenGVLab/InternVL3-8B-hf where there is a network, "
        f"or one of the bundled names: {', '.join(bundled) or 'none'}.",
    )


def checkpoint_digest(name: str) -> str:
    """Of the files of a folder on this machine; a checkpoint of the model hub has its name."""
    folder = next((place for place in (Path(name), BUNDLED / name) if is_there(place) and place.is_dir()), None)
    return name if folder is None else digest_of(folder.rglob("*"))


def check_output(path: Path) -> None:
    """Raises InputError where no folder can be made or written at `path`, before any work; it makes none."""
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "it may not be written" if above.is_dir() else f"{above} is no folder"
        raise InputError(
            f"the output folder {path} cannot be written: {why}.", "Choose another folder or correct its permissions."
        )


def writable_folder(path: Path) -> Path:
    """Create `path` if need be and make sure that it can be written. Raises InputError naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # no name, which several processes might share
            pass
    except OSError as error:
        raise InputError(
            f"the output folder {path} cannot be written: {error.strerror or error}.",
            "Choose another folder or correct its permissions.",
        ) from error
    return path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Write a folder anew: yields a scratch folder that takes its place, marked complete, when the block ends.

    Raises InputError as `check_replaceable` does; nothing is removed that was not written so.
    """
    check_replaceable(folder)
    scratch, old = _scratch(folder), folder.with_name(f".{folder.name}.old")
    for path in (scratch, old):
        discard(path)
    scratch.mkdir(parents=True)
    (scratch / OURS).touch()
    yield scratch
    let_others_read(scratch.rglob("*.safetensors"))
    (scratch / COMPLETE).touch()
    (scratch / OURS).unlink()
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    discard(old)


def let_others_read(files: Iterable[Path]) -> None:
    """Give weights that were just written the permissions of any new file: safetensors keeps its own to their owner."""
    for path in files:
        if path.is_file() and not path.is_symlink() and not path.stat().st_mode & 0o077:
            probe = _scratch(path)
            probe.touch()
            path.chmod(probe.stat().st_mode & 0o777)
            probe.unlink()


def check_replaceable(folder: Path) -> None:
    """Raises InputError where something stands in a folder's place that no run wrote."""
    if folder.is_symlink() or (folder.exists() and not _is_ours(folder)):
        raise InputError(
            f"{folder} was not written by a run, and would be replaced.", "Move it away, or choose another."
        )


def check_is_folder(path: Path) -> None:
    """Raises InputError where a file stands in the place of a folder that will be written."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, and a folder will be written there.", "Move it away, or choose another.")


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    return (folder / COMPLETE).is_file() or (folder / OURS).is_file() or not any(folder.iterdir())


def discard(path: Path) -> None:
    """Remove a folder that a run wrote, if it is there; what a kill leaves of it is not complete, and known as ours.

    Raises InputError where no run wrote it.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not _is_ours(path):
        raise InputError(f"{path} is in the way, and no run wrote it.", "Move it away.")
    (path / OURS).touch()  # goes last
    (path / COMPLETE).unlink(missing_ok=True)  # goes first: half of a checkpoint is not to be read
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != OURS:
            child.unlink()
    shutil.rmtree(path)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


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


def newest_complete(parent: Path, at_most: int | None = None) -> Path | None:
    """The complete `checkpoint-<step>` of the highest step (of those up to `at_most`) under `parent`, or None.

    All processes call this alike. Raises InputError where they do not find the same, for they would go on apart.
    """
    folders = [folder for folder in parent.glob("checkpoint-*") if (folder / COMPLETE).exists()]
    steps = {int(step): folder for folder in folders if (step := folder.name.rpartition("-")[2]).isdecimal()}
    newest = max((step for step in steps if at_most is None or step <= at_most), default=0)
    if len(found := set(process_group.gather_objects(newest))) > 1:
        raise InputError(
            f"the processes find {parent} at different steps: {', '.join(map(str, sorted(found)))}.",
            "Let output be one folder that all of them see.",
        )
    return steps.get(newest)


def write_text_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file so that a reader or a kill never sees half of it. A link in its place is replaced, not followed.

    mode: its permissions, of which the umask takes away; 0o600 for what is nobody else's.
    """
    scratch = _scratch(path)
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def save_state(state: object, path: Path) -> None:
    """torch.save, of which a full disk or one that can no longer be written is told as such: torch only says where it
    stopped. Raises OSError."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        if "inline_container" not in str(error) and "iostream" not in str(error):
            raise
        disk = os.statvfs(path.parent)
        code = errno.EROFS if disk.f_flag & os.ST_RDONLY else errno.ENOSPC if disk.f_bavail < 256 else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def read_run_json(path: Path, lines: bool = False) -> Any:
    """What a run wrote to `path`: a JSON object, or a list of those on its lines. Raises InputError where it is no more
    what a run writes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        objects = [json.loads(line) for line in (text.splitlines() if lines else [text])]
    except ValueError:
        objects = [None]
    if not all(isinstance(one, dict) for one in objects):
        raise InputError(f"{path} is not what a run writes there.", "Restore it, or choose another output.")
    return objects if lines else objects[0]


@contextmanager
def reading_checkpoint(folder: Path) -> Iterator[None]:
    """Within the block a file of a checkpoint that is gone, cut off or no longer what was written is an InputError."""
    try:
        yield
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the checkpoint {folder} cannot be read: {first_line(error) or type(error).__name__}.",
            "Remove it; an older one is taken.",
        ) from error


def open_to_append(path: Path) -> IO[bytes]:
    """A file that grows, opened to be read and written. Raises InputError where a link stands in its place: what it
    leads to is not ours."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link, which is not written through.", "Remove it.") from error
        raise
