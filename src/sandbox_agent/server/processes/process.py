"""One process of the sandbox: a command under an id, its log, and its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable

import anyio

from sandbox_agent.errors import ConflictError, ProblemError
from sandbox_agent.runtime.process import ExitStatus
from sandbox_agent.server import metrics
from sandbox_agent.server.processes.child import Child
from sandbox_agent.server.processes.log import ProcessLog
from sandbox_agent.server.processes.restarts import Restarts
from sandbox_agent.server.processes.terminal import Terminal
from sandbox_agent.wire.processes import (
    ProcessCreateRequest,
    ProcessInfo,
    ProcessOwner,
    ProcessRestartInfo,
    ProcessRestartRequest,
)

logger: logging.Logger = logging.getLogger("sandbox_agent.server")


class SandboxProcess:
    """A process of the sandbox. Create one with Processes.create, which runs it.

    Args:
        process_id: its id.
        request: its command.
        owner: its owner.
        child: its first child, which runs.
        start: starts another child.
        log: its log.
        terminal: its terminal, if it has one.

    Attributes:
        child: its newest child, which has ended if the process does not run.
        log: its output.
        terminal: what viewers see; None for a process with pipes.
        ended: set when it has ended and is not started again.
    """

    def __init__(
        self,
        process_id: str,
        request: ProcessCreateRequest,
        owner: ProcessOwner,
        *,
        child: Child,
        start: Callable[[], Awaitable[Child]],
        log: ProcessLog,
        terminal: Terminal | None = None,
    ) -> None:
        self.id = process_id
        self.request = request
        self.owner: ProcessOwner = owner
        self.child: Child = child
        self.log: ProcessLog = log
        self.terminal: Terminal | None = terminal
        self.ended: asyncio.Event = asyncio.Event()
        self._start = start
        self._restarts = Restarts(request.restart or ProcessRestartRequest(policy="never"))
        self._stopping = asyncio.Event()
        self._created_at_ms = _now_ms()
        self._status: ExitStatus | None = None
        self._exited_at_ms: int | None = None
        self._next_start_at_ms: int | None = None
        self._error: str | None = None

    @property
    def running(self) -> bool:
        """Whether its child runs."""
        return self._status is None

    async def run(self) -> None:
        """Read its output until it has ended and is not started again. Its owner calls this once."""
        try:
            while True:
                started = time.monotonic()
                self._exited(await self.child.run(self.log.append))
                if not await self._restart(time.monotonic() - started):
                    return
        finally:
            self._next_start_at_ms = None
            self.ended.set()
            self.log.signal.close()
            if self.terminal is not None:
                self.terminal.end()

    def _exited(self, status: ExitStatus) -> None:
        self._status = status
        self._exited_at_ms = _now_ms()
        logger.info("process %s has ended: %s", self.id, status)

    async def _restart(self, ran_seconds: float) -> bool:
        """Start it again when that is due; return whether it runs."""
        success = self._status is not None and self._status.success
        while not self._stopping.is_set():
            delay = self._restarts.next_delay(success=success, ran_seconds=ran_seconds)
            if delay is None:
                return False
            self._next_start_at_ms = _now_ms() + round(delay * 1000)
            with anyio.move_on_after(delay):
                await self._stopping.wait()
                return False
            try:
                child = await self._start()
            except ProblemError as error:
                logger.warning("process %s can't be restarted: %s", self.id, error)
                self._error = str(error)
                success, ran_seconds = False, 0.0
                continue
            metrics.PROCESS_STARTS.add("restart")
            self.child = child
            self._status = self._exited_at_ms = self._next_start_at_ms = self._error = None
            if self._stopping.is_set():  # it was stopped while it was started
                await child.signal(signal.SIGKILL)
            return True
        return False

    async def signal(self, signum: signal.Signals, wait_seconds: float) -> None:
        """Send a signal to all that it consists of, and wait until it has ended. It is not started again.

        Args:
            signum: SIGTERM or SIGKILL.
            wait_seconds: how long to wait at most.
        """
        self._stopping.set()
        if self.running:
            await self.child.signal(signum)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self.ended.wait()

    async def stop(self) -> None:
        """End it with SIGTERM, then SIGKILL; return when it has ended."""
        self._stopping.set()
        if self.running:
            await self.child.stop()
        await self.ended.wait()

    async def write(self, data: bytes, *, eof: bool = False) -> None:
        """Write to its input.

        Args:
            data: the input.
            eof: whether its input ends with this.

        Raises:
            ConflictError: it does not run, or has closed its input.
        """
        if not self.running:
            raise ConflictError(f"conflict: process {self.id} is not running: it can't be given input")
        try:
            await self.child.write(data)
            if eof:
                self.child.end_input()
        except BrokenPipeError as error:
            raise ConflictError(f"conflict: process {self.id} has closed its input, or has ended") from error

    def info(self) -> ProcessInfo:
        """Return what clients see of it."""
        request, status = self.request, self._status
        return ProcessInfo(
            id=self.id,
            command=request.command,
            args=request.args,
            cwd=request.cwd,
            tty=request.tty,
            interactive=request.interactive,
            owner=self.owner,
            status="running" if status is None else "exited",
            pid=self.child.pid if status is None else None,
            exit_code=status.code if status else None,
            exit_signal=status.signal if status else None,
            created_at_ms=self._created_at_ms,
            exited_at_ms=self._exited_at_ms,
            restart=self._restart_info(),
        )

    def _restart_info(self) -> ProcessRestartInfo | None:
        if self.request.restart is None:
            return None
        waiting = self._next_start_at_ms is not None and not self._stopping.is_set()
        return ProcessRestartInfo(
            policy=self.request.restart.policy,
            state="running" if self.running else "waiting" if waiting else "ended",
            count=self._restarts.count,
            next_start_at_ms=self._next_start_at_ms if waiting else None,
            error=self._error,
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
