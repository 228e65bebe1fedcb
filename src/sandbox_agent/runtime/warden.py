"""A small process that starts the agents, and ends them when the server has died, even by SIGKILL (kill -9).

On Linux it forks a keeper for each agent (see keeper), which ends the agent's tree by itself, and then can
start another agent. Elsewhere the server starts the agents, and registers their process groups.

The server holds the warden's stdin. When it closes, the warden kills every registered process group and, on
Linux, every process that has the server's tag. The warden (warden_main) runs in its own session and uses only
the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sandbox_agent.runtime.kept_child import Keeper, KeptChild
from sandbox_agent.runtime.pipes import PipeWriter
from sandbox_agent.runtime.privacy import DEBUG_VARIABLE
from sandbox_agent.runtime.user import User

logger: logging.Logger = logging.getLogger("sandbox_agent.runtime")

# A warden that does not end, or does not read, is killed after so long.
CLOSE_SECONDS = 1.0
SEND_SECONDS = 0.5
# How long the warden may take to start an agent.
START_SECONDS = 5.0
# Keepers without an agent that wait for another, and how many seconds they do so at least.
_MOST_IDLE = 32
IDLE_SECONDS = 5.0
# Whether the system has what a keeper needs: only Linux.
KEEPS = sys.platform == "linux"
_SOCKET_TYPE = socket.SOCK_SEQPACKET if KEEPS else socket.SOCK_STREAM


class Warden:
    """The server's side of the warden. ``tag`` is the prefix of the tags of all the server's processes."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._child: asyncio.subprocess.Process | None = None
        self._stdin: PipeWriter | None = None
        self._groups: set[int] = set()
        self._starting = asyncio.Lock()
        self._started = asyncio.Event()
        self._closing = False
        self._commands: socket.socket | None = None
        self._idle: list[Keeper] = []
        self._ending: set[Keeper] = set()
        self._unused = 0
        self._expiry: asyncio.TimerHandle | None = None

    async def ready(self) -> None:
        """Start the warden if it does not run. Call this before there is a process to watch.

        Raises:
            OSError: The warden cannot be started.
        """
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                await self._start()

    async def watch(self, group: int) -> None:
        """Register a process group to be killed if the server dies. Like ready(), starts the warden."""
        self._groups.add(group)
        async with self._starting:
            if self._stdin is not None and await self._send(f"+{group}\n"):
                return
            await self._start()

    async def release(self, group: int) -> None:
        """Unregister a group that has ended."""
        self._groups.discard(group)
        await self._send(f"-{group}\n")

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
    ) -> KeptChild:
        """Start a command under a keeper.

        Args:
            argv: the program and its arguments.
            env: its environment.
            cwd: its working directory.
            pipes: its stdin, stdout and stderr.
            user: its user.
            members: the files by which it becomes a member of a control group.
            lingers: whether what it has started continues when the command itself has ended.

        Raises:
            OSError: The command or the warden cannot be started.
        """
        await self.ready()
        while self._idle:
            keeper = self._idle.pop()
            self._unused = min(self._unused, len(self._idle))
            try:
                return await keeper.start(
                    argv, env, cwd, pipes, user, members, lingers=lingers, seconds=START_SECONDS
                )
            except (ConnectionError, BlockingIOError, TimeoutError):
                logger.warning("the keeper, process %d, was killed or hangs: using another", keeper.pid)
        for last in (False, True):
            warden, commands = self._child, self._commands
            assert warden is not None
            assert commands is not None
            try:
                keeper = Keeper.request(commands, partial(self._keep, commands), self._forget)
                return await keeper.start(
                    argv, env, cwd, pipes, user, members, lingers=lingers, seconds=START_SECONDS
                )
            except (ConnectionError, BlockingIOError, TimeoutError) as error:  # it was killed, or hangs
                if last:
                    raise OSError(0, f"the warden does not start it ({error})") from error
                logger.warning("the warden, process %d, does not start an agent: killing it", warden.pid)
                self._kill(warden)
                await warden.wait()
                await self._restart(warden)
        raise AssertionError

    def _keep(self, commands: socket.socket, keeper: Keeper) -> None:
        """Keep a keeper for another command, unless there are enough, or its warden has ended."""
        if self._closing:
            keeper.close()
        elif commands is not self._commands or len(self._idle) >= _MOST_IDLE:
            self._release(keeper)
        else:
            self._idle.append(keeper)
            if self._expiry is None:
                self._expire_later()

    def _release(self, keeper: Keeper) -> None:
        self._ending.add(keeper)
        keeper.release()

    def _forget(self, keeper: Keeper) -> None:
        self._ending.discard(keeper)
        if keeper in self._idle:
            self._idle.remove(keeper)
            self._unused = min(self._unused, len(self._idle))

    def _expire_later(self) -> None:
        self._unused = len(self._idle)
        self._expiry = (
            asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire) if self._idle else None
        )

    def _expire(self) -> None:
        """End the keepers that were not used since the last call. Those that were are at the end."""
        self._release_idle(self._unused)
        self._expire_later()

    def _release_idle(self, count: int) -> None:
        for keeper in self._idle[:count]:
            self._release(keeper)
        del self._idle[:count]
        self._unused = 0

    async def run(self) -> None:
        """Start the warden again when it has ended. The owner runs this in a task until close()."""
        while True:
            await self._started.wait()
            self._started.clear()
            child = self._child
            if child is None:
                continue
            code = await child.wait()
            if self._closing:
                return
            logger.warning("the warden, process %d, has ended (%d): starting another", child.pid, code)
            await self._restart(child)

    async def _restart(self, ended: asyncio.subprocess.Process) -> None:
        async with self._starting:
            if self._child is not ended or self._closing:
                return
            try:
                await self._start()
            except OSError:
                logger.exception("no warden: if this server is killed, its agents may outlive it")

    async def close(self) -> None:
        """End the warden after a normal shutdown of the server; one that hangs is killed."""
        self._closing = True
        self._started.set()
        async with self._starting:  # one that is being started is ended, too
            if self._child is not None and self._stdin is not None:
                await self._end(self._child, self._stdin)
            if self._expiry is not None:
                self._expiry.cancel()
            for keeper in (*self._idle, *self._ending):
                keeper.close()
            if self._commands is not None:
                self._commands.close()

    async def _end(self, child: asyncio.subprocess.Process, stdin: PipeWriter) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._send("=\n")
                stdin.close()
                await child.wait()
        except TimeoutError:
            logger.warning("the warden, process %d, does not end: killing it", child.pid)
            stdin.close()
            self._kill(child)
            await child.wait()

    async def _start(self) -> None:
        read, write = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, _SOCKET_TYPE)
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-m", "sandbox_agent.runtime.warden_main", self.tag),
                *([f"@{theirs.fileno()}"] if KEEPS else []),
                pass_fds=[theirs.fileno()] if KEEPS else [],
                stdin=read,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            os.close(write)
            ours.close()
            raise
        finally:
            os.close(read)
            theirs.close()
        if self._commands is not None:
            self._commands.close()
        self._release_idle(len(self._idle))  # what one of them would leave, this warden could not end
        ours.setblocking(False)
        self._commands = ours
        if self._stdin is not None:
            self._stdin.close()
        self._stdin = PipeWriter(write)
        self._started.set()
        if self._groups:
            await self._send("".join(f"+{known}\n" for known in self._groups))

    async def _send(self, line: str) -> bool:
        """Send a line and return whether a warden received it. One that does not read is killed."""
        if self._stdin is None or self._child is None:
            return False
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._stdin.write(line.encode())
        except BrokenPipeError:
            return False
        except TimeoutError:
            logger.warning("the warden, process %d, does not read: killing it", self._child.pid)
            self._kill(self._child)
            return False
        return True

    def _kill(self, child: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


def _environment() -> dict[str, str]:
    """Return the warden's own environment, which has nothing of the server's."""
    debug = {name: value for name, value in os.environ.items() if name == DEBUG_VARIABLE}
    return {"PYTHONPATH": str(Path(__file__).parents[2]), **debug}
