"""The server-sent events of an installation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandbox_agent.engine.sse import encode_comment, encode_event
from sandbox_agent.server.agents.installations import Listener
from sandbox_agent.server.http.problems import error_response
from sandbox_agent.server.streams.viewers import EVENT_STREAM_HEADERS, KEEPALIVE_SECONDS, on_disconnect
from sandbox_agent.wire.api import AgentInstallProgress
from sandbox_agent.wire.jsonrpc import dumps

if TYPE_CHECKING:
    from sandbox_agent.agents.install.installer import Installed, Progress

# A client that reads slower than npm writes does not get all lines.
_MAX_WAITING = 1024


class InstallStream(Response):
    """The progress of an installation as it happens, then its result or its error.

    Args:
        install: installs, and calls the listener with what happens.
    """

    stream_type = "sse"
    status_code = 200

    def __init__(self, install: Callable[[Listener], Awaitable[Installed]]) -> None:
        self._install = install

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from sandbox_agent.agents.install.installer import response_of

        await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS]})
        events, waiting = anyio.create_memory_object_stream[bytes](_MAX_WAITING)

        def listen(event: Progress | str) -> None:
            # After the client has disconnected, the installation continues. The last place is the result's.
            statistics = events.statistics()
            if statistics.open_receive_streams and statistics.current_buffer_used < _MAX_WAITING - 1:
                events.send_nowait(_encode(event))

        async def run() -> None:
            with events:
                try:
                    result = await self._install(listen)
                except Exception as error:  # noqa: BLE001 - a boundary: it logs unexpected errors
                    problem = bytes(error_response("an installation", error).body)
                    events.send_nowait(encode_event("error", problem))
                else:
                    events.send_nowait(encode_event("done", msgspec.json.encode(response_of(result))))

        data: bytes | None = encode_comment("connected")
        async with anyio.create_task_group() as tasks:
            with waiting, on_disconnect(receive, tasks.cancel_scope.cancel):
                tasks.start_soon(run)
                while data is not None:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    data = encode_comment()
                    with anyio.move_on_after(KEEPALIVE_SECONDS):
                        data = await anext(waiting, None)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encode(event: Progress | str) -> bytes:
    if isinstance(event, str):
        return encode_event("log", dumps({"line": event}))
    progress = AgentInstallProgress(phase=event.phase, done=event.done, total=event.total)
    return encode_event("progress", msgspec.json.encode(progress))
