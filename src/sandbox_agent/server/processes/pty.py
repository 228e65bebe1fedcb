"""Children with a terminal."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import anyio

from sandbox_agent.errors import ConflictError
from sandbox_agent.runtime.process import ExitStatus, Process
from sandbox_agent.runtime.pty import TerminalSize
from sandbox_agent.server.children import Children
from sandbox_agent.server.processes.child import OnOutput, Spawner
from sandbox_agent.server.processes.terminal import PIECE_BYTES, Terminal
from sandbox_agent.wire.processes import ProcessCreateRequest

STREAM: Final = "pty"
# How long input waits for a process that does not read it. Then input is refused until the process reads.
INPUT_SECONDS: Final = 10.0


async def spawn_pty(spawner: Spawner, request: ProcessCreateRequest, terminal: Terminal) -> PtyChild:
    """Start a command with a terminal, whose output is the stream "pty".

    Args:
        spawner: starts it.
        request: the command.
        terminal: what its viewers see, also those of the next child if it is restarted.

    Raises:
        InvalidRequestError: it can't be started.
        StreamError: the server can't start anything.
    """
    size = TerminalSize(terminal.cols, terminal.rows)
    process = await spawner.spawn(request, size=size)
    return PtyChild(process, spawner.children, terminal)


class PtyChild:
    """A child with a terminal.

    Args:
        process: its process.
        children: what has started it.
        terminal: receives its output.
    """

    def __init__(self, process: Process, children: Children, terminal: Terminal) -> None:
        self.pid: int = process.pid
        self._process = process
        self._children = children
        self._terminal = terminal
        self._stalled = False
        terminal.on_resize = self._resize

    async def run(self, on_output: OnOutput) -> ExitStatus:
        process = self._process
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, on_output)
                await process.wait()
                tasks.cancel_scope.cancel()
            status = await process.wait()
            await process.sweep()  # first: a grandchild that writes would keep the terminal from draining
            for data in process.stdout.read_leftover():
                self._pass_on(data, on_output)
            return status
        finally:
            process.close()
            await self._children.release(process)

    async def _read(self, on_output: OnOutput) -> None:
        reader = self._process.stdout

        def on_data(data: bytes) -> bool:
            # The kernel gives 4 KiB of a terminal at a time.
            parts, size = [data], len(data)
            while size < PIECE_BYTES and (more := reader.read_nowait()):
                parts.append(more)
                size += len(more)
            return self._pass_on(b"".join(parts), on_output)

        while await reader.listen(on_data):
            await self._terminal.wait_room()

    def _pass_on(self, data: bytes, on_output: OnOutput) -> bool:
        on_output(STREAM, data)
        return self._terminal.feed(data)

    async def write(self, data: bytes) -> None:
        if self._stalled and not self._process.write_nowait(data):
            raise self._stalled_error()
        if self._stalled:
            self._stalled = False
            return
        try:
            async with asyncio.timeout(INPUT_SECONDS):
                await self._process.write(data)
        except TimeoutError:
            self._stalled = True
            raise self._stalled_error() from None
        except OSError as error:  # no process has the terminal open any more
            raise BrokenPipeError(str(error)) from error

    def _stalled_error(self) -> ConflictError:
        return ConflictError(
            f"conflict: the process has not read its input for {INPUT_SECONDS:g} s: "
            "input is refused until it does"
        )

    def end_input(self) -> None:
        raise ConflictError("conflict: the input of a terminal has no end: send Ctrl+D, the byte 4, instead")

    def _resize(self, cols: int, rows: int) -> None:
        self._process.resize(TerminalSize(cols, rows))

    async def signal(self, signum: signal.Signals) -> None:
        await self._process.signal(signum)
        if signum == signal.SIGKILL:
            await self._process.wait_killed()

    async def stop(self) -> None:
        await self._process.stop(eof_grace=0)
