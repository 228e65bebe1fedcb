"""An in-memory server for what a real one does rarely: losing an answer, announcing a gap, beginning anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from sandbox_agent.engine.sse import encode_event, encode_messages
from sandbox_agent.errors import ServerSessionNotFoundError

__all__ = ["ScriptedServer"]


class _Body(httpx2.AsyncByteStream):
    def __init__(self, chunks: asyncio.Queue[bytes | None]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


class ScriptedServer(httpx2.AsyncBaseTransport):
    """Answers POSTs itself; what the feed says is up to the test.

    Attributes:
        posted: the envelopes that came.
        feed_answers: whether the feed carries the answers, too.
        failing_gets: how many of the next GETs of the feed a proxy answers with 502.
        healthy: what the health route says.
    """

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.gets: list[httpx2.Request] = []
        self.feed_answers = True
        self.healthy = True
        self.feed_status = 200
        self.failing_gets = 0
        self.paths: list[str] = []
        self._sequence = 0
        self._deleted: set[str] = set()
        self._feed: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(f"{request.method} {request.url.path}")
        if request.url.path == "/v1/health":
            return httpx2.Response(200 if self.healthy else 503, json={"status": "ok"})
        if request.method == "DELETE":
            self._deleted.add(request.url.path)
            return httpx2.Response(204)
        if request.url.path in self._deleted:
            problem = ServerSessionNotFoundError("session not found").to_problem()
            return httpx2.Response(404, json=problem, headers={"content-type": "application/problem+json"})
        if request.method == "GET" and not request.url.path.startswith("/v1/acp/"):
            return httpx2.Response(404)
        if request.method == "GET":
            self.gets.append(request)
            if self.failing_gets:
                self.failing_gets -= 1
                return httpx2.Response(502, text="bad gateway")
            return httpx2.Response(self.feed_status, stream=_Body(self._feed))
        envelope = json.loads(request.content)
        self.posted.append(envelope)
        if "id" not in envelope or "method" not in envelope:
            return httpx2.Response(202)
        answer = json.dumps(
            {"jsonrpc": "2.0", "id": envelope["id"], "result": self._result(envelope)}
        ).encode()
        if self.feed_answers:
            self.say(answer)
        return httpx2.Response(200, content=answer)

    def _result(self, envelope: dict[str, Any]) -> dict[str, Any]:
        results = {
            "session/new": {"sessionId": "agent-session"},
            "session/prompt": {"stopReason": "end_turn"},
        }
        return results.get(envelope["method"], {})

    def say(self, line: bytes) -> None:
        """Put an envelope into the feed."""
        self._sequence += 1
        self._feed.put_nowait(encode_messages(self._sequence, [line]))

    def announce(self, event: str, **data: Any) -> None:
        """Put another event into the feed."""
        self._feed.put_nowait(encode_event(event, json.dumps(data).encode()))

    def end_feed(self) -> None:
        """End the feed's stream."""
        self._feed.put_nowait(None)
