"""``sandbox-agent exec``: a command in the sandbox of a running server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from sandbox_agent.cli.command_options import COMMAND_SETTINGS, command_options, read_available
from sandbox_agent.cli.remote import Remote, connect_and_run, remote_options
from sandbox_agent.errors import SandboxAgentError

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.client.terminal import ProcessTerminal

_READ_BYTES: Final = 32 * 1024
_END_OF_INPUT: Final = "\x04"
# Signals that end this command. The terminal is restored and the process killed before.
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
# How long the end of the process is waited for then.
_KILL_SECONDS: Final = 2.0


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

    async def run(self) -> int:
        """Run the command, and return its exit code."""
        size = _size()
        if self._tty and (term := os.environ.get("TERM")):
            self._env.setdefault("TERM", term)
        process = await self._processes.create(
            self._command[0],
            self._command[1:],
            cwd=self._cwd,
            env=self._env,
            tty=self._tty,
            cols=size.columns if self._tty else None,
            rows=size.lines if self._tty else None,
            interactive=self._interactive,
        )
        try:
            await (self._run_terminal(process.id) if self._tty else self._run_pipes(process.id))
            ended = await self._processes.get(process.id)
        except BrokenPipeError:  # what reads the output has ended
            return 128 + signal.SIGPIPE
        finally:
            await self._remove(process.id)
        if ended.exit_code is not None:
            return ended.exit_code
        return 128 + (ended.exit_signal or signal.SIGKILL)

    async def _remove(self, process_id: str) -> None:
        """Kill the process if it runs, and forget it. A server that is gone has done so."""
        with contextlib.suppress(SandboxAgentError):
            await self._processes.kill(process_id, wait=_KILL_SECONDS)
            await self._processes.delete(process_id)

    async def _run_terminal(self, process_id: str) -> None:
        async with self._processes.terminal(process_id) as terminal:
            with (
                _raw(sys.stdin.fileno()) if self._interactive else contextlib.nullcontext(),
                _resizing(terminal),
            ):
                reading = asyncio.ensure_future(self._send_input(terminal)) if self._interactive else None
                try:
                    async for data in terminal:
                        await asyncio.to_thread(_write, sys.stdout.fileno(), data)
                finally:
                    await _cancel(reading)

    async def _send_input(self, terminal: ProcessTerminal) -> None:
        while data := await read_available(sys.stdin.fileno(), _READ_BYTES):
            await terminal.send_input(data)
        await terminal.send_input(_END_OF_INPUT)

    async def _run_pipes(self, process_id: str) -> None:
        reading = asyncio.ensure_future(self._send_stdin(process_id))
        try:
            async for entry in self._processes.follow_logs(process_id):
                stream = sys.stderr if entry.stream == "stderr" else sys.stdout
                await asyncio.to_thread(_write, stream.fileno(), entry.data)
        finally:
            await _cancel(reading)

    async def _send_stdin(self, process_id: str) -> None:
        with contextlib.suppress(SandboxAgentError):  # the command has ended, or has closed its input
            while self._interactive and (data := await read_available(sys.stdin.fileno(), _READ_BYTES)):
                await self._processes.send_input(process_id, data)
            await self._processes.send_input(process_id, b"", eof=True)


async def _cancel(task: asyncio.Future[None] | None) -> None:
    """Cancel a task and wait for its end. Its error does not matter any more."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


def _size() -> os.terminal_size:
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # not a terminal, or closed
            return os.get_terminal_size(stream.fileno())
    return os.terminal_size((80, 24))


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextlib.contextmanager
def _raw(fd: int) -> Generator[None]:
    """Let every key reach the command in the sandbox, Ctrl+C included. Restores the terminal at the end."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


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
