"""A folder that one run works on at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarddance.errors import InputError
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import open_to_append


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Within the block no other process works on a run's output, a folder or a file. Raises InputError naming the
    process that does.

    The lock is the system's own, so that of a process that died is free. On disks that know no locks it is none. Of
    several processes of one run the first one holds it.
    """
    if not process_group.is_main_process():
        yield
        return
    path = output / ".lock" if output.is_dir() else output.with_name(f".{output.name}.lock")
    while True:
        file = open_to_append(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read(200).decode("utf-8", "replace").strip() or "another process"
            file.close()
            raise InputError(
                f"{output} is in use by another run ({holder}).", "Wait until it ends, or choose another output."
            ) from error
        except OSError:  # a disk without locks
            pass
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:  # the one before has removed it meanwhile
            pass
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
