"""A child process: how it is spawned, its pipes, its exit, and the steps that stop it.

Each step of stop() waits for the leader to exit before the next one:

1. Close stdin (ACP agents exit at EOF)          wait EOF_GRACE
2. SIGTERM to the tree                           wait TERM_GRACE
3. SIGKILL to the tree                           wait for the kernel
4. SIGKILL to the rest of the group, then reap the leader, then SIGKILL to the rest of the tree

A group is signaled only before its leader is reaped, because its id may be another group's afterwards. The
tree is the process group (the child leads its own session) and, on Linux, every process that inherited
the child's tag. Pipes are drained while the process stops, so that a full pipe does not block it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sandbox_agent.runtime.keeper import control_terminal
from sandbox_agent.runtime.kept_child import KeptChild
from sandbox_agent.runtime.limits import LimitedGroup
from sandbox_agent.runtime.pipes import PipeReader, PipeWriter, open_pipes, widen_pipe
from sandbox_agent.runtime.process_tree import TAG_VARIABLE, signal_group, signal_tagged
from sandbox_agent.runtime.pty import TerminalSize, open_terminal, set_size
from sandbox_agent.runtime.user import User
from sandbox_agent.runtime.warden import KEEPS, Warden

# Seconds. Together well below the two seconds in which DELETE must respond.
EOF_GRACE = 0.4
TERM_GRACE = 0.6
# A keeper has this long to kill its tree. Then the keeper is killed, and what is stuck in the kernel is not
# waited for any longer.
GONE_SECONDS = 0.5
# Enough for a traceback. Error responses contain it.
STDERR_TAIL_BYTES = 16 * 1024
# A tree may fork while it is killed: look for survivors this many times.
_SWEEPS = 5
# Not the loop's own executor: a store that hangs may occupy all of its threads.
_sweeper = ThreadPoolExecutor(1, thread_name_prefix="sandbox-agent-sweep")


class SpawnError(Exception):
    """The command could not be started. The message contains the reason."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    Attributes:
        code: The exit code, or None if a signal ended the process.
        signal: The signal's number, or None.
        excess: The limit that the kernel has enforced by killing a process of the tree, in words, or None.
    """

    code: int | None
    signal: int | None
    excess: str | None = None

    @property
    def success(self) -> bool:
        """Whether the exit code is 0."""
        return self.code == 0


class Process:
    """A running child with piped stdin, stdout and stderr, or with a terminal. Create one with spawn().

    Attributes:
        pid: The pid of the leader, which is also the id of its process group.
        tag: The value of TAG_VARIABLE in the environment of the tree.
        stdout: The child's stdout, unbuffered; that of a terminal has all of its output.
        stderr: The child's stderr, unbuffered.
        group: Its control group, or None.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes] | KeptChild,
        tag: str,
        *,
        stdin: PipeWriter,
        stdout: PipeReader,
        stderr: PipeReader,
        group: LimitedGroup | None = None,
    ) -> None:
        self.pid: int = child.pid
        self.tag = tag
        self.stdout = stdout
        self.stderr = stderr
        self.group = group
        self._child = child
        self._stdin = stdin
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._status: ExitStatus | None = None
        self._exited = asyncio.Event()
        self._stopping: asyncio.Lock = asyncio.Lock()

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: User | None = None,
        cwd: str | os.PathLike[str] | None = None,
        tag_prefix: str = "",
        warden: Warden | None = None,
        group: LimitedGroup | None = None,
        lingers: bool = False,
        size: TerminalSize | None = None,
    ) -> Process:
        """Start a command as the leader of a new session.

        Args:
            argv: The program and its arguments.
            env: The environment. Default: that of this process.
            user: The user as whom the command runs; only root can choose one. Default: that of this process.
            cwd: The working directory.
            tag_prefix: The start of the tag. One search finds all trees of an owner by it.
            warden: Starts the command under a keeper, where the system allows it (see keeper).
            group: Its control group. Only with a keeper.
            lingers: Whether what the command has started continues when the command itself has ended, as
                programs do that go into the background. Only with a keeper; without one it ends.
            size: The size of its terminal, which it then has in place of pipes. All output is stdout's.

        Raises:
            SpawnError: The program does not exist, or the kernel refuses.
        """
        tag = f"{tag_prefix}{uuid.uuid4().hex}"
        # Not asyncio's subprocesses: their wait() lasts until grandchildren close the pipes, and uvloop lets
        # the child inherit copies of our ends, so that it does not see them close.
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = _open(argv[0], size)
        widen_pipe(out_read)
        try:
            pipes = (in_read, out_write, err_write)
            environ = {**(os.environ if env is None else env), TAG_VARIABLE: tag}
            if user is not None:
                for fd in pipes:
                    os.fchown(fd, user.uid, user.gid)  # for programs that open /dev/stderr
            if warden is not None and KEEPS:
                child = await warden.start(
                    argv, environ, cwd, pipes, user, group.members_files if group else (), lingers=lingers
                )
            else:
                child = _start(argv, environ, cwd, pipes, user)
        except BaseException as error:
            for fd in (in_write, out_read, err_read):
                os.close(fd)
            if isinstance(error, (OSError, ValueError)):
                whose = f" as the user {user.name!r}" if user else ""
                raise SpawnError(f"can't start {argv[0]}{whose}: {_reason(error)}") from error
            raise
        finally:
            for fd in (in_read, out_write, err_write):
                os.close(fd)
        process = cls(
            child,
            tag,
            stdin=PipeWriter(in_write),
            stdout=PipeReader(out_read),
            stderr=PipeReader(err_read),
            group=group,
        )
        if isinstance(child, KeptChild):
            child.watch(process._set_status)
        else:
            _watch_exit(child.pid, process._on_exit)
        return process

    @property
    def status(self) -> ExitStatus | None:
        """How the process ended, or None while it runs."""
        return self._status

    @property
    def stderr_tail(self) -> str:
        """The end of the stderr output, at most STDERR_TAIL_BYTES."""
        return b"".join(self._tail)[-STDERR_TAIL_BYTES:].decode("utf-8", "replace")

    def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal, unless that is closed."""
        if self.stdout.fd >= 0:
            set_size(self.stdout.fd, size)

    def close_stdin(self) -> None:
        """Close stdin, which the child reads as its end."""
        self._stdin.close()

    async def write(self, data: bytes, *, on_begin: Callable[[], None] | None = None) -> None:
        """Write to stdin, whole and in order; see PipeWriter.write."""
        await self._stdin.write(data, on_begin=on_begin)

    def write_nowait(self, data: bytes) -> bool:
        """Write to stdin if that is possible without waiting. See PipeWriter.write_nowait."""
        return self._stdin.write_nowait(data)

    async def pump_stderr(self) -> None:
        """Read stderr to its end and keep the tail. The owner runs this in a task."""
        await self.stderr.listen(self._append_tail)

    def drain_stderr(self) -> None:
        """Read what is in stderr now. After the exit this is the rest of the output."""
        for data in self.stderr.read_leftover():
            self._append_tail(data)

    def _append_tail(self, data: bytes) -> bool:
        self._tail.append(data[-STDERR_TAIL_BYTES:])
        self._tail_size += len(self._tail[-1])
        while self._tail_size - len(self._tail[0]) >= STDERR_TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft())
        return True

    async def wait(self) -> ExitStatus:
        """Wait for the exit of the leader. Other processes may still hold its pipes."""
        await self._exited.wait()
        assert self._status is not None
        return self._status

    def _on_exit(self) -> None:
        """Kill the group of the leader, which has exited, and reap the leader."""
        assert isinstance(self._child, subprocess.Popen)
        signal_group(self.pid, signal.SIGKILL)
        self._set_status(self._child.wait())

    def _set_status(self, code: int) -> None:
        excess = self.group.excess if self.group and code != 0 else None
        self._status = ExitStatus(code, None, excess) if code >= 0 else ExitStatus(None, -code, excess)
        self._exited.set()

    async def stop(self, *, eof_grace: float = EOF_GRACE, term_grace: float = TERM_GRACE) -> ExitStatus:
        """Stop the process by the steps of the module's docstring. Safe to call twice."""
        async with self._stopping:
            self._stdin.close()
            if not await self._exits_within(eof_grace):
                await self.signal(signal.SIGTERM)
                if not await self._exits_within(term_grace):
                    await self.signal(signal.SIGKILL)
                    await self.wait_killed()
            status = await self.wait()
            await self.sweep()
            return status

    async def kill(self) -> None:
        """Send SIGKILL to the tree, without the first steps of stop()."""
        await self.signal(signal.SIGKILL)

    @property
    def lingers(self) -> bool:
        """Whether the leader has ended, and processes that it has started continue."""
        return isinstance(self._child, KeptChild) and self._child.lingers

    async def wait_gone(self) -> None:
        """Wait until no process of a tree that lingers is left."""
        if isinstance(self._child, KeptChild):
            await self._child.gone.wait()

    async def signal(self, signum: signal.Signals) -> None:
        """Signal the tree, the group first."""
        if isinstance(self._child, KeptChild):
            self._child.signal(signum)
        elif self._status is None:
            signal_group(self.pid, signum)
            await _in_sweeper(signal_tagged, self.tag, signum)

    async def wait_killed(self) -> None:
        """Wait for the exit after SIGKILL. A keeper that hangs is killed: the warden then ends the tree."""
        if isinstance(self._child, KeptChild) and not await self._exits_within(GONE_SECONDS):
            self._child.kill_keeper()

    async def sweep(self) -> None:
        """Kill the rest of the tree after the exit of the leader."""
        if isinstance(self._child, KeptChild):  # which does so itself, unless they may linger
            if self._child.lingers:
                self._child.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._child.gone.wait()
            return
        await _in_sweeper(_sweep, self.tag)

    def close(self) -> None:
        """Close the pipes after the process has ended."""
        self._stdin.close()
        self.stdout.close()
        self.stderr.close()

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            return False
        return True


def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None,
    pipes: Sequence[int],
    user: User | None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the caller's command; a fork takes a millisecond
        argv,
        stdin=pipes[0],
        stdout=pipes[1],
        stderr=pipes[2],
        env=env,
        cwd=cwd,
        start_new_session=True,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=user.groups if user else None,
        # Only system calls, so that threads of this process do not matter.
        preexec_fn=control_terminal if os.isatty(pipes[0]) else None,
    )


def _open(program: str, size: TerminalSize | None) -> list[tuple[int, int]]:
    """Open three pipes, or a terminal."""
    try:
        return open_pipes() if size is None else open_terminal(size)
    except OSError as error:
        raise SpawnError(f"can't start {program}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


async def _in_sweeper(function: Callable[..., object], *args: object) -> None:
    """Call a function that reads the process table, which takes long on a busy machine, in a thread."""
    await asyncio.get_running_loop().run_in_executor(_sweeper, function, *args)


def _sweep(tag: str) -> None:
    for _ in range(_SWEEPS):
        if not signal_tagged(tag, signal.SIGKILL):
            return


def _watch_exit(pid: int, on_exit: Callable[[], None]) -> None:
    """Call ``on_exit`` in the running event loop when a child has exited. The child is not reaped."""
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not on Linux, or no descriptor left
        _watch_in_thread(loop, pid, on_exit)
        return

    def exited() -> None:
        loop.remove_reader(handle)
        os.close(handle)
        on_exit()

    loop.add_reader(handle, exited)


def _watch_in_thread(loop: asyncio.AbstractEventLoop, pid: int, on_exit: Callable[[], None]) -> None:
    def wait() -> None:
        _wait_unreaped(pid)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(on_exit)

    threading.Thread(target=wait, name="sandbox-agent-exit", daemon=True).start()


def _wait_unreaped(pid: int) -> None:
    """Wait for the exit of a child and leave it unreaped."""
    if sys.platform == "darwin":  # which has waitid only since Python 3.13
        queue = select.kqueue()
        with contextlib.closing(queue), contextlib.suppress(ProcessLookupError):  # it has exited already
            exit_of_child = select.kevent(
                pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
            )
            queue.control([exit_of_child], 1)
    else:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
