"""The files of a server in the background: what runs, its log, and the lock of the commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Final

import msgspec

from sandbox_agent.agents.launch import data_dir
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.private import make_private_folder, open_private
from sandbox_agent.runtime.process_identity import KnownProcess

_TAIL_BYTES: Final = 4_000


class DaemonState(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A server that was started in the background. Neither its token nor the password of its store is here.

    Attributes:
        pid: its pid.
        identity: what no other process with that pid has.
        version: the version of the package.
        started_at_ms: when it was started, in milliseconds since 1970.
        cwd: its working directory.
        options: its options but host, port and token.
        variables: the variables of other options.
        store: its store, without a password.
        store_is_secret: the store was in a variable that has a password.
        has_token: it was started with a token.
        no_token: it was started with ``--no-token``.
    """

    pid: int
    identity: str
    version: str
    started_at_ms: int
    cwd: str
    options: list[str]
    variables: dict[str, str]
    store: str
    store_is_secret: bool
    has_token: bool
    no_token: bool


class DaemonFiles:
    """The files of the server of one address.

    Attributes:
        log: its log.
    """

    def __init__(self, host: str, port: int) -> None:
        self._folder = data_dir() / "daemon"
        # The names of the published command.
        self._name = f"daemon-{re.sub('[^A-Za-z0-9]', '-', host)}-{port}"
        self.log: Path = self._folder / f"{self._name}.log"

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Let no other command start or stop the server meanwhile. Waits for one that does.

        Raises:
            SandboxAgentError: the folder can't be used.
        """
        path = self._folder / f"{self._name}.lock"
        try:
            make_private_folder(self._folder)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SandboxAgentError(
                f"'{path}' can't be opened: {error.strerror}: the folder must be this user's"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read(self) -> DaemonState | None:
        """Return what was started last; None if it was stopped, or nothing was started."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=DaemonState)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, state: DaemonState) -> None:
        """Store what was started."""
        draft = self._state.with_suffix(".new")
        with open(draft, "wb", opener=open_private) as file:
            file.write(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        draft.replace(self._state)

    def remove(self) -> None:
        """Forget what was started."""
        self._state.unlink(missing_ok=True)

    def open_log(self) -> int:
        """Return a descriptor to append to the log."""
        return open_private(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def log_tail(self, start: int = 0) -> str:
        """Return the end of the log, of what was written after a position."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    @property
    def _state(self) -> Path:
        return self._folder / f"{self._name}.json"


@contextlib.contextmanager
def running(state: DaemonState | None) -> Generator[KnownProcess | None]:
    """Yield the process of a server, if it still runs."""
    if state is None:
        yield None
        return
    process = KnownProcess(state.pid, state.identity)
    try:
        yield process if process.runs else None
    finally:
        process.close()
