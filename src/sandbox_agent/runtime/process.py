"""A child process: spawn, pipes, exit, and the ladder that ends it.

The ladder, from polite to final. Each rung waits for the leader to exit before the next is taken:

1. stdin is closed (ACP agents exit at EOF)      EOF_GRACE
2. SIGTERM to the tree                           TERM_GRACE
3. SIGKILL to the tree                           the kernel's time
4. the leader is reaped, the rest of its tree is killed

The tree is the process group (the child leads a session of its own) and, on Linux, every process that
inherited the child's tag. Pipes are read on while it stops, so that a full pipe holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sandbox_agent.runtime.exit_watcher import watch_exit
from sandbox_agent.runtime.pipes import PipeReader, PipeWriter, widen
from sandbox_agent.runtime.process_tree import TAG_VARIABLE, signal_tree, tagged

__all__ = ["EOF_GRACE", "STDERR_TAIL_BYTES", "TERM_GRACE", "ExitStatus", "Process", "SpawnError"]

# Together well under the two seconds in which DELETE must answer.
EOF_GRACE = 0.4
TERM_GRACE = 0.6
# Enough for a traceback; it goes into error answers.
STDERR_TAIL_BYTES = 16 * 1024
# A tree that forks while it is killed is looked for again, but not for ever.
_SWEEPS = 5


class SpawnError(Exception):
    """The command could not be started; the message says why."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    Attributes:
        code: its exit code, or None when a signal ended it.
        signal: the signal's number, or None.
    """

    code: int | None
    signal: int | None

    @property
    def success(self) -> bool:
        """Whether it ended with code 0."""
        return self.code == 0


class Process:
    """A running child with piped stdin, stdout and stderr; make one with spawn().

    Attributes:
        pid: the leader's pid, which is its group's id too.
        tag: the value of TAG_VARIABLE that its tree carries.
        stdout: its stdout, unbuffered.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        tag: str,
        *,
        stdin: PipeWriter,
        stdout: PipeReader,
        stderr: PipeReader,
    ) -> None:
        self.pid: int = child.pid
        self.tag = tag
        self.stdout = stdout
        self._child = child
        self._stdin = stdin
        self._stderr = stderr
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
        without: Collection[str] = (),
        cwd: str | os.PathLike[str] | None = None,
        tag_prefix: str = "",
    ) -> Process:
        """Start a command as the leader of a new session.

        Args:
            argv: the program and its arguments.
            env: variables added to this process's own.
            without: variables of this process's own that it must not see.
            cwd: its working directory.
            tag_prefix: begins the tag, so that one search finds all trees of an owner.

        Raises:
            SpawnError: there is no such program, or the kernel refuses.
        """
        tag = f"{tag_prefix}{uuid.uuid4().hex}"
        # subprocess and pipes of our own: asyncio's wait() would last until grandchildren let go of the
        # pipes, and uvloop leaves the child copies of their ends, so that closing one goes unnoticed
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = _pipes(argv[0])
        widen(out_read)
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        try:
            child = subprocess.Popen(  # noqa: S603, ASYNC220 - running what it is told; it forks in a millisecond
                argv,
                stdin=in_read,
                stdout=out_write,
                stderr=err_write,
                env={**inherited, **(env or {}), TAG_VARIABLE: tag},
                cwd=cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            for fd in (in_write, out_read, err_read):
                os.close(fd)
            raise SpawnError(f"can't start {argv[0]}: {_reason(error)}") from error
        finally:
            for fd in (in_read, out_write, err_write):
                os.close(fd)
        process = cls(
            child,
            tag,
            stdin=PipeWriter(in_write),
            stdout=PipeReader(out_read),
            stderr=PipeReader(err_read),
        )
        watch_exit(child, process._note_exit)
        return process

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, None while it runs."""
        return self._status

    @property
    def stderr_tail(self) -> str:
        """The last of what it wrote to stderr, at most STDERR_TAIL_BYTES."""
        return b"".join(self._tail)[-STDERR_TAIL_BYTES:].decode("utf-8", "replace")

    async def write(self, data: bytes, *, on_begin: Callable[[], None] | None = None) -> None:
        """Write to stdin, whole and in order; see PipeWriter.write.

        Raises:
            BrokenPipeError: the process has ended or closed its stdin.
        """
        await self._stdin.write(data, on_begin=on_begin)

    def write_nowait(self, data: bytes) -> bool:
        """Write to stdin if it takes the message at once; see PipeWriter.write_nowait."""
        return self._stdin.write_nowait(data)

    async def pump_stderr(self) -> None:
        """Read stderr to its end, keeping the tail; its owner runs this beside the process."""
        await self._stderr.listen(self._keep)

    def drain_stderr(self) -> None:
        """Take what is in stderr now; after the exit that is all the process wrote."""
        for data in self._stderr.leftover():
            self._keep(data)

    def _keep(self, data: bytes) -> bool:
        self._tail.append(data[-STDERR_TAIL_BYTES:])
        self._tail_size += len(self._tail[-1])
        while self._tail_size - len(self._tail[0]) >= STDERR_TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft())
        return True

    async def wait(self) -> ExitStatus:
        """Wait for the leader's exit, whoever still holds its pipes."""
        await self._exited.wait()
        assert self._status is not None
        return self._status

    def _note_exit(self, code: int) -> None:
        self._status = ExitStatus(code, None) if code >= 0 else ExitStatus(None, -code)
        self._exited.set()

    async def stop(self, *, eof_grace: float = EOF_GRACE, term_grace: float = TERM_GRACE) -> ExitStatus:
        """Walk down the ladder; see the module's docstring. Safe to call twice.

        Args:
            eof_grace: seconds that it has after stdin is closed.
            term_grace: seconds that it has after SIGTERM.
        """
        async with self._stopping:
            self._stdin.close()
            if not await self._exits_within(eof_grace):
                signal_tree(self.pid, self.tag, signal.SIGTERM)
                if not await self._exits_within(term_grace):
                    signal_tree(self.pid, self.tag, signal.SIGKILL)
            status = await self.wait()
            self.sweep()
            return status

    def sweep(self) -> None:
        """Kill what is left of the tree after the leader's exit."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for _ in range(_SWEEPS):
            if not tagged(self.tag):
                return
            signal_tree(self.pid, self.tag, signal.SIGKILL)

    def close(self) -> None:
        """Close the pipes; the process has ended."""
        self._stdin.close()
        self.stdout.close()
        self._stderr.close()

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            return False
        return True


def _pipes(program: str) -> list[tuple[int, int]]:
    """Return three pipes, or none at all."""
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < 3:
            pipes.append(os.pipe())
    except OSError as error:
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
        raise SpawnError(f"can't start {program}: {_reason(error)}") from error
    return pipes


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
