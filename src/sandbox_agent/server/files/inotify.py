"""Linux's notifications of changes in folders: inotify(7), which Python's standard library does not have."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from sandbox_agent.errors import StreamError

MODIFY: Final = 0x2
ATTRIBUTES: Final = 0x4
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
IS_FOLDER: Final = 0x40000000
_ONLY_FOLDER: Final = 0x1000000
_NOT_UNLINKED: Final = 0x4000000
_MASK: Final = (MODIFY | ATTRIBUTES | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF) | (
    _ONLY_FOLDER | _NOT_UNLINKED
)
# int wd; uint32_t mask, cookie, len
_HEAD: Final = struct.Struct("iIII")
_READ_BYTES: Final = 256 * 1024


class Notice(NamedTuple):
    """What happened: the number of the folder's watch, a mask, and a name in the folder (or "")."""

    watch: int
    mask: int
    name: str


class Inotify:
    """An instance of inotify.

    Raises:
        StreamError: the user has too many instances already.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise _failed("max_user_instances", "instances")
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there are notices."""
        return self._descriptor

    def add(self, folder: int) -> int:
        """Watch a folder by its descriptor, and return the number of the watch.

        Raises:
            StreamError: the user has too many watches already.
        """
        # By this name the folder itself is found, whatever is at its path by now.
        path = f"/proc/self/fd/{folder}".encode()
        watch: int = self._libc.inotify_add_watch(self._descriptor, path, _MASK)
        if watch < 0:
            raise _failed("max_user_watches", "watches")
        return watch

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended already is ignored."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[Notice]:
        """Return the notices that are there."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        found: list[Notice] = []
        at = 0
        while at < len(data):
            watch, mask, _, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            found.append(Notice(watch, mask, os.fsdecode(data[at : at + size].rstrip(b"\0"))))
            at += size
        return found

    def close(self) -> None:
        """End all watches."""
        os.close(self._descriptor)


def _failed(limit: str, what: str) -> StreamError:
    number = ctypes.get_errno()
    if number not in (errno.ENOSPC, errno.EMFILE):
        return StreamError(f"stream error: the folder can't be watched: {os.strerror(number)}")
    return StreamError(
        f"stream error: this user has all the inotify {what} that the machine allows: watch a smaller "
        f"folder, use recursive=false, or raise fs.inotify.{limit}"
    )
