"""Server-sent events as a streaming response: its headers, its first bytes and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandbox_agent.engine.sse import encode_comment, encode_retry
from sandbox_agent.errors import PersistError
from sandbox_agent.server.streams.viewers import Viewer

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

EVENT_STREAM = "text/event-stream"
# How long a client waits before it reconnects.
RETRY_MS = 500
_HEADERS = (
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStream(Response):
    """The events of a viewer, as a response that lasts until the viewer ends or the client disconnects.

    The first bytes are sent at once. If the store fails, the stream ends: the client's next request
    continues where this one stopped, or fails with the reason.

    Args:
        viewer: yields the events.
        opening: events that are sent first.
        headers: additional headers.
    """

    def __init__(
        self, viewer: Viewer, *, opening: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self._viewer = viewer
        self._opening = encode_comment("connected") + encode_retry(RETRY_MS) + opening
        self._headers = [*_HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await send({"type": "http.response.body", "body": self._opening, "more_body": True})
        watching = asyncio.ensure_future(_leave_on_disconnect(receive, self._viewer))
        try:
            async for data in self._viewer:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except PersistError as error:
            logger.warning("a stream ends early: the store can't be read (%s)", error)
        finally:
            watching.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _leave_on_disconnect(receive: Receive, viewer: Viewer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.leave()
