"""An in-memory server of sessions, for what a real one does rarely: lost answers, gaps, holes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from sandbox_agent.engine.sse import encode_comment, encode_event, encode_messages

__all__ = ["ScriptedSessions", "event", "gap", "messages", "problem"]


def event(sequence: int, kind: str = "item.delta", **data: Any) -> bytes:
    """Return an event as the server stores it."""
    return json.dumps(
        {
            "event_id": f"evt_s_{sequence}",
            "sequence": sequence,
            "time": "2026-01-31T12:00:00.000Z",
            "session_id": "s",
            "source": "agent",
            "synthetic": False,
            "type": kind,
            "data": data or {"item_id": "itm_1", "delta": f"{sequence} "},
        }
    ).encode()


def messages(first: int, last: int) -> bytes:
    """Return a piece of a stream: events of these sequences."""
    return encode_messages(first, [event(sequence) for sequence in range(first, last + 1)])


def gap(first: int, last: int) -> bytes:
    """Return a piece of a stream: these are gone."""
    return encode_event("gap", json.dumps({"from": first, "to": last}).encode(), event_id=last)


def problem(status: int, name: str, **extensions: str) -> httpx2.Response:
    """Return an answer that is an error of the contract."""
    document = {"type": f"urn:sandbox-agent:error:{name}", "status": status, "detail": f"it is {name}"}
    return httpx2.Response(status, json={**document, **extensions})


class _Body(httpx2.AsyncByteStream):
    def __init__(self, pieces: tuple[bytes | Exception, ...]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield encode_comment("connected")
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class ScriptedSessions(httpx2.AsyncBaseTransport):
    """Answers streams and messages as the test says, one after another.

    Attributes:
        info: what GET of the session says.
        exists: whether it is there.
        requests: all that came, but health and the session's own.
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] = {
            "sessionId": "s",
            "agent": "mock",
            "agentMode": "",
            "permissionMode": "",
            "ended": False,
            "eventCount": 0,
            "createdAt": 0,
            "updatedAt": 0,
            "managed": True,
        }
        self.exists = True
        self.requests: list[httpx2.Request] = []
        self._answers: deque[httpx2.Response | Exception] = deque()

    def answer(self, response: httpx2.Response | Exception) -> None:
        """Answer the next request so, or fail it."""
        self._answers.append(response)

    def stream(self, *pieces: bytes | Exception, turn: str = "") -> None:
        """Answer the next request with a stream of these pieces, which ends or breaks behind them."""
        headers = {"Sandbox-Agent-Turn": turn} if turn else {}
        self.answer(httpx2.Response(200, headers=headers, stream=_Body(pieces)))

    @property
    def asked(self) -> list[str | None]:
        """The offsets of the streams that were asked for."""
        return [request.url.params.get("offset") for request in self.requests]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/health":
            return httpx2.Response(200, json={"status": "ok"})
        if request.method == "GET" and request.url.path == "/v1/sessions/s":
            if not self.exists:
                return problem(404, "session_not_found")
            return httpx2.Response(200, json=self.info)
        self.requests.append(request)
        answer = self._answers.popleft() if self._answers else problem(404, "session_not_found")
        if isinstance(answer, Exception):
            raise answer
        return answer
