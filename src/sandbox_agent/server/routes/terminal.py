"""``/v1/processes/{id}/terminal``: terminals of processes, over WebSockets."""

from __future__ import annotations

import contextlib
import logging
from http import HTTPStatus
from typing import Any, Final

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sandbox_agent.errors import ConflictError, InvalidRequestError, NotFoundError, ProblemError
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, read_json
from sandbox_agent.server.processes.process import SandboxProcess
from sandbox_agent.server.processes.terminal import Terminal, TerminalClosedError
from sandbox_agent.server.routes.processes import PROCESS_ID, decode_input, find_process
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.processes import (
    ProcessTerminalResizeRequest,
    ProcessTerminalResizeResponse,
    TerminalLength,
)

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

_NORMAL: Final = 1000
_GOING_AWAY: Final = 1001
_INTERNAL_ERROR: Final = 1011


class _Input(msgspec.Struct, tag="input"):
    data: str
    encoding: str | None = None


class _Resize(msgspec.Struct, tag="resize"):
    cols: TerminalLength
    rows: TerminalLength


class _Close(msgspec.Struct, tag="close"):
    pass


_Frame = _Input | _Resize | _Close
_decoder = msgspec.json.Decoder(_Frame)


@Operation(
    "POST",
    "/v1/processes/{id}/terminal/resize",
    tag="processes",
    parameters=(PROCESS_ID,),
    request_body=ProcessTerminalResizeRequest,
    answers={200: Answer("The new size.", ProcessTerminalResizeResponse)},
    errors=(InvalidRequestError, NotFoundError, ConflictError),
)
async def post_v1_process_terminal_resize(request: Request) -> Response:
    """Change the size of a terminal, for the process and all viewers."""
    wanted = await read_json(request, ProcessTerminalResizeRequest, state_of(request).config.max_body_bytes)
    process = find_process(request)
    terminal = _terminal(process)
    if not process.running:
        raise ConflictError(f"conflict: process {process.id} is not running: its terminal keeps its size")
    terminal.resize(wanted.cols, wanted.rows)
    return json_response(ProcessTerminalResizeResponse(cols=wanted.cols, rows=wanted.rows))


@Operation(
    "GET",
    "/v1/processes/{id}/terminal/ws",
    tag="processes",
    parameters=(
        PROCESS_ID,
        Parameter("access_token", "query", "The token, for clients that can't send a header."),
        Parameter("ticket", "query", "A ticket with the scope `terminal`, in place of the token."),
    ),
    answers={HTTPStatus.SWITCHING_PROTOCOLS: Answer("The WebSocket.")},
    errors=(InvalidRequestError, NotFoundError, ConflictError),
)
async def get_v1_process_terminal_ws(request: Request) -> Response:
    """Open the terminal of a process as a WebSocket, as one of any number of viewers.

    The server sends the terminal's bytes as binary messages, and text messages: `{"type": "ready",
    "processId"}` first, `{"type": "exit", "exitCode"}` at the end, and `{"type": "error", "message"}` for a
    message that it refuses. The client sends text messages: `{"type": "input", "data", "encoding"}` (a text,
    or `base64`), `{"type": "resize", "cols", "rows"}` and `{"type": "close"}`. A viewer that joins later
    receives what draws the screen first. A viewer that reads nothing for 10 seconds is disconnected.
    """
    process = find_process(request)
    terminal = _terminal(process)
    if request.scope["type"] != "websocket":
        raise InvalidRequestError("invalid request: this path is a WebSocket: send 'Upgrade: websocket'")
    return _Socket(process, terminal, state_of(request).processes.config.max_input_bytes_per_request)


def _terminal(process: SandboxProcess) -> Terminal:
    if process.terminal is None:
        raise ConflictError(f'conflict: process {process.id} has no terminal: create it with "tty": true')
    return process.terminal


class _Socket(Response):
    """The connection of one viewer."""

    stream_type = "websocket"
    status_code = HTTPStatus.SWITCHING_PROTOCOLS

    def __init__(self, process: SandboxProcess, terminal: Terminal, max_input: int) -> None:
        self._process = process
        self._terminal = terminal
        self._max_input = max_input

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # "websocket.connect"
        code, reason = _NORMAL, ""
        try:
            await send({"type": "websocket.accept"})
            await _send_frame(send, {"type": "ready", "processId": self._process.id})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive_all, receive, send, tasks.cancel_scope)
                await self._send_all(send)
                tasks.cancel_scope.cancel()
        except* OSError:
            pass  # the viewer has disconnected
        except* TerminalClosedError:
            code, reason = _GOING_AWAY, "the server is shutting down"
        except* Exception:
            logger.exception("the terminal of process %s failed", self._process.id)
            code, reason = _INTERNAL_ERROR, "an unexpected error; see the server's log"
        with contextlib.suppress(OSError):
            await send({"type": "websocket.close", "code": code, "reason": reason})

    async def _send_all(self, send: Send) -> None:
        async with self._terminal.join() as viewer:
            while data := await viewer.read():
                await send({"type": "websocket.send", "bytes": data})
        await self._process.ended.wait()
        await _send_frame(send, {"type": "exit", "exitCode": self._process.info().exit_code})

    async def _receive_all(self, receive: Receive, send: Send, scope: anyio.CancelScope) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise ConnectionResetError("the viewer has disconnected")
            try:
                if not await self._on_message(message):
                    scope.cancel()
                    return
            except ProblemError as error:
                await _send_frame(send, {"type": "error", "message": str(error)})

    async def _on_message(self, message: Message) -> bool:
        """Do what a message asks for, and return whether the viewer stays."""
        text: str | None = message.get("text")
        if text is None:
            raise InvalidRequestError(
                "invalid terminal frame: binary input is not supported: use text frames"
            )
        try:
            frame: _Frame = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidRequestError(f"invalid terminal frame: {error}") from None
        match frame:
            case _Input():
                data = decode_input(frame.data, frame.encoding or "text", self._max_input)
                await self._process.write(data)
            case _Resize():
                self._terminal.resize(frame.cols, frame.rows)
            case _Close():
                return False
        return True


async def _send_frame(send: Send, frame: dict[str, Any]) -> None:
    await send({"type": "websocket.send", "text": dumps(frame).decode()})


OPERATIONS = (post_v1_process_terminal_resize, get_v1_process_terminal_ws)
