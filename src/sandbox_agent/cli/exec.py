"""``sandbox-agent exec``: a command in the sandbox of a running server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Coroutine, Generator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from sandbox_agent.cli.command_options import COMMAND_SETTINGS, command_options, read_available
from sandbox_agent.cli.remote import Remote, connect_and_run, remote_options
from sandbox_agent.errors import SandboxAgentError

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.client.terminal import ProcessTerminal
    from sandbox_agent.wire.processes import ProcessInfo

_READ_BYTES: Final = 32 * 1024
_END_OF_INPUT: Final = "\x04"
# Signals that end this command. The terminal is restored and the process killed before.
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# How long the end of the process is waited for then, and all calls of the server.
_KILL_SECONDS: Final = 2.0
_REMOVE_SECONDS: Final = 5.0
_USUAL_SIZE: Final = os.terminal_size((80, 24))


def _remote_options(command: Callable[..., None]) -> Callable[..., None]:
    return remote_options(command, "--token")  # -t is that of a terminal


@click.command(name="exec", context_settings=COMMAND_SETTINGS)
@click.option("--interactive", "-i", is_flag=True, help="Send standard input to the command.")
@click.option("--tty", "-t", is_flag=True, help="Run the command in a terminal.")
@_remote_options
@command_options
def exec_command(*, remote: Remote, command: tuple[str, ...], **options: Any) -> None:
    """Run a command in the sandbox of a server.

    The exit code is that of the command; 128 and the number of the signal, if one has ended it. With -it,
    this terminal becomes that of the command: "sandbox-agent exec -it -- bash". Without -t, standard output
    and standard error stay apart. When exec is ended, the command in the sandbox is killed.
    """
    codes: list[int] = []

    async def work(sdk: SandboxAgent) -> None:
        codes.append(await _until_signal(_Exec(sdk, command, **options).run()))

    connect_and_run(remote, work)
    raise SystemExit(codes[0])


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run the work to its end, or until a signal ends it; return its exit code."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    ended_by: list[int] = []

    def end(number: int) -> None:
        ended_by.append(number)
        task.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return 128 + ended_by[0]
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


class _Exec:
    """One command."""

    def __init__(
        self,
        sdk: SandboxAgent,
        command: Sequence[str],
        *,
        interactive: bool,
        tty: bool,
        cwd: str | None,
        env: dict[str, str],
    ) -> None:
        self._processes = sdk.processes
        self._command = command
        self._interactive = interactive
        self._tty = tty
        self._cwd = cwd
        self._env = env
        self._output = _Output()

    async def run(self) -> int:
        """Run the command, and return its exit code."""
        size = _size()
        if self._tty and (term := os.environ.get("TERM")):
            self._env.setdefault("TERM", term)
        process = await self._create(
            self._processes.create(
                self._command[0],
                self._command[1:],
                cwd=self._cwd,
                env=self._env,
                tty=self._tty,
                cols=size.columns if self._tty else None,
                rows=size.lines if self._tty else None,
                interactive=self._interactive,
            )
        )
        try:
            await (self._run_terminal(process.id) if self._tty else self._run_pipes(process.id))
            ended = await self._processes.get(process.id)
        except _OutputClosedError:
            return 128 + signal.SIGPIPE
        finally:
            await self._remove(process.id)
        if ended.exit_code is not None:
            return ended.exit_code
        return 128 + (ended.exit_signal or signal.SIGKILL)

    async def _create(self, creation: Coroutine[Any, Any, ProcessInfo]) -> ProcessInfo:
        """Create the process. If this is cancelled meanwhile, none is left."""
        creating = asyncio.ensure_future(creation)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({creating}, timeout=_REMOVE_SECONDS)
            if not done:
                creating.cancel()
            elif creating.exception() is None:
                await self._remove(creating.result().id)
            raise

    async def _remove(self, process_id: str) -> None:
        """Kill the process if it runs, and forget it. A server that is gone has done so."""
        with contextlib.suppress(SandboxAgentError, TimeoutError):
            async with asyncio.timeout(_REMOVE_SECONDS):
                await self._processes.kill(process_id, wait=_KILL_SECONDS)
                await self._processes.delete(process_id)

    async def _run_terminal(self, process_id: str) -> None:
        async with self._processes.terminal(process_id) as terminal:
            with (
                _raw() if self._interactive else contextlib.nullcontext(),
                _resizing(terminal),
            ):
                reading = asyncio.ensure_future(self._send_input(terminal)) if self._interactive else None
                try:
                    async for data in terminal:
                        await self._output.write(sys.stdout, data)
                finally:
                    await _cancel(reading)

    async def _send_input(self, terminal: ProcessTerminal) -> None:
        last = b"\n"
        while data := await _read_stdin():
            await terminal.send_input(data)
            last = data[-1:]
        # In the middle of a line, the first one only hands the line over.
        await terminal.send_input(_END_OF_INPUT if last in b"\r\n" else 2 * _END_OF_INPUT)

    async def _run_pipes(self, process_id: str) -> None:
        reading = asyncio.ensure_future(self._send_stdin(process_id))
        try:
            async for entry in self._processes.follow_logs(process_id):
                stream = sys.stderr if entry.stream == "stderr" else sys.stdout
                await self._output.write(stream, entry.data)
        finally:
            await _cancel(reading)

    async def _send_stdin(self, process_id: str) -> None:
        with contextlib.suppress(SandboxAgentError):  # the command has ended, or has closed its input
            while self._interactive and (data := await _read_stdin()):
                await self._processes.send_input(process_id, data)
            await self._processes.send_input(process_id, b"", eof=True)


async def _cancel(task: asyncio.Future[None] | None) -> None:
    """Cancel a task and wait for its end. Its error does not matter any more."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


class _OutputClosedError(Exception):
    """What reads the output has ended, or the terminal is gone."""


class _Output:
    """Writes to standard output and standard error, in a thread of its own.

    A write can take forever if what reads the output has stopped. asyncio would wait for its own threads at
    the end; this one ends with the process.
    """

    def __init__(self) -> None:
        self._writes: SimpleQueue[tuple[int, bytes, Callable[[OSError | None], object]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def write(self, stream: TextIO | None, data: bytes) -> None:
        """Write all data. A stream that was closed before this program started takes nothing."""
        # Python has no such stream; its descriptor may be that of a connection.
        if stream is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="output", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        written: asyncio.Future[OSError | None] = loop.create_future()

        def finish(error: OSError | None) -> None:
            if not written.done():
                written.set_result(error)

        def report(error: OSError | None) -> None:
            with contextlib.suppress(RuntimeError):  # this command has ended
                loop.call_soon_threadsafe(finish, error)

        self._writes.put((stream.fileno(), data, report))
        error = await written
        if error is not None and error.errno in (errno.EPIPE, errno.EIO):
            raise _OutputClosedError
        if error is not None:
            raise click.ClickException(f"the output can't be written: {error.strerror}") from error

    def _run(self) -> None:
        while True:
            fd, data, report = self._writes.get()
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[_write(fd, rest) :]
            except OSError as error:
                report(error)
            else:
                report(None)


def _write(fd: int, data: memoryview) -> int:
    """Write what fits; wait if nothing does, also if another program made the descriptor non-blocking."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        select.select([], [fd], [])
        return 0


async def _read_stdin() -> bytes:
    # Python has no such stream if it was closed before this program started.
    if sys.stdin is None:
        return b""
    try:
        return await read_available(sys.stdin.fileno(), _READ_BYTES)
    except OSError as error:  # such as a connection that is reset
        click.echo(f"sandbox-agent: standard input can't be read: {error.strerror}", err=True)
        return b""


def _size() -> os.terminal_size:
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not a terminal, or closed
            size = os.get_terminal_size(stream.fileno())
            if size.columns and size.lines:
                return size
    return _USUAL_SIZE


@contextlib.contextmanager
def _raw() -> Generator[None]:
    """Let every key reach the command in the sandbox, Ctrl+C included. Restores the terminal at the end."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        # At once, here and at the end: what is typed already is not lost, and output that the terminal does
        # not take can't hold this command up.
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSANOW, before)


@contextlib.contextmanager
def _resizing(terminal: ProcessTerminal) -> Generator[None]:
    """Resize the terminal in the sandbox with this one."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Future[None]] = set()

    async def resize() -> None:
        size = _size()
        with contextlib.suppress(SandboxAgentError):  # it has ended
            await terminal.resize(size.columns, size.lines)

    def on_signal() -> None:
        task = asyncio.ensure_future(resize())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGWINCH, on_signal)
    on_signal()  # it may have changed since the process was created
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        for task in tasks:
            task.cancel()
