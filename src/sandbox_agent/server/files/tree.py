"""Lists, reads, changes and deletes files. Everything here blocks, and is run in threads."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    StreamError,
)
from sandbox_agent.server.files.places import Place, Places, is_folder
from sandbox_agent.wire.files import FsEntry, FsStat
from sandbox_agent.wire.universal import event_time

# Names of files that are written, and of folders that are replaced, until they are complete.
TEMPORARY: Final = ".sandbox-agent-"
_NO_LINK: Final = os.O_NOFOLLOW | os.O_CLOEXEC
# Writes become visible one after the other, so that two that require the same version do not both succeed.
_commits = threading.Lock()


class ChangedError(Exception):
    """The file is not in the version that the request requires."""


@contextmanager
def explained(path: str) -> Generator[None]:
    """Raise the operating system's errors as problems.

    Raises:
        NotFoundError: there is no such file or folder.
        PermissionDeniedError: the server's user may not do that.
        InvalidRequestError: the path is too long, has a file as a folder, or links that lead nowhere.
        ConflictError: a folder is not empty, or a file is in the way.
        StreamError: the disk is full, or failed.
    """
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        match error.errno:
            case errno.ENOENT:
                raise NotFoundError(f"path not found: {path}") from None
            case errno.EACCES | errno.EPERM | errno.EROFS | errno.ETXTBSY:
                raise PermissionDeniedError(f"permission denied: {path}: {what}") from None
            case errno.ENOTDIR | errno.ELOOP | errno.ENAMETOOLONG | errno.EINVAL | errno.EISDIR:
                raise InvalidRequestError(f"invalid request: {path}: {what}") from None
            case errno.EEXIST | errno.ENOTEMPTY:
                raise ConflictError(f"conflict: {path}: {what}") from None
            case errno.EXDEV:
                raise InvalidRequestError(
                    f"invalid request: {path} is on another file system: copy it, then delete it"
                ) from None
            case _:
                raise StreamError(f"stream error: {path}: {what}") from error


def etag_of(found: os.stat_result) -> str:
    """Return the version of a file: it changes with its content, size or time."""
    return f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'


class File:
    """A file that is open for reading.

    Attributes:
        found: its status when it was opened.
    """

    def __init__(self, descriptor: int, found: os.stat_result) -> None:
        self.found = found
        # Closes the descriptor at the latest when nothing refers to it.
        self._file = FileIO(descriptor)

    @property
    def descriptor(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def read(self, start: int, size: int) -> bytes:
        """Return at most so many bytes from a place."""
        return os.pread(self.descriptor, size, start)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FileTree:
    """The files that the server gives access to."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def entries(self, text: str) -> list[FsEntry]:
        """Return what is in a folder, by name. Links are not followed, and count as files."""
        with explained(self.places.absolute(text)), self._folder(text) as (folder, path):
            found: list[FsEntry] = []
            for name in sorted(os.listdir(folder)):
                if name.startswith(TEMPORARY):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    one = _members(os.path.join(path, name), status)
                    found.append(FsEntry(name=name, **msgspec.structs.asdict(one)))
            return found

    def stat(self, text: str) -> FsStat:
        """Return what is known of a file or folder; a link is followed."""
        path = self.places.absolute(text)
        with explained(path), self.places.open(text) as place:
            found = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
            return _members(path, found)

    def open(self, text: str) -> File:
        """Open a file for reading.

        Raises:
            InvalidRequestError: it is not a regular file.
        """
        path = self.places.absolute(text)
        with explained(path), self.places.open(text) as place:
            # Without O_NONBLOCK, a named pipe waits for its writer.
            flags = os.O_RDONLY | os.O_NONBLOCK | _NO_LINK
            descriptor = os.open(place.name, flags, dir_fd=place.folder)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise InvalidRequestError(f"invalid request: path is not a file: {path}")
        return File(descriptor, found)

    @contextmanager
    def open_folder(self, text: str) -> Generator[tuple[int, str]]:
        """Yield a descriptor of a folder, and its path."""
        with explained(self.places.absolute(text)), self._folder(text) as found:
            yield found

    def make_folder(self, text: str) -> str:
        """Make a folder and those on the way to it; one that exists is left as it is."""
        path = self.places.absolute(text)
        with explained(path), self.places.open(text, make=True) as place:
            try:
                os.mkdir(place.name, dir_fd=place.folder)
            except FileExistsError:
                if not is_folder(place):
                    raise
        return path

    def move(self, source: str, target: str, *, overwrite: bool) -> tuple[str, str]:
        """Move a file, link or folder; the folders on the way to the target are made.

        Raises:
            ConflictError: the target exists, and ``overwrite`` is False.
        """
        paths = self.places.absolute(source), self.places.absolute(target)
        with explained(f"{paths[0]} to {paths[1]}"), self.places.open(source, follow=False) as old:
            _refuse_root(old)
            os.stat(old.name, dir_fd=old.folder, follow_symlinks=False)
            with self.places.open(target, follow=False, make=True) as new, _commits:
                _refuse_root(new)
                exists = _exists(new)
                if exists and not overwrite:
                    raise ConflictError(
                        f"conflict: destination already exists: {paths[1]}: choose another, or overwrite it"
                    )
                if not exists or not (is_folder(old) or is_folder(new)):
                    os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
                else:
                    _replace(old, new)
        return paths

    def delete(self, text: str, *, recursive: bool) -> str:
        """Delete a file, link or folder.

        Raises:
            ConflictError: the folder is not empty, and ``recursive`` is False.
        """
        path = self.places.absolute(text)
        with explained(path), self.places.open(text, follow=False) as place:
            _refuse_root(place)
            if not is_folder(place):
                os.unlink(place.name, dir_fd=place.folder)
            elif recursive:
                shutil.rmtree(place.name, dir_fd=place.folder)
            else:
                os.rmdir(place.name, dir_fd=place.folder)
        return path

    def write(self, text: str) -> Upload:
        """Begin to write a file; the folders on the way are made. A link is followed."""
        return Upload(self.places, text)

    @contextmanager
    def _folder(self, text: str) -> Generator[tuple[int, str]]:
        path = self.places.absolute(text)
        with self.places.open(text) as place:
            if not is_folder(place):
                os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
                raise InvalidRequestError(f"invalid request: path is not a directory: {path}")
            folder = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=place.folder)
        try:
            yield folder, path
        finally:
            os.close(folder)


class Upload:
    """A file that is being written: under a temporary name beside its own, until ``commit``.

    Attributes:
        path: its path.
        size: bytes written so far.
    """

    def __init__(self, places: Places, text: str) -> None:
        self.path: str = places.absolute(text)
        self.size: int = 0
        self._stack = contextlib.ExitStack()
        with explained(self.path), contextlib.ExitStack() as stack:
            self._place = stack.enter_context(places.open(text, make=True))
            if is_folder(self._place):
                raise InvalidRequestError(f"invalid request: path is not a file: {self.path}")
            self._temporary = _beside(self._place)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
            self._file: int = os.open(self._temporary, flags, 0o666, dir_fd=self._place.folder)
            stack.callback(os.close, self._file)
            self._stack = stack.pop_all()

    def append(self, data: bytes) -> None:
        """Write more."""
        with explained(self.path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        self.size += len(data)

    def commit(
        self,
        *,
        matching: str | None = None,
        new: bool = False,
        mode: int | None = None,
        modified: float | None = None,
    ) -> str:
        """Put the file in its place, and return its version.

        Args:
            matching: the version that is there now ("*": any); None for whatever is there.
            new: nothing is there now.
            mode: its permissions; None for those of the file that it replaces.
            modified: when it was changed, in seconds since the epoch; None for now.

        Raises:
            ChangedError: another version is there, or a file although it should be new.
        """
        place = self._place
        with explained(self.path), _commits:
            try:
                found = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
            except FileNotFoundError:
                found = None
            if (found is not None and new) or (
                matching is not None and (found is None or matching not in ("*", etag_of(found)))
            ):
                raise ChangedError
            if mode is None and found is not None:
                mode = found.st_mode
            if mode is not None:
                os.fchmod(self._file, mode & 0o777)
            if modified is not None:
                os.utime(self._file, (modified, modified))
            source, target, folder = self._temporary, place.name, place.folder
            if new:
                # A link fails if another program has made the file meanwhile.
                try:
                    os.link(source, target, src_dir_fd=folder, dst_dir_fd=folder)
                except FileExistsError:
                    raise ChangedError from None
            else:
                os.replace(source, target, src_dir_fd=folder, dst_dir_fd=folder)
                self._temporary = ""
            return etag_of(os.fstat(self._file))

    def close(self) -> None:
        """Close the file; delete it if it was not put in its place."""
        try:
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._place.folder)
        finally:
            self._stack.close()


def _beside(place: Place) -> str:
    """Return a new name in the folder of a place."""
    name = TEMPORARY + secrets.token_hex(8)
    return name if place.folder is not None else os.path.join(os.path.dirname(place.name), name)


def _refuse_root(place: Place) -> None:
    if place.name in (".", "/"):
        raise PermissionDeniedError(
            f"permission denied: {place.path} is a root: delete, move or replace what is in it"
        )


def _exists(place: Place) -> bool:
    try:
        os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _replace(old: Place, new: Place) -> None:
    """Move a file or folder to where a folder is, or a folder to where a file is."""
    aside = Place(new.path, new.folder, _beside(new))
    os.rename(new.name, aside.name, src_dir_fd=new.folder, dst_dir_fd=new.folder)
    try:
        os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
    except BaseException:
        os.rename(aside.name, new.name, src_dir_fd=new.folder, dst_dir_fd=new.folder)
        raise
    if is_folder(aside):
        shutil.rmtree(aside.name, dir_fd=aside.folder)
    else:
        os.unlink(aside.name, dir_fd=aside.folder)


def _members(path: str, found: os.stat_result) -> FsStat:
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
    modified = event_time(found.st_mtime_ns // 1_000_000)
    return FsStat(path=path, entry_type=kind, size=found.st_size, modified=modified)


def home() -> Path:
    """Return the folder where relative paths begin."""
    return Path(os.environ.get("HOME") or Path.home())
