"""``mcp.json`` and ``skills.json`` of a folder: named entries, in the format of the published server.

Everything here blocks, and is run in threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Final, Generic, TypeVar

import msgspec

from sandbox_agent.errors import InvalidRequestError, NotFoundError, StreamError
from sandbox_agent.server.files.tree import TEMPORARY, FileTree, explained
from sandbox_agent.wire.configuration import McpServerConfig, SkillsConfig, parse_mcp_server, parse_skills
from sandbox_agent.wire.jsonrpc import DECODE_FAILURES

T = TypeVar("T")

FOLDER: Final = (".sandbox-agent", "config")
MAX_BYTES: Final = 4 * 1024 * 1024
# Another server may write the same file, which takes milliseconds.
LOCK_SECONDS: Final = 5.0
_LOCK_RETRY_SECONDS: Final = 0.01
_NO_LINK: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What a file holds.

    Attributes:
        name: of the file.
        parse: reads an entry.
    """

    name: str
    parse: Callable[[bytes], T]


MCP: Final[Kind[McpServerConfig]] = Kind("mcp.json", parse_mcp_server)
SKILLS: Final[Kind[SkillsConfig]] = Kind("skills.json", parse_skills)


class ConfigFiles:
    """The files in the folders that a file tree gives access to. Links in their place are not followed."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def read(self, directory: str, kind: Kind[T], *, own: bool = False) -> Mapping[str, T]:
        """Return the entries of a folder by name; none if it has no such file.

        Args:
            directory: the folder.
            kind: the file.
            own: whether the file must belong to the server's user.

        Raises:
            InvalidRequestError: the file is damaged, or belongs to another user.
            ProblemError: the folder can't be read, or ``--fs-root`` excludes it.
        """
        with contextlib.suppress(NotFoundError), self._open(directory, kind, make=False) as (folder, path):
            return _parse(_read(folder, kind.name, own=own), path, kind)
        return {}

    def change(self, directory: str, kind: Kind[T], name: str, value: T | None) -> None:
        """Set an entry, or delete it if the value is None. Entries besides it stay, also those of others.

        Raises:
            InvalidRequestError: the file is damaged; it stays as it is.
            StreamError: another program holds the file's lock.
            ProblemError: the folder can't be written, or ``--fs-root`` excludes it.
        """
        try:
            self._change(directory, kind, name, value)
        except NotFoundError:
            if value is not None:
                raise

    def _change(self, directory: str, kind: Kind[T], name: str, value: T | None) -> None:
        with self._open(directory, kind, make=value is not None) as (folder, path):
            lock(folder, path)
            data = _read(folder, kind.name)
            _parse(data, path, kind)
            entries = msgspec.json.decode(data or b"{}", type=dict[str, msgspec.Raw])
            if value is not None:
                entries[name] = msgspec.Raw(msgspec.json.encode(value))
            elif entries.pop(name, None) is None:
                return
            _write(folder, kind.name, msgspec.json.format(msgspec.json.encode(dict(sorted(entries.items())))))

    @contextlib.contextmanager
    def _open(self, directory: str, kind: Kind[T], *, make: bool) -> Generator[tuple[int, str]]:
        """Yield a descriptor of the folder that has the file, and the file's path."""
        if make:
            self._tree.make_folder(directory)
        with self._tree.open_folder(directory) as (folder, path), contextlib.ExitStack() as stack:
            path = os.path.join(path, *FOLDER, kind.name)
            stack.enter_context(explained(path))
            for name in FOLDER:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=folder)
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=folder)
                stack.callback(os.close, folder)
            yield folder, path


def lock(folder: int, path: str) -> None:
    """Lock a folder until its descriptor is closed.

    Args:
        folder: the descriptor.
        path: what is locked, for the error.

    Raises:
        StreamError: another program holds the lock.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StreamError(
                    f"stream error: another program has locked {path} for {LOCK_SECONDS:g} s: try again"
                ) from None
            time.sleep(_LOCK_RETRY_SECONDS)


def _read(folder: int, name: str, *, own: bool = False) -> bytes:
    """Return a file's content; empty if it does not exist."""
    try:
        file = FileIO(os.open(name, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=folder))
    except FileNotFoundError:
        return b""
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        if own and found.st_uid != os.geteuid():
            raise InvalidRequestError(
                f"invalid request: {name} belongs to another user: with --agent-user it must be the "
                "server's: delete it, and use /v1/config"
            )
        if found.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return file.read(MAX_BYTES)


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = TEMPORARY + secrets.token_hex(8)
    try:
        # Only for the server's user: variables and headers are often secrets.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
        with FileIO(os.open(temporary, flags, 0o600, dir_fd=folder), "w") as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _parse(data: bytes, path: str, kind: Kind[T]) -> dict[str, T]:
    name = ""
    try:
        entries = msgspec.json.decode(data or b"{}", type=dict[str, msgspec.Raw])
        found: dict[str, T] = {}
        for name, value in entries.items():
            found[name] = kind.parse(bytes(value))
        return found
    except DECODE_FAILURES as error:
        where = f"the entry {name!r}: " if name else ""
        raise InvalidRequestError(
            f"invalid request: {path} is damaged: {where}{error}; repair or delete the file, which is left "
            "as it is"
        ) from None
