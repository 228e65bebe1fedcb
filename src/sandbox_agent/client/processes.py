"""The processes of the sandbox: ``sdk.processes``."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import HELPER_READ_TIMEOUT, Http
from sandbox_agent.client.process_logs import LogFollower, process_path
from sandbox_agent.client.server_sessions.calls import (
    SessionCalls,
    decode,
    is_of_network,
    is_unprocessed,
    query,
)
from sandbox_agent.client.terminal import ProcessTerminal
from sandbox_agent.wire.processes import (
    ProcessConfig,
    ProcessCreateRequest,
    ProcessInfo,
    ProcessInputRequest,
    ProcessInputResponse,
    ProcessListResponse,
    ProcessLogEntry,
    ProcessLogsResponse,
    ProcessOwner,
    ProcessRestartRequest,
    ProcessRunRequest,
    ProcessRunResponse,
    ProcessStream,
    ProcessTerminalResizeRequest,
    ProcessTerminalResizeResponse,
    RestartMode,
)

T = TypeVar("T")

_ROOT = "/v1/processes"


class Processes:
    """Runs commands in the sandbox; see ``SandboxAgent.processes``.

    Every method waits until the server is healthy, and raises:

    * ``NotFoundError``: there is no process with that id.
    * ``InvalidRequestError``: an argument is invalid.
    * ``ConnectionLostError``: the server can't be reached.
    """

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._http = http
        self._health = health
        self._calls = SessionCalls(http, health)

    async def create(
        self,
        command: str,
        args: Sequence[str] = (),
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        tty: bool = False,
        cols: int | None = None,
        rows: int | None = None,
        interactive: bool = False,
        restart: ProcessRestartRequest | RestartMode | None = None,
    ) -> ProcessInfo:
        """Start a process, which continues when this client is gone. With it, all that it has started ends.

        Args:
            command: the program: a path, or a name that is searched for on ``PATH``.
            args: its arguments.
            cwd: its working directory in the sandbox. Default: that of the server.
            env: variables besides those that it inherits.
            tty: whether it gets a terminal instead of pipes.
            cols: the width of the terminal in characters. Default: 80. The published server ignores it.
            rows: its height. Default: 24. The published server ignores it.
            interactive: whether a person types its input.
            restart: when it is started again after it has ended: "never", "on_failure", "always", or a policy
                with its delays. The published server ignores it.

        Raises:
            InvalidRequestError: it can't be started.
            ConflictError: too many processes run.
            StreamError: the server can't start anything; the published server also if the command is wrong.
        """
        policy = ProcessRestartRequest(policy=restart) if isinstance(restart, str) else restart
        request = ProcessCreateRequest(
            command=command,
            args=list(args),
            cwd=None if cwd is None else os.fspath(cwd),
            env=dict(env or {}),
            tty=tty,
            cols=cols,
            rows=rows,
            interactive=interactive,
            restart=policy,
        )
        return await self._post(_ROOT, ProcessInfo, request)

    async def run(
        self,
        command: str,
        args: Sequence[str] = (),
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        max_output_bytes: int | None = None,
    ) -> ProcessRunResponse:
        """Run a command to its end and return its output. It has no input.

        Args:
            command: the program: a path, or a name that is searched for on ``PATH``.
            args: its arguments.
            cwd: its working directory in the sandbox. Default: that of the server.
            env: variables besides those that it inherits.
            timeout: seconds after which it is killed, with all that it has started. Default: 30, and at most
                300, unless the server's limits were changed.
            max_output_bytes: how much of each output is returned. Default: as much as the server's limits
                allow.

        Raises:
            InvalidRequestError: it can't be started.
            StreamError: the server can't start anything; the published server also if the command is wrong.
        """
        request = ProcessRunRequest(
            command=command,
            args=list(args),
            cwd=None if cwd is None else os.fspath(cwd),
            env=dict(env or {}),
            timeout_ms=None if timeout is None else max(1, round(timeout * 1000)),
            max_output_bytes=max_output_bytes,
        )
        return await self._post(f"{_ROOT}/run", ProcessRunResponse, request, seconds=timeout or 0)

    async def list(self, *, owner: ProcessOwner | None = None) -> Sequence[ProcessInfo]:
        """Return the processes, oldest first; the latest that have ended, too.

        Args:
            owner: whose processes: "user" for those that clients create; None for all.
        """
        return (await self._get(_ROOT, ProcessListResponse, owner=owner)).processes

    async def get(self, process_id: str) -> ProcessInfo:
        """Return a process."""
        return await self._get(process_path(process_id), ProcessInfo)

    async def stop(self, process_id: str, *, wait: float | None = None) -> ProcessInfo:
        """Send SIGTERM to a process and to all that it has started. It is not restarted.

        Args:
            process_id: the process.
            wait: how many seconds to wait until it has ended. Default: 2.

        Returns:
            The process, which runs if it has not ended in that time.
        """
        return await self._signal(process_id, "stop", wait)

    async def kill(self, process_id: str, *, wait: float | None = None) -> ProcessInfo:
        """Send SIGKILL to a process and to all that it has started. It is not restarted.

        Args:
            process_id: the process.
            wait: how many seconds to wait until it has ended. Default: 1.
        """
        return await self._signal(process_id, "kill", wait)

    async def delete(self, process_id: str) -> None:
        """Delete a process that has ended, and its output.

        Raises:
            ConflictError: it runs, or waits to be restarted.
        """
        await self._calls.send("DELETE", process_path(process_id), repeats=is_unprocessed)

    async def send_input(self, process_id: str, data: bytes | str, *, eof: bool = False) -> int:
        """Write to the input of a process; return how many bytes were written.

        Args:
            process_id: the process.
            data: bytes, or a text in UTF-8.
            eof: whether its input ends with this. The published server ignores it.

        Raises:
            ConflictError: it does not run, or has closed its input.
            PayloadTooLargeError: the data is more than ``max_input_bytes_per_request``.
        """
        content = data.encode() if isinstance(data, str) else data
        request = ProcessInputRequest(data=b64encode(content).decode(), encoding="base64", eof=eof)
        path = process_path(process_id, "input")
        return (await self._post(path, ProcessInputResponse, request)).bytes_written

    def terminal(self, process_id: str) -> ProcessTerminal:
        """Return the terminal of a process, for ``async with``. Any number of clients can have it open.

        Args:
            process_id: a process that was created with ``tty=True``.

        Raises:
            MissingExtraError: the extra ``terminal`` is not installed.
        """
        return ProcessTerminal(self._http, self._health, process_id)

    async def resize_terminal(self, process_id: str, cols: int, rows: int) -> None:
        """Change the size of a terminal, for the process and all viewers.

        Args:
            process_id: the process.
            cols: the width in characters.
            rows: the height.

        Raises:
            ConflictError: it has no terminal, or has ended.
        """
        path = process_path(process_id, "terminal/resize")
        request = ProcessTerminalResizeRequest(cols=cols, rows=rows)
        await self._post(path, ProcessTerminalResizeResponse, request)

    async def logs(
        self,
        process_id: str,
        *,
        stream: ProcessStream = "combined",
        since: int | None = None,
        tail: int | None = None,
    ) -> ProcessLogsResponse:
        """Return the output of a process that is kept. ``gap`` has the range of what is dropped, if any is.

        Args:
            process_id: the process.
            stream: which output: "stdout", "stderr", "pty" of a terminal, or "combined" for all.
            since: the sequence of the last entry that the caller has; None for all.
            tail: only so many of the last entries.
        """
        path = process_path(process_id, "logs")
        return await self._get(path, ProcessLogsResponse, stream=stream, since=since, tail=tail)

    async def follow_logs(
        self,
        process_id: str,
        *,
        stream: ProcessStream = "combined",
        since: int | None = None,
        tail: int | None = None,
        allow_gaps: bool = False,
    ) -> AsyncGenerator[ProcessLogEntry]:
        """Iterate over the output of a process until it has ended and is not restarted.

        Reconnects by itself; each entry is returned once.

        Args:
            process_id: the process.
            stream: which output: "stdout", "stderr", "pty" of a terminal, or "combined" for all.
            since: the sequence of the last entry that the caller has; None begins with the oldest that is
                kept.
            tail: begin with so many of the last entries.
            allow_gaps: skip entries that the server has dropped before they were received: the ``sequence``
                of the next one then is not the next number.

        Raises:
            GoneError: the next entries are dropped (``missingFrom`` and ``missingTo`` in its ``extensions``),
                or the server was restarted, and the process is gone.
            ConnectionLostError: the server is gone.
        """
        follower = LogFollower(
            self._calls, process_id, stream=stream, since=since, tail=tail, allow_gaps=allow_gaps
        )
        async with aclosing(follower.entries()) as entries:
            async for entry in entries:
                yield entry

    async def get_config(self) -> ProcessConfig:
        """Return the limits for processes."""
        return await self._get(f"{_ROOT}/config", ProcessConfig)

    async def set_config(self, config: ProcessConfig) -> ProcessConfig:
        """Replace the limits for processes, until the server ends; return those that count now."""
        return await self._post(f"{_ROOT}/config", ProcessConfig, config)

    async def _signal(self, process_id: str, what: str, wait: float | None) -> ProcessInfo:
        params = query(waitMs=None if wait is None else round(wait * 1000))
        path = process_path(process_id, what)
        return await self._post(path, ProcessInfo, None, params=params, seconds=wait or 0)

    async def _get(self, path: str, kind: type[T], **params: str | int | None) -> T:
        answer = await self._calls.send(
            "GET", path, params=query(**params), repeats=is_of_network, read_timeout=HELPER_READ_TIMEOUT
        )
        return decode(answer, kind, f"GET {path}")

    async def _post(
        self,
        path: str,
        kind: type[T],
        body: object,
        *,
        params: Mapping[str, str | None] | None = None,
        seconds: float = 0,
    ) -> T:
        """Send a request that is not sent twice; ``seconds`` is how long the server may take."""
        document: Any = None if body is None else msgspec.to_builtins(body)
        answer = await self._calls.send(
            "POST",
            path,
            params=params,
            body=document,
            repeats=is_unprocessed,
            read_timeout=HELPER_READ_TIMEOUT + seconds,
        )
        return decode(answer, kind, f"POST {path}")
