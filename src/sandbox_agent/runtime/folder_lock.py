"""Folders that are deleted when no process uses them any more, also none that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor of a folder, which is not deleted while it is open.

    Returns:
        The descriptor, which the caller closes; None if the folder does not exist, or is being deleted.
    """
    return _lock(folder, fcntl.LOCK_SH)


def delete_unused(folder: Path) -> bool:
    """Delete a folder of this user, unless a process has locked it; return whether it is deleted."""
    descriptor = _lock(folder, fcntl.LOCK_EX)
    if descriptor is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    return True


@contextmanager
def temporary_folder(prefix: str) -> Generator[Path]:
    """Yield a new temporary folder, and delete it at the end; those of killed processes are deleted first.

    Args:
        prefix: how the names of these folders begin, and no others.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        delete_unused(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = lock_folder(folder)
        if lock is not None or folder.is_dir():  # where folders can't be locked, none is deleted
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, how: int) -> int | None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid():
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            # It may have been deleted before it was locked.
            if os.path.samestat(found, folder.stat()):
                return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
