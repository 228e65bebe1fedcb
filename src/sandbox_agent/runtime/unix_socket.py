"""A listening socket at a path, for this user only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Generator
from pathlib import Path

# Servers that start hold the lock for a moment; any program that may read the folder can hold it for long.
LOCK_SECONDS = 2.0
_PAUSE = 0.01


def listen_on_path(path: Path, backlog: int) -> socket.socket:
    """Listen at a path with the mode 0600. A socket there at which nothing listens is replaced.

    Raises:
        OSError: The path is in use (EADDRINUSE), is not a socket (EEXIST), is too long, or its folder does
            not exist or cannot be written.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            # Still locked: another server would take a socket that does not listen yet for a stale one.
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        # The error of a path that is too long has no number.
        raise error if error.errno else OSError(errno.ENAMETOOLONG, str(error)) from error
    except BaseException:
        listener.close()
        raise
    return listener


def unlink_socket(path: Path) -> None:
    """Remove a socket at which nothing listens any more; another server may listen at its path by now."""
    with contextlib.suppress(OSError), _locked(path.parent):
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
    if _is_in_use(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


def _is_in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its queue is full
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Lock a folder against other servers that start; without a file in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(errno.EBUSY, "another program has locked the folder") from None
            time.sleep(_PAUSE)
        else:
            return
