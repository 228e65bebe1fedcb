"""Finds out what changes in a folder. Everything here blocks, and is run in threads.

No link is followed: what is behind one is not watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from sandbox_agent.errors import NotFoundError, SandboxAgentError, StreamError
from sandbox_agent.server.files import inotify
from sandbox_agent.server.files.inotify import Inotify
from sandbox_agent.server.files.tree import TEMPORARY, FileTree
from sandbox_agent.wire.files import ChangeType, FsChange, FsWatchEnd

# So many folders are watched for one request, and no deeper ones.
MOST_FOLDERS: Final = 50_000
MOST_LEVELS: Final = 256
# After a first change, others are waited for: one write is several changes.
GATHER_SECONDS: Final = 0.05
# Changes that are read at once; those after them are another batch.
MOST_CHANGES: Final = 10_000
# A program that changes one file all the time does not hold a batch back.
MOST_READS: Final = 16
# How often a folder is looked at that the system does not watch.
SCAN_SECONDS: Final = 1.0
_NOT_ENTERED: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Changes(NamedTuple):
    """What has changed.

    Attributes:
        found: the changes, one for each path.
        gap: whether there are others, which are not known.
        ended: why nothing more will be found; None if it will.
    """

    found: Sequence[FsChange] = ()
    gap: bool = False
    ended: FsWatchEnd | None = None


class Watch(Protocol):
    """Watches one folder."""

    def wait(self, seconds: float) -> Changes:
        """Return the changes since the last call, after waiting for one at most so long."""
        ...

    def wake(self) -> None:
        """End the current or the next wait early; called by another thread."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


def open_watch(tree: FileTree, text: str, *, recursive: bool) -> Watch:
    """Watch a folder; what changes from here on is found.

    Raises:
        NotFoundError: there is no such folder.
        InvalidRequestError: it is not a folder.
        StreamError: it has too many folders, or the system does not allow more watches.
    """
    kind = InotifyWatch if sys.platform == "linux" else ScanningWatch
    return kind(tree, text, recursive=recursive)


class _Root:
    """The folder that is watched, which is opened anew for each look at it, so that it can be deleted."""

    def __init__(self, tree: FileTree, text: str) -> None:
        self._tree = tree
        self._text = text
        self.path: str = tree.places.absolute(text)
        with tree.open_folder(text) as (folder, _):
            self._identity = _identity(folder)

    @contextlib.contextmanager
    def open(self, path: str = "") -> Generator[int]:
        """Yield a descriptor of a folder by its path in the root.

        Raises:
            NotFoundError: another folder, or none, is at the root's path.
            OSError: the folder can't be opened, or a link is on the way to it.
        """
        with self._tree.open_folder(self._text) as (root, _):
            if _identity(root) != self._identity:
                raise NotFoundError(f"path not found: {self.path}")
            folder = os.dup(root)
        try:
            for name in path.split("/") if path else ():
                inner = os.open(name, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def is_there(self) -> bool:
        """Whether the folder is still at its path."""
        try:
            with self.open():
                return True
        except (SandboxAgentError, OSError):
            return False


class _Batch:
    """Changes by path; of several changes of a path, one is left."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._found: dict[str, ChangeType] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: str, kind: ChangeType) -> None:
        """Add a change of a path in the root."""
        if kind != "modified" or self._found.get(path) != "created":
            self._found[path] = kind

    def changes(self) -> Sequence[FsChange]:
        """Return the changes. What is not UTF-8 in a path is replaced."""
        return tuple(
            FsChange(type=kind, path=os.fsencode(os.path.join(self._root, path)).decode(errors="replace"))
            for path, kind in self._found.items()
        )


class InotifyWatch:
    """Watches a folder with inotify.

    A new folder is watched, and then listed: what is in it already counts as created.
    """

    def __init__(self, tree: FileTree, text: str, *, recursive: bool) -> None:
        self._root = _Root(tree, text)
        self._recursive = recursive
        self._paths: dict[int, str] = {}
        self._inotify = Inotify()
        try:
            self._waking, self._woken = os.pipe()
        except BaseException:
            self._inotify.close()
            raise
        os.set_blocking(self._woken, False)
        try:
            self._enter("", None)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> Changes:
        waiting = select.poll()
        waiting.register(self._waking, select.POLLIN)
        waiting.register(self._inotify, select.POLLIN)
        ready = [descriptor for descriptor, _ in waiting.poll(seconds * 1000)]
        if self._waking in ready:
            os.read(self._waking, 1024)
        if self._inotify.fileno() in ready:
            time.sleep(GATHER_SECONDS)
        try:
            return self._changes()
        except StreamError as error:
            return Changes(gap=True, ended=FsWatchEnd(detail=str(error), gone=False))
        except (SandboxAgentError, OSError):  # it was deleted, replaced or closed to this user
            return Changes(gap=True, ended=_gone(self._root.path))

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, b"\0")

    def close(self) -> None:
        self._inotify.close()
        os.close(self._waking)
        os.close(self._woken)

    def _changes(self) -> Changes:
        batch = _Batch(self._root.path)
        ended = gap = False
        for _ in range(MOST_READS):
            notices = self._inotify.read()
            for watch, mask, name in notices:
                if mask & inotify.OVERFLOW:
                    gap = True
                elif mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED):
                    ended = ended or self._paths.get(watch) == ""
                    if mask & inotify.IGNORED:
                        self._paths.pop(watch, None)
                elif name and not name.startswith(TEMPORARY) and watch in self._paths:
                    self._note(os.path.join(self._paths[watch], name), mask, batch)
            if not notices or ended or gap or len(batch) >= MOST_CHANGES:
                break
        if gap and not ended:
            self._start_over()
        if ended or not self._root.is_there():
            return Changes(batch.changes(), gap, _gone(self._root.path))
        return Changes(batch.changes(), gap)

    def _note(self, path: str, mask: int, batch: _Batch) -> None:
        if mask & (inotify.CREATE | inotify.MOVED_TO):
            batch.add(path, "created")
            if mask & inotify.IS_FOLDER and self._recursive:
                self._enter(path, batch)
        elif mask & (inotify.DELETE | inotify.MOVED_FROM):
            batch.add(path, "deleted")
            if mask & inotify.MOVED_FROM and mask & inotify.IS_FOLDER:
                self._leave(path)
        else:
            batch.add(path, "modified")

    def _enter(self, path: str, batch: _Batch | None) -> None:
        """Watch a folder and those in it; what is in them is created, if there is a batch."""
        folders = [path]
        while folders:
            path = folders.pop()
            if path.count("/") >= MOST_LEVELS:
                continue
            try:
                with self._root.open(path) as folder:
                    self._paths[self._inotify.add(folder)] = path
                    if len(self._paths) > MOST_FOLDERS:
                        raise _too_many(self._root.path)
                    if batch is None and not self._recursive:
                        return
                    with os.scandir(folder) as entries:
                        for entry in entries:
                            inner = os.path.join(path, entry.name)
                            if batch is not None and not entry.name.startswith(TEMPORARY):
                                batch.add(inner, "created")
                            if entry.is_dir(follow_symlinks=False):
                                folders.append(inner)
            except OSError as error:
                # Deleted or replaced meanwhile, which has a notice of its own; or not readable.
                if path and error.errno in _NOT_ENTERED:
                    continue
                what = os.strerror(error.errno or 0)
                raise StreamError(f"stream error: {self._root.path} can't be watched: {what}") from None

    def _leave(self, path: str) -> None:
        inside = f"{path}/"
        for watch, known in list(self._paths.items()):
            if known == path or known.startswith(inside):
                self._inotify.remove(watch)
                del self._paths[watch]

    def _start_over(self) -> None:
        self._inotify.close()
        self._paths.clear()
        self._inotify = Inotify()
        self._enter("", None)


class ScanningWatch:
    """Looks at a folder again and again, where the system has no inotify."""

    def __init__(self, tree: FileTree, text: str, *, recursive: bool) -> None:
        self._root = _Root(tree, text)
        self._recursive = recursive
        self._known = self._scan()
        self._waking, self._woken = os.pipe()
        os.set_blocking(self._woken, False)

    def wait(self, seconds: float) -> Changes:
        waiting = select.poll()
        waiting.register(self._waking, select.POLLIN)
        if waiting.poll(min(seconds, SCAN_SECONDS) * 1000):
            os.read(self._waking, 1024)
        try:
            found = self._scan()
        except StreamError as error:
            return Changes(gap=True, ended=FsWatchEnd(detail=str(error), gone=False))
        except (SandboxAgentError, OSError):
            return Changes(gap=True, ended=_gone(self._root.path))
        batch = _Batch(self._root.path)
        for path in self._known.keys() - found.keys():
            batch.add(path, "deleted")
        for path, state in found.items():
            before = self._known.get(path)
            if before is None:
                batch.add(path, "created")
            elif before != state:
                batch.add(path, "modified")
        self._known = found
        return Changes(batch.changes())

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, b"\0")

    def close(self) -> None:
        os.close(self._waking)
        os.close(self._woken)

    def _scan(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        levels = 0
        with self._root.open() as root:
            for place, folders, files, folder in os.fwalk(".", dir_fd=root):
                levels += 1
                if levels > MOST_FOLDERS:
                    raise _too_many(self._root.path)
                for name in [*folders, *files]:
                    if name.startswith(TEMPORARY):
                        continue
                    with contextlib.suppress(OSError):
                        one = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        found[os.path.normpath(os.path.join(place, name))] = _state(one)
                if not self._recursive or place.count("/") >= MOST_LEVELS:
                    folders.clear()
        return found


def _gone(path: str) -> FsWatchEnd:
    return FsWatchEnd(detail=f"the folder was deleted or moved: {path}", gone=True)


def _too_many(path: str) -> StreamError:
    return StreamError(
        f"stream error: {path} has more than {MOST_FOLDERS:,} folders in it, which can't be watched: watch a "
        "smaller folder, or use recursive=false"
    )


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _state(found: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISDIR(found.st_mode):  # its time changes with what is in it
        return found.st_ino, found.st_mode
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns
