"""One-shot commands: run to their end, with a timeout and limited output."""

from __future__ import annotations

import time
from functools import partial

import anyio
import anyio.abc

from sandbox_agent.errors import StreamError
from sandbox_agent.runtime.process import ExitStatus, Process
from sandbox_agent.server import metrics
from sandbox_agent.server.processes.child import Spawner, drain, read_output
from sandbox_agent.wire.processes import ProcessConfig, ProcessRunRequest, ProcessRunResponse


class _Output:
    """The beginning of one output."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[bytes] = []
        self._size = 0
        self.truncated: bool = False

    def add(self, data: bytes) -> None:
        """Keep what there is room for."""
        room = self._most - self._size
        self.truncated = self.truncated or len(data) > room
        if room > 0:
            self._parts.append(data[:room])
            self._size += len(self._parts[-1])

    def text(self) -> str:
        """Return it as text. Bytes that are not UTF-8 are replaced."""
        return b"".join(self._parts).decode("utf-8", "replace")


class Runs:
    """Runs one-shot commands. What they start in the background goes on until the server ends.

    Args:
        spawner: starts them.
        tasks: what goes on in the background is watched in these.
    """

    def __init__(self, spawner: Spawner, tasks: anyio.abc.TaskGroup) -> None:
        self._spawner = spawner
        self._tasks = tasks
        self._processes: set[Process] = set()
        self._closing = False

    async def close(self) -> None:
        """End all commands, and what they have started."""
        self._closing = True
        async with anyio.create_task_group() as tasks:
            for process in list(self._processes):
                tasks.start_soon(partial(process.stop, eof_grace=0))

    async def run(self, request: ProcessRunRequest, config: ProcessConfig) -> ProcessRunResponse:
        """Run a command to its end, and return its output.

        Args:
            request: the command, which is valid.
            config: the limits.

        Raises:
            InvalidRequestError: it can't be started.
            StreamError: the server can't start anything.
        """
        timeout_ms = min(request.timeout_ms or config.default_run_timeout_ms, config.max_run_timeout_ms)
        most = config.max_output_bytes
        if request.max_output_bytes is not None:
            most = min(request.max_output_bytes, most)
        outputs = {"stdout": _Output(most), "stderr": _Output(most)}

        def on_output(stream: str, data: bytes) -> None:
            outputs[stream].add(data)

        begun = time.monotonic()
        process = await self._spawner.spawn(request, lingers=True)
        metrics.PROCESS_STARTS.add("run")
        process.close_stdin()
        self._processes.add(process)
        status: ExitStatus | None = None
        try:
            if self._closing:  # it was started meanwhile
                raise StreamError("stream error: the server is shutting down")
            with anyio.move_on_after(timeout_ms / 1000):
                status = await read_output(process, on_output)
        finally:
            if status is None:
                with anyio.CancelScope(shield=True):  # bounded: a killed process ends
                    await process.kill()
                    await process.stop(eof_grace=0, term_grace=0)
            drain(process, on_output)
            if process.lingers:
                self._tasks.start_soon(self._linger, process)
            else:
                await self._release(process)
        stdout, stderr = outputs["stdout"], outputs["stderr"]
        return ProcessRunResponse(
            exit_code=status.code if status else None,
            exit_signal=status.signal if status else None,
            timed_out=status is None,
            stdout=stdout.text(),
            stderr=stderr.text(),
            stdout_truncated=stdout.truncated,
            stderr_truncated=stderr.truncated,
            duration_ms=round((time.monotonic() - begun) * 1000),
        )

    async def _linger(self, process: Process) -> None:
        """Read what a command has left in the background, and drop it: a full pipe would stop it."""
        try:
            async with anyio.create_task_group() as tasks:
                for reader in (process.stdout, process.stderr):
                    tasks.start_soon(reader.listen, _drop)
                await process.wait_gone()
                tasks.cancel_scope.cancel()
        finally:
            await self._release(process)

    async def _release(self, process: Process) -> None:
        self._processes.discard(process)
        process.close()
        await self._spawner.children.release(process)


def _drop(_data: bytes) -> bool:
    return True
