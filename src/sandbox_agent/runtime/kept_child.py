"""The server's side of a keeper: starts agents by it, one after the other, and receives their exits."""

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


class CommandError(OSError):
    """The keeper could not start a command. Whatever the errno is, it is not of the socket to the keeper."""


class Keeper:
    """A keeper, which the warden starts. It has one child at a time.

    Args:
        control: the socket to it.
        on_free: called when no process of its child is left, and it can start another.
        on_end: called when it has ended.

    Attributes:
        pid: its pid; 0 until it has started a child.
    """

    def __init__(
        self, control: socket.socket, on_free: Callable[[Keeper], None], on_end: Callable[[Keeper], None]
    ) -> None:
        self.pid: int = 0
        self._control = control
        self._on_free = on_free
        self._on_end = on_end
        self._child: KeptChild | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._receive)

    @classmethod
    def request(
        cls,
        warden: socket.socket,
        on_free: Callable[[Keeper], None],
        on_end: Callable[[Keeper], None],
    ) -> Keeper:
        """Let the warden start a keeper.

        Raises:
            OSError: the warden does not receive the request.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            socket.send_fds(warden, [b"!"], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(ours, on_free, on_end)

    async def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        pipes: Sequence[int],
        user: User | None = None,
        members: Sequence[str] = (),
        *,
        lingers: bool = False,
        seconds: float,
    ) -> KeptChild:
        """Start a command; the arguments are those of Warden.start. If that fails, the keeper ends.

        Args:
            argv: the program and its arguments.
            env: its environment.
            cwd: its working directory.
            pipes: its stdin, stdout and stderr.
            user: its user.
            members: the files by which it becomes a member of a control group.
            lingers: whether what it has started continues when the command itself has ended.
            seconds: how long that may take.

        Raises:
            CommandError: It cannot be started.
            OSError: The keeper does not receive it.
            TimeoutError: It was not started in time.
        """
        command = json.dumps(
            {
                "argv": list(argv),
                "env": dict(env),
                "cwd": None if cwd is None else os.fspath(cwd),
                "user": [user.uid, user.gid, user.groups] if user else [None, None, None],
                "members": list(members),
                "lingers": lingers,
            }
        )
        child = self._child = KeptChild(self)
        try:
            self._send_command(command.encode(), pipes)
            async with asyncio.timeout(seconds):
                await child.started
        except BaseException as error:
            if isinstance(error, TimeoutError):
                self.kill()  # else it would start the child when it continues
            self.close()
            raise
        return child

    def _send_command(self, command: bytes, pipes: Sequence[int]) -> None:
        file = os.memfd_create("command")
        try:
            os.write(file, command)
            os.lseek(file, 0, os.SEEK_SET)
            socket.send_fds(self._control, [b"!"], [file, *pipes])
        finally:
            os.close(file)

    def send(self, message: bytes) -> None:
        """Send a message, unless the keeper has ended."""
        with contextlib.suppress(OSError):
            self._control.send(message)

    def kill(self) -> None:
        """Kill a keeper that hangs. Its parent, the warden, then ends the tree."""
        if not self.pid:
            return
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(self.pid)
            try:
                # The keeper holds the other end: while that is open, the pid is its own.
                self._control.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)

    def release(self) -> None:
        """Let the keeper end; it is reaped then if the warden, its parent, has ended."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket: the keeper ends its child, and itself."""
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        if self.pid:
            with contextlib.suppress(ChildProcessError):  # it is the warden's child, unless that was killed
                os.waitpid(self.pid, os.WNOHANG)
        if (child := self._child) is not None:
            self._child = None
            child.lose()
        self._on_end(self)

    def _receive(self) -> None:
        try:
            data = self._control.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        child = self._child
        message: dict[str, Any] = json.loads(data)
        self.pid = message.get("keeper", self.pid)
        is_free = message.get("free", False)
        if is_free:
            self._child = None
        if child is not None:
            child.receive(message)
        if is_free:
            self._on_free(self)


class KeptChild:
    """A child that a keeper has started.

    Attributes:
        pid: the child's pid, once it was started.
        started: done when it was started; its exception is that of Keeper.start.
        gone: set when no process of its tree is left.
        lingers: whether it has ended, and processes that it has started continue.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.pid: int = 0
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Event = asyncio.Event()
        self.lingers: bool = False
        self._keeper: Keeper | None = keeper
        self._on_exit: Callable[[int], None] | None = None
        self._code: int | None = None

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Call ``on_exit`` with the return code (see Popen.returncode) when the child has ended."""
        self._on_exit = on_exit
        if self._code is not None:
            on_exit(self._code)

    def signal(self, signum: signal.Signals) -> None:
        """Signal the whole tree, if something is left of it."""
        if self._keeper is not None:
            self._keeper.send(_COMMANDS[signum])

    def kill_keeper(self) -> None:
        """Kill a keeper that hangs. Its parent, the warden, then ends the tree."""
        if self._keeper is not None:
            self._keeper.kill()

    def receive(self, message: dict[str, Any]) -> None:
        """Handle a message of the keeper."""
        if "pid" in message:
            self.pid = message["pid"]
            if not self.started.done():
                self.started.set_result(None)
        elif "errno" in message:
            if not self.started.done():
                self.started.set_exception(CommandError(message["errno"], os.strerror(message["errno"])))
        else:
            self.lingers = message.get("lingers", False)
            if message["free"]:
                self._set_gone()
            if "code" in message:
                self._set_ended(message["code"])

    def lose(self) -> None:
        """The keeper has ended, or ends now. If it does so before its agent, its parent ends that."""
        if not self.started.done():
            self.started.set_exception(ConnectionResetError("the keeper has ended"))
            self.started.exception()  # mark it as retrieved: the caller may have been cancelled
        self.lingers = False
        self._set_gone()
        self._set_ended(-signal.SIGKILL)

    def _set_gone(self) -> None:
        self._keeper = None  # which may have another child now
        self.gone.set()

    def _set_ended(self, code: int) -> None:
        if self._code is None:
            self._code = code
            if self._on_exit is not None:
                self._on_exit(code)
