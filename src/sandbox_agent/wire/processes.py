"""Bodies of the HTTP contract about processes; field names on the wire are those of the OpenAPI files."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args

import msgspec

from sandbox_agent.wire.api import Body
from sandbox_agent.wire.serial import to_time

__all__ = [
    "ProcessConfig",
    "ProcessCreateRequest",
    "ProcessInfo",
    "ProcessInputRequest",
    "ProcessInputResponse",
    "ProcessListResponse",
    "ProcessLogEntry",
    "ProcessLogGap",
    "ProcessLogsResponse",
    "ProcessRestartInfo",
    "ProcessRestartRequest",
    "ProcessRunRequest",
    "ProcessRunResponse",
    "ProcessTerminalResizeRequest",
    "ProcessTerminalResizeResponse",
]

ProcessOwner = Literal["user", "desktop", "system"]
PROCESS_OWNERS: tuple[ProcessOwner, ...] = get_args(ProcessOwner)
ProcessStatus = Literal["running", "exited"]
ProcessStream = Literal["stdout", "stderr", "combined", "pty"]
PROCESS_STREAMS: tuple[ProcessStream, ...] = get_args(ProcessStream)
RestartMode = Literal["never", "on_failure", "always"]
RestartState = Literal["running", "waiting", "ended"]

# The largest value of a signed 64-bit number, which clients in other languages can hold.
_MOST = 2**63 - 1
# Delays are at most an hour.
_LONGEST_DELAY_MS = 3_600_000
# Of a terminal, in characters.
TerminalLength = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Limit = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Delay = Annotated[int, msgspec.Meta(ge=1, le=_LONGEST_DELAY_MS)]


class ProcessConfig(Body):
    """Limits for all processes.

    Attributes:
        max_concurrent_processes: how many may run at a time, those that wait to be restarted included.
        default_run_timeout_ms: how long a one-shot command may take that has no timeout of its own.
        max_run_timeout_ms: the longest timeout of a one-shot command.
        max_output_bytes: how much of each output of a one-shot command is returned.
        max_log_bytes_per_process: how much output is kept of each process.
        max_input_bytes_per_request: how much input one request may bring.
    """

    max_concurrent_processes: _Limit
    default_run_timeout_ms: _Limit
    max_run_timeout_ms: _Limit
    max_output_bytes: _Limit
    max_log_bytes_per_process: _Limit
    max_input_bytes_per_request: _Limit


class ProcessRestartRequest(Body):
    """Whether a process is started again when it has ended; not in the published server.

    Attributes:
        policy: "never"; "on_failure", if its exit code is not 0 or a signal has ended it; or "always".
        delay_ms: milliseconds before the first restart. Doubled for each that follows, up to
            ``max_delay_ms``; the first delay again once it has run for longer than ``max_delay_ms``.
        max_delay_ms: the longest delay.
        max_restarts: how often it is restarted; absent: any number of times.
    """

    policy: RestartMode
    delay_ms: _Delay = 500
    max_delay_ms: _Delay = 30_000
    max_restarts: _Size | None = None


class ProcessRestartInfo(Body):
    """How a process is restarted; not in the published server.

    Attributes:
        policy: see ProcessRestartRequest.
        state: "running"; "waiting" until ``next_start_at_ms``; or "ended" if it is not started again.
        count: how often it was restarted.
        next_start_at_ms: when it is started again, while it waits.
        error: why the last restart failed, if it did.
    """

    policy: RestartMode
    state: RestartState
    count: int
    next_start_at_ms: int | None = None
    error: str | None = None


class ProcessCreateRequest(Body):
    """``POST /v1/processes``.

    Attributes:
        command: the program: a path, or a name that is searched for on ``PATH``.
        args: its arguments.
        cwd: its working directory. Default: that of the server.
        env: variables besides those that it inherits.
        tty: whether it gets a terminal instead of pipes.
        cols: the width of the terminal in characters, 80 by default; not in the published server.
        rows: its height, 24 by default; not in the published server.
        interactive: whether a person types its input; kept for clients.
        restart: whether it is started again when it has ended; not in the published server.
    """

    command: str
    args: list[str] = msgspec.field(default_factory=list[str])
    cwd: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    tty: bool = False
    cols: TerminalLength | None = None
    rows: TerminalLength | None = None
    interactive: bool = False
    restart: ProcessRestartRequest | None = None


class ProcessInfo(Body):
    """A process.

    Attributes:
        id: its id, which is used once.
        command: its program.
        args: its arguments.
        tty: whether it has a terminal.
        interactive: as it was created.
        owner: "user" for those that clients create.
        status: "running" or "exited".
        created_at_ms: when it was created, in milliseconds since 1970.
        cwd: its working directory, if it was created with one.
        pid: its process id while it runs.
        exit_code: its exit code; absent if a signal has ended it.
        exit_signal: the number of the signal that has ended it; not in the published server.
        exited_at_ms: when it has ended.
        restart: how it is restarted, if it was created with a policy; not in the published server.
    """

    id: str
    command: str
    args: list[str]
    tty: bool
    interactive: bool
    owner: ProcessOwner
    status: ProcessStatus
    created_at_ms: int
    cwd: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    exited_at_ms: int | None = None
    restart: ProcessRestartInfo | None = None

    @property
    def created_time(self) -> datetime:
        """``created_at_ms`` as a datetime in UTC."""
        return to_time(self.created_at_ms)


class ProcessListResponse(Body):
    """``GET /v1/processes``: the processes, oldest first."""

    processes: list[ProcessInfo]


class ProcessInputRequest(Body):
    """``POST /v1/processes/{id}/input``.

    Attributes:
        data: the input.
        encoding: "base64" (the default), or "utf8" or "text" for a text.
        eof: whether its input ends with this; not in the published server.
    """

    data: str
    encoding: str | None = None
    eof: bool = False


class ProcessInputResponse(Body):
    """How many bytes of input the process was given."""

    bytes_written: int


class ProcessTerminalResizeRequest(Body):
    """``POST /v1/processes/{id}/terminal/resize``.

    Attributes:
        cols: the width in characters.
        rows: the height.
    """

    cols: TerminalLength
    rows: TerminalLength


class ProcessTerminalResizeResponse(Body):
    """The new size of a terminal.

    Attributes:
        cols: the width in characters.
        rows: the height.
    """

    cols: int
    rows: int


class ProcessRunRequest(Body):
    """``POST /v1/processes/run``.

    Attributes:
        command: the program: a path, or a name that is searched for on ``PATH``.
        args: its arguments.
        cwd: its working directory. Default: that of the server.
        env: variables besides those that it inherits.
        timeout_ms: milliseconds after which it is killed; 0 or absent for the default.
        max_output_bytes: how much of each output is returned; absent for the most.
    """

    command: str
    args: list[str] = msgspec.field(default_factory=list[str])
    cwd: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    timeout_ms: _Size | None = None
    max_output_bytes: _Size | None = None


class ProcessRunResponse(Body):
    """How a one-shot command has ended.

    Attributes:
        exit_code: its exit code; null if a signal or the timeout has ended it.
        timed_out: whether it was killed because it took too long.
        stdout: the beginning of its output; bytes that are not UTF-8 are replaced.
        stderr: the beginning of its error output.
        stdout_truncated: whether it wrote more.
        stderr_truncated: whether it wrote more.
        duration_ms: how long it took, in milliseconds.
        exit_signal: the number of the signal that has ended it; not in the published server.
    """

    exit_code: int | None
    timed_out: bool
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    duration_ms: int
    exit_signal: int | None = None


class ProcessLogEntry(Body):
    """A piece of output.

    Attributes:
        sequence: contiguous from 1 over all streams of the process.
        stream: "stdout", "stderr" or "pty".
        timestamp_ms: when it was read, in milliseconds since 1970.
        data: the bytes; in JSON, base64.
        encoding: that of ``data`` in JSON: "base64".
    """

    sequence: int
    stream: ProcessStream
    timestamp_ms: int
    data: bytes
    encoding: Literal["base64"]


class ProcessLogGap(Body):
    """Entries that were dropped, because the log was full; not in the published server.

    Attributes:
        from_: the sequence of the first one.
        to: the sequence of the last one.
    """

    from_: int = msgspec.field(name="from")
    to: int


class ProcessLogsResponse(Body):
    """``GET /v1/processes/{id}/logs``.

    Attributes:
        process_id: the id of the process.
        stream: whose output it is; "combined" for both.
        entries: the output, oldest first.
        gap: the entries that were asked for and are dropped; not in the published server.
    """

    process_id: str
    stream: ProcessStream
    entries: list[ProcessLogEntry]
    gap: ProcessLogGap | None = None
