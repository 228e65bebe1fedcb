"""A transport that reads along: what the servers put on their event streams, as it comes off the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import httpx2
import msgspec

from sandbox_agent.engine.sse import SseDecoder, SseEvent

__all__ = ["Wire"]

# Shorter than the server's, or a request is sent into a connection that is just being closed.
_LIMITS: Final = httpx2.Limits(max_connections=None, keepalive_expiry=2.0)
# The requests whose answers belong to the connection and to no session.
_HANDSHAKE: Final = frozenset({"initialize", "authenticate"})


class _Head(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw()
    method: str | None = None


class _Params(msgspec.Struct):
    params: dict[str, object] = msgspec.field(default_factory=dict[str, object])


_head = msgspec.json.Decoder(_Head).decode
_params = msgspec.json.Decoder(_Params).decode


class Wire(httpx2.AsyncHTTPTransport):
    """Passes everything on and keeps a copy of each stream's events, by the ids that the server gave."""

    def __init__(self) -> None:
        super().__init__(limits=_LIMITS)
        self._streams: dict[str, dict[str, bytes]] = {}
        self._handshakes: set[tuple[str, bytes]] = set()

    def session_events(self) -> list[bytes]:
        """Return the envelopes that belong to a session, in the order of their streams."""
        return [
            line
            for path, events in self._streams.items()
            for line in events.values()
            if self._is_of_a_session(path, line)
        ]

    def _is_of_a_session(self, path: str, line: bytes) -> bool:
        head = _head(line)
        if head.method is None:
            return (path, bytes(head.id)) not in self._handshakes
        return "sessionId" in _params(line).params

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; read along where the answer is an event stream."""
        if request.method == "POST":
            head = _head(await request.aread())
            if head.method in _HANDSHAKE:
                self._handshakes.add((request.url.path, bytes(head.id)))
        response = await super().handle_async_request(request)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            events = self._streams.setdefault(request.url.path, {})
            response.stream = _ReadAlong(response.stream, events)
        return response


class _ReadAlong(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, events: dict[str, bytes]) -> None:
        self._stream = stream
        self._events = events

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        decoder = SseDecoder()
        async for chunk in self._stream:
            for event in decoder.feed(chunk):
                self._note(event)
            yield chunk

    def _note(self, event: SseEvent) -> None:
        if event.event == "message" and event.id is not None:
            self._events[event.id] = event.data

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
