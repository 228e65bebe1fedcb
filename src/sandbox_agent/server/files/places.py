"""Where a path of a request leads, and never outside of the folders that ``--fs-root`` names."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from sandbox_agent.errors import InvalidRequestError, NotFoundError, PermissionDeniedError

# As many links as Linux follows in a path.
_MAX_LINKS: Final = 40
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder, or where one may be made.

    Attributes:
        path: its path for people.
        folder: the descriptor of the folder that has it; None if ``name`` is an absolute path.
        name: its name in that folder. It is not a link, unless links were not to be followed.
    """

    path: str
    folder: int | None
    name: str


class Root(NamedTuple):
    """A folder that has all places.

    Attributes:
        path: its path, without links.
        descriptor: of the folder, which stays open; None to open it by its path.
    """

    path: Path
    descriptor: int | None = None

    def open(self) -> int:
        """Return a new descriptor of the folder."""
        if self.descriptor is not None:
            return os.dup(self.descriptor)
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class Places:
    """Finds the places of paths.

    Args:
        roots: the folders that have all places; none: all folders of the machine.
        home: where relative paths begin; if no root has it, they begin at the first root.
    """

    def __init__(self, roots: Sequence[Root], home: Path) -> None:
        self._roots = roots
        inside = not roots or any(home.is_relative_to(root.path) for root in roots)
        self._home = home if inside else roots[0].path

    def absolute(self, text: str) -> str:
        """Return the absolute path of a request's path; an empty one is the home.

        Raises:
            InvalidRequestError: it has a null character, or is relative with a part "..".
        """
        if "\0" in text:
            raise InvalidRequestError("invalid request: a path has a null character")
        path = PurePosixPath(text)
        if not path.is_absolute() and ".." in path.parts:
            raise InvalidRequestError(
                f"invalid request: invalid relative path: '{text}': a path below the home has no part '..'; "
                "use an absolute path"
            )
        return str(self._home / path)

    @contextlib.contextmanager
    def open(self, text: str, *, follow: bool = True, make: bool = False) -> Generator[Place]:
        """Find the place of a path, which may not exist.

        Args:
            text: the path of the request.
            follow: whether to follow a link at its end.
            make: create the folders on the way.

        Raises:
            NotFoundError: a folder on the way does not exist.
            PermissionDeniedError: the path leads out of the roots.
            OSError: something else is wrong on the way.
        """
        path = self.absolute(text)
        if not self._roots:
            name = os.path.realpath(path) if follow else _follow_parent(path)
            if make:
                _make_folders(os.path.dirname(name))
            yield Place(path, None, name)
            return
        walk = _Walk(self._roots, path)
        try:
            yield walk.find(follow=follow, make=make)
        finally:
            walk.close()


def _make_folders(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error


def _follow_parent(path: str) -> str:
    parent, name = os.path.split(path.rstrip("/"))
    return os.path.realpath(path) if name in ("", "..") else os.path.join(os.path.realpath(parent), name)


class _Walk:
    """Goes to a place folder by folder, each opened in the one before, so that no link is followed unseen."""

    def __init__(self, roots: Sequence[Root], path: str) -> None:
        self._roots = roots
        self._path = path
        self._folders: list[int] = []
        self._links = 0
        self._rest: list[str] = []

    def find(self, *, follow: bool, make: bool) -> Place:
        """Return the place; the folder stays open until ``close``."""
        self._start(self._path)
        while True:
            name = self._rest.pop(0) if self._rest else "."
            if name == "..":
                if len(self._folders) == 1:
                    raise self._outside()
                os.close(self._folders.pop())
                continue
            link = self._link(name) if self._rest or follow else None
            if link is not None:
                self._follow(link)
            elif not self._rest:
                return Place(self._path, self._folders[-1], name)
            else:
                self._enter(name, make=make)

    def close(self) -> None:
        """Close the folders."""
        while self._folders:
            os.close(self._folders.pop())

    def _start(self, path: str) -> None:
        """Go to the root that has an absolute path."""
        parts = PurePosixPath(path).parts
        for root in self._roots:
            if parts[: len(root.path.parts)] == root.path.parts:
                opened = root.open()
                self.close()
                self._folders.append(opened)
                self._rest = [*parts[len(root.path.parts) :], *self._rest]
                return
        raise self._outside()

    def _link(self, name: str) -> str | None:
        try:
            return os.readlink(name, dir_fd=self._folders[-1])
        except OSError:  # not a link, or it does not exist
            return None

    def _follow(self, link: str) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise InvalidRequestError(f"invalid request: '{self._path}' has too many links on its way")
        if link.startswith("/"):
            self._start(link)
        else:
            self._rest = [*PurePosixPath(link).parts, *self._rest]

    def _enter(self, name: str, *, make: bool) -> None:
        folder = self._folders[-1]
        try:
            opened = os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise NotFoundError(f"path not found: {self._path}") from None
            with contextlib.suppress(FileExistsError):  # made meanwhile
                os.mkdir(name, dir_fd=folder)
            opened = os.open(name, _FOLDER, dir_fd=folder)
        self._folders.append(opened)

    def _outside(self) -> PermissionDeniedError:
        allowed = ", ".join(str(root.path) for root in self._roots)
        return PermissionDeniedError(
            f"permission denied: '{self._path}' leads out of the folders that this request may reach "
            f"({allowed}); --fs-root sets them"
        )


def is_folder(place: Place) -> bool:
    """Whether there is a folder at a place, which is not a link."""
    try:
        return stat.S_ISDIR(os.stat(place.name, dir_fd=place.folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
