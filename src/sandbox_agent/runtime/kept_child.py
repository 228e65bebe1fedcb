"""The server's side of a keeper: starts an agent by the warden, and receives its exit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandbox_agent.runtime.user import User

_MESSAGE_BYTES = 4096
_COMMANDS = {signal.SIGTERM: b"T", signal.SIGKILL: b"K"}


class KeptChild:
    """A child that a keeper has started.

    Attributes:
        pid: the child's pid, once it was started.
        gone: set when no process of its tree is left.
        lingers: whether it has ended, and processes that it has started go on.
    """

    def __init__(self, control: socket.socket) -> None:
        self.pid: int = 0
        self._keeper = 0
        self._control = control
        self._on_exit: Callable[[int], None] | None = None
        self._code: int | None = None
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Event = asyncio.Event()
        self.lingers: bool = False
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._receive)

    async def wait_started(self, seconds: float) -> None:
        """Wait until the child was started. If that fails or is cancelled, the keeper ends it.

        Raises:
            OSError: It cannot be started.
            TimeoutError: It was not started in time.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._started
        except BaseException:
            self._close()
            raise

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Call ``on_exit`` with the return code (see Popen.returncode) when the child has ended."""
        self._on_exit = on_exit
        if self._code is not None:
            on_exit(self._code)

    def signal(self, signum: signal.Signals) -> None:
        """Signal the whole tree."""
        with contextlib.suppress(OSError):  # the tree has ended
            self._control.send(_COMMANDS[signum])

    def kill_keeper(self) -> None:
        """Kill a keeper that hangs. Its parent, the warden, then ends the tree."""
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(self._keeper)
            try:
                # The keeper holds the other end: while that is open, the pid is its own.
                self._control.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)

    def _receive(self) -> None:
        try:
            data = self._control.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        message: dict[str, Any] = json.loads(data)
        if "code" in message:
            self.lingers = message["lingers"]
            self._ended(message["code"])
        elif "pid" in message:
            self.pid, self._keeper = message["pid"], message["keeper"]
            if not self._started.done():
                self._started.set_result(None)
        elif not self._started.done():
            self._started.set_exception(OSError(message["errno"], os.strerror(message["errno"])))

    def _ended(self, code: int) -> None:
        if self._code is None:
            self._code = code
            if self._on_exit is not None:
                self._on_exit(code)

    def _close(self) -> None:
        """The keeper has ended, or ends now. If it does so before its agent, its parent ends that."""
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        if not self._started.done():
            self._started.set_exception(ConnectionResetError("the keeper has ended"))
        if self._keeper:
            with contextlib.suppress(ChildProcessError):  # it is the warden's child, unless that was killed
                os.waitpid(self._keeper, os.WNOHANG)
        self.gone.set()
        self.lingers = False
        self._ended(-signal.SIGKILL)


def send_command(
    warden: socket.socket,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None,
    pipes: Sequence[int],
    user: User | None = None,
    members: Sequence[str] = (),
    *,
    lingers: bool = False,
) -> KeptChild:
    """Send a command and its pipes to the warden; the arguments are those of Warden.start.

    Raises:
        OSError: the warden does not receive it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        command = os.memfd_create("command")
        try:
            fields = {
                "argv": list(argv),
                "env": dict(env),
                "cwd": None if cwd is None else os.fspath(cwd),
                "user": [user.uid, user.gid, user.groups] if user else [None, None, None],
                "members": list(members),
                "lingers": lingers,
            }
            os.write(command, json.dumps(fields).encode())
            os.lseek(command, 0, os.SEEK_SET)
            socket.send_fds(warden, [b"!"], [theirs.fileno(), command, *pipes])
        finally:
            os.close(command)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return KeptChild(ours)
