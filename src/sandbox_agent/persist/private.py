"""Files for their owner only, whatever the umask is: 0600, in folders of 0700 that are made for them."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["create_private", "make_private_folder", "open_private", "tighten"]

_FILE: Final = 0o600
_FOLDER: Final = 0o700
_OTHERS: Final = 0o077
_logger: Final = logging.getLogger("sandbox_agent.persist")
# Files of other owners, which are reported once.
_reported: Final[set[Path]] = set()


def make_private_folder(folder: Path) -> None:
    """Make a folder, and its parents, where they are missing. Those that exist stay as they are.

    Raises:
        OSError: one can't be made.
    """
    if folder.is_dir():
        return
    make_private_folder(folder.parent)
    try:
        folder.mkdir(_FOLDER)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        # The umask may have removed the owner's bits.
        folder.chmod(_FOLDER)


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file and return its descriptor; made private if it is made. An ``opener`` for ``open``.

    Raises:
        OSError: it can't be opened.
    """
    if not flags & os.O_CREAT:
        return os.open(path, flags)
    with contextlib.suppress(FileExistsError):
        return _create(path, flags)
    return os.open(path, flags, _FILE)


def create_private(path: str) -> None:
    """Make an empty private file where there is none. Errors are left to the program that opens it."""
    with contextlib.suppress(OSError):
        # A link that leads nowhere exists, and what it leads to does not.
        os.close(_create(os.path.realpath(path), os.O_WRONLY | os.O_CREAT))


def tighten(paths: Iterable[Path]) -> None:
    """Take the permissions of all but the owner away from the files that exist, and log it."""
    if os.name != "posix":
        return
    tightened: list[str] = []
    mode = 0
    for path in paths:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & _OTHERS:
                continue
            path.chmod(_FILE)
        except FileNotFoundError:
            continue
        except OSError as error:
            if path not in _reported:
                _reported.add(path)
                _logger.warning("'%s' can be read by other users: run chmod 600 on it (%s)", path, error)
            continue
        mode = mode or stat.S_IMODE(status.st_mode)
        tightened.append(path.name if tightened else str(path))
    if tightened:
        _logger.warning(
            "%s could be used by other users (mode %o): only the owner may now (mode %o)",
            ", ".join(tightened),
            mode,
            _FILE,
        )


def _create(path: str | os.PathLike[str], flags: int) -> int:
    descriptor = os.open(path, flags | os.O_EXCL, _FILE)
    if os.name == "posix":
        os.fchmod(descriptor, _FILE)
    return descriptor
