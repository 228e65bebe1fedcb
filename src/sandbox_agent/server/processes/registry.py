"""All processes of the sandbox, by id."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from sandbox_agent.errors import ConflictError, NotFoundError, StreamError
from sandbox_agent.server import metrics
from sandbox_agent.server.processes.child import Child, PipeChild, Spawner, check_command
from sandbox_agent.server.processes.log import ProcessLog
from sandbox_agent.server.processes.process import SandboxProcess
from sandbox_agent.server.processes.pty import spawn_pty
from sandbox_agent.server.processes.runs import Runs
from sandbox_agent.server.processes.terminal import DEFAULT_COLS, DEFAULT_ROWS, Terminal
from sandbox_agent.server.streams.viewers import KEEPALIVE_SECONDS
from sandbox_agent.wire.processes import (
    ProcessConfig,
    ProcessCreateRequest,
    ProcessOwner,
    ProcessRunRequest,
    ProcessRunResponse,
)

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Processes that have ended stay readable. Beyond so many, or so many full logs, the oldest are removed.
MAX_ENDED = 256
MAX_ENDED_LOGS = 25


def default_config() -> ProcessConfig:
    """Return the limits with which a server starts."""
    return ProcessConfig(
        max_concurrent_processes=64,
        default_run_timeout_ms=30_000,
        max_run_timeout_ms=300_000,
        max_output_bytes=1024 * 1024,
        max_log_bytes_per_process=10 * 1024 * 1024,
        max_input_bytes_per_request=64 * 1024,
    )


class Processes:
    """The processes of the sandbox; run() owns their tasks.

    Args:
        spawner: starts commands.

    Attributes:
        config: the limits, which a client may replace.
    """

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self._processes: dict[str, SandboxProcess] = {}
        self._starting = 0
        self._next = 1
        self._tasks: anyio.abc.TaskGroup | None = None
        self._closing = False
        self._runs: Runs | None = None
        self.config: ProcessConfig = default_config()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Processes]:
        """Serve while the context lasts; at its end no process runs."""
        async with anyio.create_task_group() as self._tasks:
            self._runs = Runs(self._spawner, self._tasks)
            self._tasks.start_soon(self._keep_alive)
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):  # bounded: each stop() walks a timed ladder
                    await self.close()
                self._tasks.cancel_scope.cancel()
        self._tasks = None

    async def close(self) -> None:
        """Disconnect the viewers of terminals, and end all processes; no other is started."""
        self._closing = True
        for process in self._processes.values():
            if process.terminal is not None:
                process.terminal.close()
        async with anyio.create_task_group() as tasks:
            if self._runs is not None:
                tasks.start_soon(self._runs.close)
            for process in list(self._processes.values()):
                tasks.start_soon(process.stop)

    def list(self, owner: ProcessOwner | None = None) -> list[SandboxProcess]:
        """Return the processes of an owner, oldest first; None for all."""
        return [process for process in self._processes.values() if owner in (None, process.owner)]

    def get(self, process_id: str) -> SandboxProcess:
        """Return a process.

        Raises:
            NotFoundError: there is none with that id.
        """
        process = self._processes.get(process_id)
        if process is None:
            raise NotFoundError(f"not found: process {process_id}", resource="process", id=process_id)
        return process

    async def create(self, request: ProcessCreateRequest, owner: ProcessOwner = "user") -> SandboxProcess:
        """Start a process.

        Args:
            request: its command.
            owner: its owner.

        Raises:
            InvalidRequestError: it can't be a command, or can't be started.
            ConflictError: too many processes run.
            StreamError: the server can't start anything.
        """
        check_command(request)
        active = self._starting + sum(not process.ended.is_set() for process in self._processes.values())
        if active >= self.config.max_concurrent_processes:
            raise ConflictError(
                f"conflict: {active} processes run, as many as maxConcurrentProcesses allows: end one first"
            )
        terminal = Terminal(*_size(request)) if request.tty else None
        start = self._starter(request, terminal)
        self._starting += 1
        try:
            child = await start()
        finally:
            self._starting -= 1
        process_id = f"proc_{self._next}"
        self._next += 1
        log = ProcessLog(lambda: self.config.max_log_bytes_per_process)
        process = SandboxProcess(
            process_id, request, owner, child=child, start=start, log=log, terminal=terminal
        )
        self._processes[process_id] = process
        assert self._tasks is not None
        self._tasks.start_soon(self._run, process)
        if self._closing:
            await process.stop()
            raise _shutting_down()
        metrics.PROCESS_STARTS.add("create")
        logger.info("process %s started, pid %d", process_id, child.pid)
        return process

    def _starter(
        self, request: ProcessCreateRequest, terminal: Terminal | None
    ) -> Callable[[], Awaitable[Child]]:
        async def start() -> Child:
            if self._tasks is None or self._closing:
                raise _shutting_down()
            if terminal is not None:
                return await spawn_pty(self._spawner, request, terminal)
            return PipeChild(await self._spawner.spawn(request), self._spawner.children)

        return start

    async def _run(self, process: SandboxProcess) -> None:
        try:
            await process.run()
        except Exception:  # the boundary: one process must not end the server
            logger.exception("process %s failed", process.id)
            with contextlib.suppress(Exception):
                await process.child.signal(signal.SIGKILL)
        self._remove_oldest_ended()

    async def run_once(self, request: ProcessRunRequest) -> ProcessRunResponse:
        """Run a command to its end; see Runs.run."""
        check_command(request)
        if self._runs is None or self._closing:
            raise _shutting_down()
        return await self._runs.run(request, self.config)

    def delete(self, process_id: str) -> None:
        """Remove a process that has ended, and its log.

        Raises:
            NotFoundError: there is none with that id.
            ConflictError: it runs, or will be restarted.
        """
        process = self.get(process_id)
        if not process.ended.is_set():
            what = "is running" if process.running else "will be restarted"
            raise ConflictError(
                f"conflict: process {process_id} {what}: stop or kill it before you delete it"
            )
        del self._processes[process_id]

    def _remove_oldest_ended(self) -> None:
        ended = [process for process in self._processes.values() if process.ended.is_set()]
        size = sum(process.log.size for process in ended)
        most = MAX_ENDED_LOGS * self.config.max_log_bytes_per_process
        while len(ended) > MAX_ENDED or size > most:
            oldest = ended.pop(0)
            size -= oldest.log.size
            del self._processes[oldest.id]

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            for process in list(self._processes.values()):
                process.log.signal.tick()


def _size(request: ProcessCreateRequest) -> tuple[int, int]:
    return request.cols or DEFAULT_COLS, request.rows or DEFAULT_ROWS


def _shutting_down() -> StreamError:
    return StreamError("stream error: the server is shutting down: it starts no processes")
