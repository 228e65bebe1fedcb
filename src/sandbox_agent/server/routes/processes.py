"""``/v1/processes``: commands that run in the sandbox."""

from __future__ import annotations

import binascii
import signal
from base64 import b64decode
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    StreamError,
)
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    get_header,
    integer_schema,
    parse_number,
    read_flag,
    read_json,
    read_number,
    read_text,
    text_schema,
)
from sandbox_agent.server.processes.log import COMBINED, Follower, encode_logs
from sandbox_agent.server.processes.process import SandboxProcess
from sandbox_agent.server.processes.registry import Processes
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.processes import (
    PROCESS_OWNERS,
    PROCESS_STREAMS,
    ProcessConfig,
    ProcessCreateRequest,
    ProcessInfo,
    ProcessInputRequest,
    ProcessInputResponse,
    ProcessListResponse,
    ProcessLogsResponse,
    ProcessRunRequest,
    ProcessRunResponse,
)

_Choice = TypeVar("_Choice", bound=str)

# How long a request that names no time waits for the end of a process, as in the published server.
STOP_MS: Final = 2_000
KILL_MS: Final = 1_000
_LONGEST_WAIT_MS: Final = 24 * 3600 * 1000
_JSON: Final = "application/json"
# Of a JSON body besides its input: member names and a short encoding.
_INPUT_MARGIN: Final = 1024
PROCESS_ID = Parameter("id", "path", "The id of the process.", text_schema(least=1), required=True)


def _wait(default_ms: int) -> Parameter:
    return Parameter(
        "waitMs",
        "query",
        f"How many milliseconds to wait until it has ended ({default_ms} by default).",
        {**integer_schema(most=_LONGEST_WAIT_MS), "nullable": True},
    )


@Operation(
    "GET",
    "/v1/processes",
    tag="processes",
    parameters=(
        Parameter(
            "owner",
            "query",
            "Whose processes to list; absent: all.",
            {"type": "string", "enum": list(PROCESS_OWNERS), "nullable": True},
        ),
    ),
    answers={200: Answer("The processes.", ProcessListResponse)},
)
async def get_v1_processes(request: Request) -> Response:
    """List the processes, oldest first.

    The latest 256 that have ended are listed, too.
    """
    owner = _choice(request, "owner", PROCESS_OWNERS)
    found = [process.info() for process in _processes(request).list(owner)]
    return json_response(ProcessListResponse(processes=found))


@Operation(
    "POST",
    "/v1/processes",
    tag="processes",
    request_body=ProcessCreateRequest,
    answers={200: Answer("The process runs.", ProcessInfo)},
    errors=(InvalidRequestError, ConflictError, StreamError),
)
async def post_v1_processes(request: Request) -> Response:
    """Start a process.

    It goes on when the client disconnects, and ends with the server at the latest. With it, all that it has
    started ends.
    """
    wanted = await read_json(request, ProcessCreateRequest, state_of(request).config.max_body_bytes)
    return json_response((await _processes(request).create(wanted)).info())


@Operation(
    "POST",
    "/v1/processes/run",
    tag="processes",
    request_body=ProcessRunRequest,
    answers={200: Answer("The command has ended.", ProcessRunResponse)},
    errors=(InvalidRequestError, StreamError),
)
async def post_v1_processes_run(request: Request) -> Response:
    """Run a command to its end and return its output.

    It has no input, and no id. If it takes longer than its timeout, it is killed with all that it has
    started. Otherwise, what it leaves in the background goes on until the server ends.
    """
    wanted = await read_json(request, ProcessRunRequest, state_of(request).config.max_body_bytes)
    return json_response(await _processes(request).run_once(wanted))


@Operation(
    "GET",
    "/v1/processes/config",
    tag="processes",
    answers={200: Answer("The limits.", ProcessConfig)},
)
async def get_v1_processes_config(request: Request) -> Response:
    """Return the limits for processes."""
    return json_response(_processes(request).config)


@Operation(
    "POST",
    "/v1/processes/config",
    tag="processes",
    request_body=ProcessConfig,
    answers={200: Answer("The limits from now on.", ProcessConfig)},
    errors=(InvalidRequestError,),
)
async def post_v1_processes_config(request: Request) -> Response:
    """Replace the limits for processes, until the server ends.

    A default timeout that is longer than the longest is lowered to it.
    """
    wanted = await read_json(request, ProcessConfig, state_of(request).config.max_body_bytes)
    wanted.default_run_timeout_ms = min(wanted.default_run_timeout_ms, wanted.max_run_timeout_ms)
    _processes(request).config = wanted
    return json_response(wanted)


@Operation(
    "GET",
    "/v1/processes/{id}",
    tag="processes",
    parameters=(PROCESS_ID,),
    answers={200: Answer("The process.", ProcessInfo)},
    errors=(NotFoundError,),
)
async def get_v1_process(request: Request) -> Response:
    """Return a process."""
    return json_response(find_process(request).info())


@Operation(
    "DELETE",
    "/v1/processes/{id}",
    tag="processes",
    parameters=(PROCESS_ID,),
    answers={204: Answer("The process was deleted.")},
    errors=(NotFoundError, ConflictError),
)
async def delete_v1_process(request: Request) -> Response:
    """Delete a process that has ended, and its output."""
    _processes(request).delete(request.path_params["id"])
    return Response(status_code=204)


@Operation(
    "POST",
    "/v1/processes/{id}/stop",
    tag="processes",
    parameters=(PROCESS_ID, _wait(STOP_MS)),
    answers={200: Answer("The process, which may not have ended yet.", ProcessInfo)},
    errors=(NotFoundError,),
)
async def post_v1_process_stop(request: Request) -> Response:
    """Send SIGTERM to a process and to all that it has started. It is not restarted."""
    return await _signal(request, signal.SIGTERM, STOP_MS)


@Operation(
    "POST",
    "/v1/processes/{id}/kill",
    tag="processes",
    parameters=(PROCESS_ID, _wait(KILL_MS)),
    answers={200: Answer("The process, which may not have ended yet.", ProcessInfo)},
    errors=(NotFoundError,),
)
async def post_v1_process_kill(request: Request) -> Response:
    """Send SIGKILL to a process and to all that it has started. It is not restarted."""
    return await _signal(request, signal.SIGKILL, KILL_MS)


@Operation(
    "POST",
    "/v1/processes/{id}/input",
    tag="processes",
    parameters=(PROCESS_ID,),
    request_body=ProcessInputRequest,
    answers={200: Answer("The process was given the input.", ProcessInputResponse)},
    errors=(NotFoundError, ConflictError),
)
async def post_v1_process_input(request: Request) -> Response:
    """Write to the input of a process.

    Returns when all of it is in the pipe: it waits while the process does not read.
    """
    process = find_process(request)
    most = _processes(request).config.max_input_bytes_per_request
    # Base64 has 4 characters for 3 bytes, and JSON at most 6 for a character.
    wanted = await read_json(request, ProcessInputRequest, _INPUT_MARGIN + 8 * most)
    data = decode_input(wanted.data, wanted.encoding, most)
    await process.write(data, eof=wanted.eof)
    return json_response(ProcessInputResponse(bytes_written=len(data)))


@Operation(
    "GET",
    "/v1/processes/{id}/logs",
    tag="processes",
    parameters=(
        PROCESS_ID,
        Parameter(
            "stream",
            "query",
            "Which output; `combined`, the default, for all.",
            {"type": "string", "enum": list(PROCESS_STREAMS), "nullable": True},
        ),
        Parameter(
            "tail", "query", "Only so many of the last entries.", {**integer_schema(), "nullable": True}
        ),
        Parameter(
            "follow",
            "query",
            "Whether to stream the entries as server-sent events, and those that follow.",
            {"type": "boolean", "nullable": True},
        ),
        Parameter(
            "since",
            "query",
            "The last sequence that the client has; later entries are returned.",
            {**integer_schema(), "nullable": True},
        ),
        Parameter(
            "Last-Event-ID",
            "header",
            "As `since`, for a stream that continues another one; the larger one counts.",
            integer_schema(),
        ),
    ),
    answers={200: Answer("The output.", ProcessLogsResponse, (_JSON, EVENT_STREAM))},
    errors=(NotFoundError,),
)
async def get_v1_process_logs(request: Request) -> Response:
    """Return the output of a process, or follow it.

    Of each process, the newest output is kept, as much as `maxLogBytesPerProcess` allows. `gap` has the
    sequences of the entries that were asked for and are dropped. The events of a stream are `log`, with an
    entry; `gap`, if entries were dropped before they were sent; and `exit`, with the process, when it has
    ended and is not restarted.
    """
    process = find_process(request)
    log = process.log
    stream = _choice(request, "stream", PROCESS_STREAMS) or COMBINED
    cursor = read_number(request, "since", 0) or 0
    follow = read_flag(request, "follow")
    last_event_id = get_header(request, b"last-event-id")
    if follow and last_event_id:
        cursor = max(cursor, parse_number(last_event_id, "Last-Event-ID"))
    tail = read_number(request, "tail")
    if tail is not None:
        cursor = max(cursor, log.tail(tail, stream))
    if follow:
        follower = Follower(log, lambda: msgspec.json.encode(process.info()))
        return EventStream(Viewer(follower, cursor, UNNAMED, audience=stream))
    first = max(cursor + 1, log.first)
    head = dumps({"processId": process.id, "stream": stream})[:-1] + b',"entries":['
    end = b"]}"
    if cursor + 1 < log.first:
        end = b'],"gap":' + dumps({"from": cursor + 1, "to": log.first - 1}) + b"}"
    entries = log.after(cursor)

    async def pieces() -> AsyncGenerator[bytes]:
        for piece in encode_logs(head, first, entries, stream, end):
            yield piece

    return StreamingResponse(pieces(), media_type=_JSON)


async def _signal(request: Request, signum: signal.Signals, default_ms: int) -> Response:
    process = find_process(request)
    wait_ms = read_number(request, "waitMs", default_ms, most=_LONGEST_WAIT_MS)
    await process.signal(signum, (default_ms if wait_ms is None else wait_ms) / 1000)
    return json_response(process.info())


def decode_input(data: str, encoding: str | None, most: int) -> bytes:
    """Return the bytes of input.

    Args:
        data: the input as it was sent.
        encoding: "base64" or None, or "utf8" or "text".
        most: how many bytes it may have.

    Raises:
        InvalidRequestError: the encoding is unknown, or data is not encoded so.
        PayloadTooLargeError: it has more bytes.
    """
    content = _decode(data, encoding)
    if len(content) > most:
        raise PayloadTooLargeError(
            f"payload too large: the input has {len(content)} bytes, "
            f"and maxInputBytesPerRequest allows {most}"
        )
    return content


def _decode(data: str, encoding: str | None) -> bytes:
    if encoding in ("utf8", "text"):
        return data.encode("utf-8", "surrogatepass")
    if encoding not in (None, "base64"):
        raise InvalidRequestError(f"invalid request: encoding must be base64, utf8 or text, not {encoding!r}")
    try:
        return b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(
            f"invalid request: data is not base64 ({error}): send a text with the encoding utf8"
        ) from None


def _choice(request: Request, name: str, choices: Sequence[_Choice]) -> _Choice | None:
    value = read_text(request, name)
    for choice in choices:
        if value == choice:
            return choice
    if value is not None:
        raise InvalidRequestError(
            f"invalid request: query parameter '{name}' must be one of {', '.join(choices)}"
        )
    return None


def find_process(request: Request) -> SandboxProcess:
    """Return the process whose id is in the path.

    Raises:
        NotFoundError: there is none.
    """
    return _processes(request).get(request.path_params["id"])


def _processes(request: Request) -> Processes:
    return state_of(request).processes


OPERATIONS = (
    get_v1_processes,
    post_v1_processes,
    post_v1_processes_run,
    get_v1_processes_config,
    post_v1_processes_config,
    get_v1_process,
    delete_v1_process,
    post_v1_process_stop,
    post_v1_process_kill,
    post_v1_process_input,
    get_v1_process_logs,
)
